"""Sub-pixel refinement of keypoints along tracks, from the photographs alone.

All patches of a track are brought into one frame (see `patches`) and moved until they
agree with their common mean: Lucas-Kanade (IJCAI 1981) on normalised patches, so that
gain and bias do not matter, jointly over the track as in Pixel-Perfect Structure-from-
Motion (Lindenberger et al., ICCV 2021), but on brightness. Against the mean, no view's
own error stays in the others. A prior holds every keypoint to where the detector put
it, as strongly as the noise of the patch demands: along an edge, or where there is no
texture, it stays.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfmprep.config import RefinementConfig
from sfmprep.coords import Float64
from sfmprep.images import ImageSet, load_batches
from sfmprep.patches import (
    LoadedFrame,
    Patches,
    plane_warps,
    reference_rows,
    sample_patches,
)
from sfmprep.progress import Progress, silent
from sfmprep.surface import surface_shapes
from sfmprep.triangulate import Index, Mask, Observations, Views, observations_of
from sfmprep.types import Float32

logger = logging.getLogger(__name__)

_RADIUS = 7  # of the window that is compared
_LEVELS = ((2.0, 3), (1.2, 2), (0.8, 4))  # blur in pixels, and steps at that blur
_BLUR_RADIUS = 4
_PRIOR_PX = 0.5  # error of a keypoint before
_COARSE_PRIOR = 0.005
_NUM_INDEPENDENT = 50.0  # of the pixels of a blurred window
_MIN_CORRELATION = 0.75
_MIN_CONTRAST = 1.0  # standard deviation of a patch, grey levels
_BLOCK_BYTES = 1 << 29
_CHUNK = 4096


@dataclass(frozen=True, kw_only=True)
class RefinementStats:
    """What a refinement did; all zero for a model without points."""

    num_observations: int  # of all points
    num_compared: int  # those whose patch could be compared with others
    num_moved: int
    median_move_px: float  # of those that moved, pixels of the file
    correlation_before: float  # with the others of the track, mean of those that moved
    correlation_after: float


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """Where patches agree with the others of their track."""

    shifts: Float64  # [M, 2]
    before: Float64  # [M] correlation with the mean of the others; -1: not compared
    after: Float64  # [M]


def refine_keypoints(
    model: pycolmap.Reconstruction,
    images: ImageSet,
    config: RefinementConfig,
    *,
    max_size: int | None = None,
    num_workers: int | None = None,
    progress: Progress = silent,
) -> RefinementStats:
    """Moves the keypoints of all tracks, in place, to where their patches agree.

    A keypoint moves only if its patch is like the mean of the track's other patches
    afterwards, and not less so than before. Poses and points stay: run `refine_model`
    on the model next. A photograph that cannot be read is a warning in the log, and its
    keypoints stay.

    Memory does not grow with the capture: above some 350,000 observations tracks are
    done in several rounds, each of which reads the photographs that it needs.

    Args:
        model: Poses and points, good to a few pixels.
        images: The capture.
        config: How far a keypoint may move.
        max_size: Longer side in pixels that images were reduced to for their features,
            and are reduced to here; None for full resolution.
        num_workers: Threads that decode photographs, or None for one a core, at most 8.
        progress: Wraps the loop over photographs.
    """
    views = Views.of(model)
    frames = _frames(model, views, images, max_size)
    _, xyz, observations = observations_of(model, views)
    normals = surface_shapes(model).normals.astype(np.float64)
    found = Alignment(
        shifts=np.zeros((len(observations), 2)),
        before=np.full(len(observations), -1.0),
        after=np.full(len(observations), -1.0),
    )
    radius = _RADIUS + _BLUR_RADIUS + math.ceil(config.max_move_px)
    for rows in _blocks(observations, frames, radius):
        part = observations.select(rows)
        points = np.unique(observations.point[rows])
        aligned = _refine_block(
            views,
            frames,
            part,
            xyz[points],
            normals[points],
            images,
            config.max_move_px,
            radius,
            max_size,
            num_workers,
            progress,
        )
        found.shifts[rows] = aligned.shifts
        found.before[rows] = aligned.before
        found.after[rows] = aligned.after
    moved = (
        (found.after >= _MIN_CORRELATION)
        & (found.after >= found.before)
        & (np.linalg.norm(found.shifts, axis=1) <= config.max_move_px)
    )
    length = np.zeros(len(observations))
    for view, rows in enumerate(observations.by_view(len(views))):
        rows = rows[moved[rows]]
        if not len(rows):
            continue
        image = model.images[int(views.ids[view])]
        steps = frames[view].file_steps(found.shifts[rows])
        length[rows] = np.linalg.norm(steps, axis=1)
        for row, step in zip(rows.tolist(), steps, strict=True):
            image.points2D[int(observations.keypoint[row])].xy = (
                observations.xy[row] + step
            )
    return RefinementStats(
        num_observations=len(observations),
        num_compared=int((found.after > -1).sum()),
        num_moved=int(moved.sum()),
        median_move_px=float(np.median(length[moved])) if moved.any() else 0.0,
        correlation_before=float(found.before[moved].mean()) if moved.any() else 0.0,
        correlation_after=float(found.after[moved].mean()) if moved.any() else 0.0,
    )


def _frames(
    model: pycolmap.Reconstruction,
    views: Views,
    images: ImageSet,
    max_size: int | None,
) -> dict[int, LoadedFrame]:
    """The frames of the views whose photographs are at hand, by row."""
    frames = {}
    for view, name in enumerate(views.names):
        info, camera = images.infos.get(name), views.cameras[view]
        if info is None:
            logger.warning(
                "%s is not among the images in %s, so its keypoints are not refined",
                *(name, images.root),
            )
        elif info.size != (camera.width, camera.height):
            logger.warning(
                "%s is %d x %d pixels but its camera %d x %d, so its keypoints are not"
                " refined; give the photographs that the model was made from",
                *(images.path(name), *info.size, camera.width, camera.height),
            )
        else:
            frames[view] = LoadedFrame.of(info, max_size)
    return frames


def _blocks(
    observations: Observations, frames: dict[int, LoadedFrame], radius: int
) -> Iterator[Index]:
    """Rows of whole tracks of two or more usable views, as many as memory allows.

    Tracks that begin in the same view stay together, so that a block needs few images.
    """
    usable = np.isin(observations.view, list(frames))
    count = np.bincount(observations.point, usable, observations.num_points)
    usable &= count[observations.point] >= 2
    if not usable.any():
        return
    first = np.minimum.reduceat(observations.view, observations.starts)
    order = np.argsort(first, kind="stable")
    size = max(_BLOCK_BYTES // (2 * (2 * radius + 1) ** 2), 1)
    block = np.empty(len(order), np.int64)
    block[order] = np.cumsum(count[order]) // size
    block_of_row = block[observations.point]
    for number in np.unique(block_of_row[usable]).tolist():
        yield np.flatnonzero(usable & (block_of_row == number))


def _refine_block(
    views: Views,
    frames: dict[int, LoadedFrame],
    observations: Observations,
    xyz: Float64,
    normals: Float64,
    images: ImageSet,
    max_move: float,
    radius: int,
    max_size: int | None,
    num_workers: int | None,
    progress: Progress,
) -> Alignment:
    """Shifts in pixels as loaded, of the better of two guesses of the surface."""
    distance = np.linalg.norm(
        xyz[observations.point] - views.centres[observations.view], axis=1
    )
    scale = np.array([frames[v].scale if v in frames else 1 for v in range(len(views))])
    resolution = (views.focals * scale)[observations.view] / np.maximum(distance, 1e-9)
    reference = reference_rows(observations, resolution)
    warps = [
        plane_warps(views, frames, observations, xyz, guess, reference)
        for guess in (normals, None)
    ]
    side = 2 * radius + 1
    patches = np.zeros((2, len(observations), side, side), np.uint8)
    inside = np.zeros((2, len(observations)), bool)
    by_view = observations.by_view(len(views))
    rows_of = {views.names[v]: (v, r) for v, r in enumerate(by_view) if len(r)}
    loaded = load_batches(
        images, list(rows_of), max_size=max_size, num_workers=num_workers
    )
    for (name,), batch in progress(loaded, desc="refine", total=len(rows_of)):
        view, rows = rows_of[name]
        xy = frames[view].loaded_xy(observations.xy[rows])
        for k in range(2):
            patches[k, rows], inside[k, rows] = sample_patches(
                batch.pixels[0], xy, warps[k][rows], radius
            )
    found = []
    for k in range(2):
        aligned = align_patches(patches[k], inside[k], observations, max_move)
        steps = np.einsum("mij,mj->mi", np.nan_to_num(warps[k]), aligned.shifts)
        found.append(
            Alignment(shifts=steps, before=aligned.before, after=aligned.after)
        )
    return _better(observations, *found)


def _better(observations: Observations, a: Alignment, b: Alignment) -> Alignment:
    """Of each track the alignment with the higher correlations."""
    gain = np.add.reduceat(a.after - b.after, observations.starts)
    first = (gain >= 0)[observations.point]
    return Alignment(
        shifts=np.where(first[:, None], a.shifts, b.shifts),
        before=np.where(first, a.before, b.before),
        after=np.where(first, a.after, b.after),
    )


# ------------------------------------------------------------------------- alignment
def align_patches(
    patches: Patches, usable: Mask, observations: Observations, max_move: float
) -> Alignment:
    """Moves patches until each agrees best with the mean of its track.

    Args:
        patches: [M, S, S] uint8, one for each observation.
        usable: [M] which of them count.
        observations: The tracks.
        max_move: No shift is longer.
    """
    parts = []
    starts, ends = [0], observations.starts
    while starts[-1] < len(observations):
        after = np.searchsorted(ends, starts[-1] + _CHUNK, side="right")
        # the last track that begins within the chunk goes into the next
        end = int(ends[after - 1]) if after < len(ends) else len(observations)
        if end <= starts[-1]:
            end = int(ends[after]) if after < len(ends) else len(observations)
        rows = slice(starts[-1], end)
        point = observations.point[rows]
        parts.append(
            _align(
                patches[rows].astype(np.float32),
                usable[rows],
                np.flatnonzero(np.diff(point, prepend=-1)),
                max_move,
            )
        )
        starts.append(end)
    return Alignment(
        shifts=np.concatenate([p.shifts for p in parts]),
        before=np.concatenate([p.before for p in parts]),
        after=np.concatenate([p.after for p in parts]),
    )


def _align(
    patches: Float32, usable: Mask, starts: Index, max_move: float
) -> Alignment:
    """As `align_patches`; tracks begin at `starts`."""
    track = np.repeat(
        np.arange(len(starts)), np.diff(starts, append=len(patches))
    )
    shifts = np.zeros((len(patches), 2), np.float32)
    weights = usable.astype(np.float32)
    before = np.full(len(patches), -1.0)
    for sigma, num_steps in _LEVELS:
        fine = sigma == _LEVELS[-1][0]
        for _ in range(num_steps):
            windows, contrast = _windows(patches, shifts, sigma)
            weights = np.where(contrast >= _MIN_CONTRAST, weights, 0)
            correlation, mean = _agreement(windows, weights, starts, track)
            weights = usable * (contrast >= _MIN_CONTRAST) * np.clip(
                correlation, 0.01, 1
            ) ** 2
            correlation, mean = _agreement(windows, weights, starts, track)
            noise = 2 * (1 - np.clip(correlation, 0, 1)) / _NUM_INDEPENDENT
            prior = noise / _PRIOR_PX**2 if fine else np.full(len(noise), _COARSE_PRIOR)
            shifts = shifts + _steps(windows, mean, track, shifts, prior, fine)
            total = np.add.reduceat(weights[:, None] * shifts, starts)
            total /= np.maximum(np.add.reduceat(weights, starts), 1e-6)[:, None]
            shifts = shifts - total[track]
            length = np.linalg.norm(shifts, axis=1, keepdims=True)
            shifts = shifts * np.minimum(max_move / np.maximum(length, 1e-6), 1)
            shifts = (shifts * (weights > 0)[:, None]).astype(np.float32)
    sigma = _LEVELS[-1][0]
    windows, _ = _windows(patches, shifts, sigma)
    after, _ = _agreement(windows, weights, starts, track)
    windows, _ = _windows(patches, np.zeros_like(shifts), sigma)
    before, _ = _agreement(windows, weights, starts, track)
    return Alignment(
        shifts=shifts.astype(np.float64),
        before=before.astype(np.float64),
        after=after.astype(np.float64),
    )


_WINDOW = np.arange(-_RADIUS, _RADIUS + 1)
_TAPER = np.exp(-(_WINDOW[:, None] ** 2 + _WINDOW**2) / (2 * 5.0**2))
_ROOT = np.sqrt(_TAPER / _TAPER.sum()).astype(np.float32)


def _windows(
    patches: Float32, shifts: Float32, sigma: float
) -> tuple[Float32, Float32]:
    """Blurred, shifted, weighted windows of mean 0 and norm 1, and their contrast.

    Returns:
        [M, 225] and [M], the standard deviation in grey levels.
    """
    side = np.arange(patches.shape[1], dtype=np.float32) - patches.shape[1] // 2
    across, down = (
        _kernel(shifts[:, k, None] + _WINDOW.astype(np.float32), side, sigma)
        for k in (0, 1)
    )
    windows = down @ patches @ across.swapaxes(1, 2)
    windows -= np.einsum("ij,mij->m", _ROOT**2, windows)[:, None, None]
    windows *= _ROOT
    windows = windows.reshape(len(patches), -1)
    contrast = np.linalg.norm(windows, axis=1)
    return windows / np.maximum(contrast, 1e-6)[:, None], contrast


def _kernel(places: Float32, side: Float32, sigma: float) -> Float32:
    """Gaussian weights [M, 15, S] of a row of pixels around places [M, 15]."""
    kernel = np.exp(((places[..., None] - side) / sigma) ** 2 * np.float32(-0.5))
    kernel /= kernel.sum(axis=2, keepdims=True)
    return kernel


def _agreement(
    windows: Float32, weights: Float32, starts: Index, track: Index
) -> tuple[Float32, Float32]:
    """Correlation [M] of each window with the others of its track, and means [T, 225].

    -1 where there is no other, or the weight is 0.
    """
    total = np.add.reduceat(weights[:, None] * windows, starts)
    square = np.einsum("ti,ti->t", total, total)[track]
    product = np.einsum("mi,mi->m", windows, total[track])
    rest = np.sqrt(np.maximum(square - 2 * weights * product + weights**2, 0))
    alone = (rest < 1e-4) | (weights == 0)
    correlation = np.where(alone, -1, (product - weights) / np.maximum(rest, 1e-4))
    mean = total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-6)
    return correlation, mean


def _steps(
    windows: Float32,
    mean: Float32,
    track: Index,
    shifts: Float32,
    prior: Float32,
    fine: bool,
) -> Float32:
    """Gauss-Newton steps [M, 2] towards the mean of the track."""
    side = len(_WINDOW)
    picture = mean.reshape(-1, side, side) / _ROOT
    slopes = np.stack(
        [np.gradient(picture, axis=axis) * _ROOT for axis in (2, 1)], axis=1
    ).reshape(len(mean), 2, -1)
    # what a change of brightness or contrast explains is no motion
    for fixed in (np.broadcast_to(_ROOT.reshape(-1), mean.shape), mean):
        slopes -= np.einsum("tki,ti->tk", slopes, fixed)[..., None] * fixed[:, None]
    hessian = np.einsum("tki,tli->tkl", slopes, slopes)[track]
    hessian = hessian + prior[:, None, None] * np.eye(2, dtype=np.float32)
    slope = np.einsum("mki,mi->mk", slopes[track], windows)
    if fine:
        slope = slope + prior[:, None] * shifts
    steps = -np.linalg.solve(hessian + 1e-6 * np.eye(2), slope[..., None])[..., 0]
    return np.clip(steps, -1, 1).astype(np.float32)
