"""How sharp photographs are against others that show the same surfaces.

Sharpness by itself depends on what is seen: a white wall has none. So only where the
model says that several photographs show one surface, from about one distance, their
finest details are compared, each held against coarser ones at the same place, which
light and contrast change alike.
What a surface has of them is what most photographs of one camera show of it; what
remains is of the photograph. Shake and defocus take the finest details everywhere; of
a photograph with little in focus the better part counts.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import PurePosixPath

import cv2
import numpy as np
from scipy.sparse import coo_matrix

from sfmprep.capture.batches import fit_size
from sfmprep.capture.image_set import ImageSet
from sfmprep.dataset.colours import bilinear
from sfmprep.devices import num_cores
from sfmprep.geometry.views import ModelArrays
from sfmprep.progress import Progress, silent
from sfmprep.threads import thread_pool
from sfmprep.types import Bytes, Float32, Float64, Index

_LONGER_SIDE = 1600  # pixels; what trainers reduce larger photographs to
_CELL = 8  # pixels of these, over which details are averaged
_COARSE = 4  # times as large
_ROUNDING = 0.05  # grey levels squared: less of detail than that is none
_NEAREST = 8  # photographs, by shared points, that one is held against
_MIN_NEAREST = 2
_MIN_SHARED = 15  # points, as COLMAP asks of a pair
_MIN_SEEN = 3  # photographs of a point that tell what its surface has
_BETTER = 0.75  # the quantile of points, and of photographs near, that counts
_ROUNDS = 8
_MAX_THREADS = 8


def relative_sharpness(
    images: ImageSet,
    arrays: ModelArrays,
    *,
    names: Collection[str] | None = None,
    progress: Progress = silent,
) -> dict[str, float]:
    """The contrast of finest details against that of the sharper photographs near.

    Every photograph is read once, and no more are in memory than there are threads.

    Args:
        images: Where the photographs of the model lie.
        arrays: Of the model.
        names: Photographs that are asked; only they and those near them are read.
            None for all.
        progress: Wraps the loop over what is read.

    Returns:
        1 for as sharp as these, 0.5 for half of their contrast. Those are left out that
        do not share 15 points with each of two others of their camera, or show fewer
        than 15 that three of these show.

    Raises:
        ImageError: A photograph cannot be read.
    """
    views, seen = arrays.views, arrays.observations
    surface = _surfaces(arrays, _kinds(images, views.names))
    near = _near(seen.view, surface, len(views))
    asked = [
        view
        for view, name in enumerate(views.names)
        if len(near[view]) >= _MIN_NEAREST and (names is None or name in names)
    ]
    read = sorted({*asked, *(other for view in asked for other in near[view].tolist())})
    by_view = seen.by_view(len(views))

    def measure(view: int) -> Float64:
        pixels = images.read_pixels(views.names[view])
        return _detail(pixels, seen.xy[by_view[view]])

    detail = np.full(len(seen), np.nan)
    with thread_pool(min(_MAX_THREADS, num_cores())) as pool:
        measured = zip(read, pool.map(measure, read), strict=True)
        for view, values in progress(measured, desc="sharpness", total=len(read)):
            detail[by_view[view]] = values
    known = np.flatnonzero(np.isfinite(detail))
    sharpness = _of_views(detail[known], seen.view[known], surface[known], len(views))
    found = {}
    for view in asked:
        others = sharpness[near[view]]
        others = others[np.isfinite(others)]
        if np.isfinite(sharpness[view]) and len(others) >= _MIN_NEAREST:
            below = sharpness[view] - np.quantile(others, _BETTER)
            found[views.names[view]] = round(float(2 ** (below / 2)), 3)
    return found


def _kinds(images: ImageSet, names: Collection[str]) -> Index:
    """A number for each photograph [V], one for each size, device and lens."""
    kinds: list[object] = []
    for name in names:
        info = images.infos[name]
        # without EXIF, folders tell films, and the cameras of rigs, apart
        folder = None if info.make or info.model else PurePosixPath(name).parent
        size = tuple(sorted(info.size))  # upright or not
        kinds.append((folder, size, info.make, info.model, info.lens_model))
    number = {kind: k for k, kind in enumerate(dict.fromkeys(kinds))}
    return np.array([number[kind] for kind in kinds], np.int64)


def _surfaces(arrays: ModelArrays, kinds: Index) -> Index:
    """What each observation shows [M]: one point, by one kind, from about one distance.

    About one is within an octave around the middle one of the point: a surface that is
    sharp from afar may have no finer details to show from near.
    """
    views, seen = arrays.views, arrays.observations
    way = arrays.xyz[seen.point] - views.centres[seen.view]
    scale = np.log2(views.focals[seen.view] / np.linalg.norm(way, axis=1))
    middle = _quantiles(scale, seen.point, seen.num_points, 0.5)
    octave = np.rint(scale - middle[seen.point]).astype(np.int64)
    octave -= octave.min(initial=0)
    shown = seen.point * (kinds.max(initial=0) + 1) + kinds[seen.view]
    shown = shown * (octave.max(initial=0) + 1) + octave
    return np.unique(shown, return_inverse=True)[1]


def _near(view: Index, surface: Index, num_views: int) -> list[Index]:
    """Of each view those with which it shares most surfaces."""
    ones = np.ones(len(view), np.int32)
    shape = num_views, int(surface.max(initial=-1)) + 1
    sees = coo_matrix((ones, (view, surface)), shape).tocsr()
    shared = (sees @ sees.T).tocoo()
    kept = (shared.data >= _MIN_SHARED) & (shared.row != shared.col)
    row, column, count = (each[kept] for each in (shared.row, shared.col, shared.data))
    order = np.lexsort((column, -count, row))
    stops = np.searchsorted(row[order], np.arange(1, max(num_views, 1)))
    return [part[:_NEAREST] for part in np.split(column[order], stops)]


def _detail(pixels: Bytes, xy: Float64) -> Float64:
    """Energy of the finest details against that of coarser ones, log2, at points [N].

    Args:
        pixels: [H, W, 3] RGB.
        xy: [N, 2] COLMAP pixels.
    """
    size = pixels.shape[1::-1]
    small = fit_size((size[0], size[1]), _LONGER_SIDE)
    grey = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)
    if small != size:
        grey = cv2.resize(grey, small, interpolation=cv2.INTER_AREA)
    quarter = [max(side // _COARSE, 1) for side in small]
    reduced = cv2.resize(grey, quarter, interpolation=cv2.INTER_AREA)
    fine, coarse = (np.asarray(each, np.float32) for each in (grey, reduced))
    fine = fine - cv2.GaussianBlur(fine, (0, 0), 1.0)
    dx = cv2.Sobel(coarse, cv2.CV_32F, 1, 0, scale=1 / 8)
    dy = cv2.Sobel(coarse, cv2.CV_32F, 0, 1, scale=1 / 8)
    cells = [max(round(side / _CELL), 1) for side in small]

    def log_at(energy: Float32) -> Float64:
        means = cv2.resize(energy, cells, interpolation=cv2.INTER_AREA)
        values = np.asarray(means, np.float32)[:, :, None]
        at = bilinear(values, xy * cells / size)[:, 0]
        return np.asarray(np.log2(at + _ROUNDING), np.float64)

    return log_at(fine**2) - log_at(np.asarray(dx**2 + dy**2, np.float32))


def _of_views(detail: Float64, view: Index, surface: Index, num_views: int) -> Float64:
    """What views [V] have of detail beyond their surfaces, NaN where nothing tells.

    Medians of surfaces and of views are taken off by turns; at last the better part of
    a view's points counts.
    """
    counts = np.bincount(surface)
    kept = counts[surface] >= _MIN_SEEN
    detail, view, surface = detail[kept], view[kept], surface[kept]
    offset, own = np.zeros(num_views), np.zeros(len(counts))
    for _ in range(_ROUNDS):
        own = _quantiles(detail - offset[view], surface, len(counts), 0.5)
        offset = _quantiles(detail - own[surface], view, num_views, 0.5)
    found = _quantiles(detail - own[surface], view, num_views, _BETTER)
    found[np.bincount(view, minlength=num_views) < _MIN_SHARED] = np.nan
    return found


def _quantiles(values: Float64, groups: Index, count: int, share: float) -> Float64:
    """The quantile of each group [count], NaN for empty ones."""
    ordered = values[np.lexsort((values, groups))]
    sizes = np.bincount(groups, minlength=count)
    starts = np.cumsum(sizes) - sizes
    found, some = np.full(count, np.nan), sizes > 0
    at = share * (sizes[some] - 1)
    low = at.astype(np.int64)
    high = np.minimum(low + 1, sizes[some] - 1)
    first, second = (ordered[starts[some] + each] for each in (low, high))
    found[some] = first + (at - low) * (second - first)
    return found
