"""Masks of what moves: what no still point explains, by optical flow and known poses.

Of each image the content is followed by optical flow into the images that were taken
nearest to it. Where the scene stands still, one point on a pixel's ray explains what
all of these see. Idea: MegaSaM (Li et al., CVPR 2025), whose network is not used.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np

from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import read_mask
from sfmprep.config import MotionMasksConfig
from sfmprep.coords import Placed, colmap_from_centre, upright_pixels, upright_size
from sfmprep.geometry.static import Explained, Seen, explain
from sfmprep.geometry.views import ModelArrays, Views
from sfmprep.models.protocols import FlowEstimator
from sfmprep.progress import Progress, silent
from sfmprep.types import Bytes, Float32, Float64, ImageBatch, Mask

logger = logging.getLogger(__name__)

_STEP = 2  # pixels of the reduced image, a side, that are judged together
_CHECK_PX, _CHECK_SHARE = 1.0, 0.05  # forward and backward flow agree so well
_MIN_TEXTURE = 2.0  # standard deviation of grey levels around a pixel that is judged
_AROUND = 9  # pixels, for that
_TOLERANCE_PX, _TOLERANCE_SHARE = 1.0, 0.02  # of a flow that goes with a still point
_MIN_SHARED = 30  # points, for two images to show the same
_LEAST, _MOST = 0.004, 0.25  # of the diagonal: how far shared points may be apart
_MIN_VIEWS = 2  # that see a pixel's content, for it to be judged
_MOVES, _RESTS = 0.6, 0.3  # misfits from which and up to which on a pixel is sure
_MIN_KNOWN = 0.3  # share of the pixels around one that were judged
_OPENED = 3  # pixels that are judged; what is thinner is an edge
_MIN_SHARE = 0.002  # of the image; smaller regions are noise
_MAX_SHARE = 0.4  # of the image; beyond that it is not known what moves


def find_motion(
    images: ImageSet,
    models: Sequence[ModelArrays],
    estimator: FlowEstimator,
    config: MotionMasksConfig,
    *,
    progress: Progress = silent,
) -> Iterator[tuple[str, Mask]]:
    """Yields what stands still in each image that has a pose, and enough beside it.

    Args:
        images: The photographs.
        models: Their poses and points; of an image in several models the first counts.
        estimator: Of optical flow.
        config: The other settings.
        progress: Wraps the loop over images.

    Yields:
        The name, and [H, W] of the upright image in small, False = moves.
    """
    todo: dict[str, tuple[ModelArrays, int]] = {}
    for model in models:
        for view, name in enumerate(model.views.names):
            todo.setdefault(name, (model, view))
    film, last = _Film(images, estimator, config), None
    for name in progress(sorted(todo), desc="motion", total=len(todo)):
        model, view = todo[name]
        if model is not last:
            nearness, last = _Nearness(model), model
        found = _explained(film, model.views, view, nearness.paths(view, config))
        picture = film.picture(name)
        if found is None or picture is None:
            continue
        moves = _moving(found.misfit.reshape(picture.shape), picture.small)
        if moves.mean() > _MAX_SHARE:
            logger.warning(
                "%s: %.0f%% of it does not fit its pose, so what moves in it is not"
                " known, and it is used whole",
                name,
                100 * moves.mean(),
            )
            continue
        yield name, ~moves


def write_masks(images: ImageSet, still: Mapping[str, Mask], folder: Path) -> None:
    """Writes a mask for every image, upright as people see it.

    Black is what moves, and what the masks leave out that the images have already.

    Args:
        images: The capture, with the masks that are given.
        still: What `find_motion` yields; may lack images.
        folder: Made if it is missing; `a.jpg.png` for `a.jpg`.

    Raises:
        ImageError: a given mask cannot be used.
        OSError: they cannot be written.
    """
    for name in images.names:
        info = images.infos[name]
        size = upright_size(info.size, info.orientation)
        mask = np.full(size[::-1], 255, np.uint8)
        if name in still:
            small = 255 * still[name].astype(np.uint8)
            cv2.resize(small, size, dst=mask, interpolation=cv2.INTER_NEAREST)
        if (given := read_mask(images, name)) is not None:
            upright = upright_pixels(given.astype(np.uint8), info.orientation)
            mask[upright == 0] = 0
        path = folder / f"{name}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", mask)[1].tobytes())


class _Nearness:
    """How far the points that images share are apart in them."""

    def __init__(self, model: ModelArrays) -> None:
        self._model = model
        self._rows = model.observations.by_view(len(model.views))
        self._starts = model.observations.starts
        self._counts = model.observations.counts()
        self._of = cache(self._compute)

    def paths(self, view: int, config: MotionMasksConfig) -> list[list[int]]:
        """Ways to the nearest views, over others that are nearer still."""
        camera = self._model.views.cameras[view]
        diagonal = float(np.hypot(camera.width, camera.height))
        shifts = self._of(view)
        near = [
            other
            for other, shift in sorted(shifts.items(), key=lambda item: item[1])
            if _LEAST * diagonal <= shift <= _MOST * diagonal
        ][: config.neighbours]
        paths: dict[int, list[int]] = {}
        for other in near:
            steps = {via: self._of(via).get(other, np.inf) for via in paths}
            via = min(steps, key=steps.__getitem__, default=view)
            is_nearer = steps.get(via, np.inf) < shifts[other]
            paths[other] = [*(paths[via] if is_nearer else [view]), other]
        return list(paths.values())

    def _compute(self, view: int) -> dict[int, float]:
        """The median distance in pixels, by the view it is to."""
        observations, rows = self._model.observations, self._rows[view]
        points = observations.point[rows]
        counts = self._counts[points]
        ends = np.cumsum(counts)
        others = np.arange(ends[-1] if len(ends) else 0)
        others += np.repeat(self._starts[points] - ends + counts, counts)
        apart = observations.xy[others] - np.repeat(observations.xy[rows], counts, 0)
        length, other_view = np.linalg.norm(apart, axis=1), observations.view[others]
        order = np.argsort(other_view, kind="stable")
        views, first = np.unique(other_view[order], return_index=True)
        groups = np.split(length[order], first[1:]) if len(views) else []
        return {
            int(other): float(np.median(group))
            for other, group in zip(views, groups, strict=True)
            if other != view and len(group) >= _MIN_SHARED
        }


def _moving(misfit: Float32, picture: Bytes) -> Mask:
    """Which pixels move, from how badly still points explain those that were judged.

    Those that are not sure go with the side that they look like: regions grow from
    both up to the edges of the picture (watershed).
    """
    known = np.isfinite(misfit)
    share = cv2.GaussianBlur(known.astype(np.float32), (0, 0), 1)
    total = cv2.GaussianBlur(np.where(known, misfit, 0).astype(np.float32), (0, 0), 1)
    mean = total / np.maximum(share, 1e-6)
    is_known = share > _MIN_KNOWN
    moves = _without_specks((mean > _MOVES) & is_known, _MIN_SHARE / 2)
    if not moves.any():
        return moves
    markers = np.zeros(misfit.shape, np.int32)
    markers[(mean < _RESTS) & is_known] = 1
    markers[moves] = 2
    return _without_specks(cv2.watershed(picture, markers) == 2, _MIN_SHARE)


def _without_specks(mask: Mask, min_share: float) -> Mask:
    """Without thin and small parts."""
    disc = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (_OPENED, _OPENED))
    opened = cv2.morphologyEx(mask.astype(np.uint8), cv2.MORPH_OPEN, disc)
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(opened)
    is_large = statistics[:, cv2.CC_STAT_AREA] >= min_share * mask.size
    is_large[0] = False
    kept: Mask = is_large[labels]
    return kept


class _Picture:
    """One image in small, as it is followed."""

    def __init__(self, batch: ImageBatch, estimator: FlowEstimator) -> None:
        [self.prepared] = estimator.prepare(batch)
        self.placed = Placed.of(batch, 0)
        self.size = width, height = batch.network_size
        grey = np.asarray(255 * batch.pixels[0].mean(axis=0), np.float32)
        mean = cv2.blur(grey, (_AROUND, _AROUND))
        variance = cv2.blur(grey**2, (_AROUND, _AROUND)) - mean**2
        x, y = np.arange(0, width, _STEP), np.arange(0, height, _STEP)
        self.shape = len(y), len(x)
        colours = batch.pixels[0].transpose(1, 2, 0)[::_STEP, ::_STEP]
        self.small: Bytes = np.rint(255 * colours).astype(np.uint8)  # [h, w, 3]
        self.xy: Float32 = (
            np.stack(np.meshgrid(x, y), -1).reshape(-1, 2).astype(np.float32)
        )  # [N, 2] array places of the pixels that are judged
        self.has_texture: Mask = variance[::_STEP, ::_STEP].ravel() >= _MIN_TEXTURE**2

    def stored(self, xy: Float32) -> Float64:
        """Array places of the small image as COLMAP pixels of the file."""
        return self.placed.stored(colmap_from_centre(xy)).astype(np.float64)


class _Film:
    """Images in small and the flow between them; those used last are kept."""

    def __init__(
        self, images: ImageSet, estimator: FlowEstimator, config: MotionMasksConfig
    ) -> None:
        self._images, self._estimator = images, estimator
        self._max_size, self._room = config.max_size, 2 * config.neighbours
        self._pictures: OrderedDict[str, _Picture | None] = OrderedDict()
        self._flows: OrderedDict[tuple[str, ...], Float32] = OrderedDict()

    def picture(self, name: str) -> _Picture | None:
        """The image; None, after a warning, where it cannot be decoded."""
        if name not in self._pictures:
            loaded = load_batches(self._images, [name], max_size=self._max_size)
            found = [_Picture(batch, self._estimator) for _, batch in loaded]
            self._pictures[name] = found[0] if found else None
        return _kept(self._pictures, name, self._room)

    def follow(self, path: Sequence[str]) -> tuple[Float32, Mask] | None:
        """Where the pixels of the first image are in the last, and whether it is sure.

        None where the sizes differ or one cannot be decoded.
        """
        pictures = [self.picture(name) for name in path]
        here = pictures[0]
        if here is None or any(p is None or p.size != here.size for p in pictures):
            return None
        flow, back = self._flow(tuple(path)), self._flow(tuple(path[::-1]))
        shift = flow[::_STEP, ::_STEP].reshape(-1, 2)
        end = here.xy + shift
        returned = _at(back, end.reshape(*here.shape, 2)).reshape(-1, 2)
        gap = np.linalg.norm(shift + returned, axis=1)
        length = np.linalg.norm(shift, axis=1)
        inside = ((end >= 0) & (end <= np.subtract(here.size, 1))).all(axis=1)
        return end, inside & (gap < _CHECK_PX + _CHECK_SHARE * length)

    def _flow(self, path: tuple[str, ...]) -> Float32:
        """The flow between the ends, which begins with that along the path."""
        if path not in self._flows:
            start = None
            if len(path) > 2:
                start = self._flow(path[:2])
                height, width = start.shape[:2]
                grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), -1)
                for step in zip(path[1:], path[2:], strict=False):
                    place = (grid + start).astype(np.float32)
                    start = start + _at(self._flow(step), place)
            first, last = self.picture(path[0]), self.picture(path[-1])
            assert first is not None and last is not None
            pair = first.prepared, last.prepared
            [found] = self._estimator.flow([pair], [start])
            self._flows[path] = found
        return _kept(self._flows, path, 8 * self._room)


def _at(flow: Float32, place: Float32) -> Float32:
    """A flow at array places [H, W, 2], bilinear; beyond its edge that of the edge."""
    columns, rows = (np.ascontiguousarray(place[..., k]) for k in (0, 1))
    return np.asarray(
        cv2.remap(
            flow, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
        ),
        np.float32,
    )


K = TypeVar("K")
V = TypeVar("V")


def _kept(table: OrderedDict[K, V], key: K, room: int) -> V:
    """An entry, which becomes the newest; the oldest go."""
    table.move_to_end(key)
    while len(table) > room:
        table.popitem(last=False)
    return table[key]


def _explained(
    film: _Film, views: Views, view: int, paths: Sequence[Sequence[int]]
) -> Explained | None:
    """How well the scene that stands still explains the pixels of a view."""
    here = film.picture(views.names[view])
    if here is None:
        return None
    others = []
    for path in paths:
        partner = path[-1]
        there = film.picture(views.names[partner])
        followed = film.follow([views.names[row] for row in path])
        if followed is None or there is None:
            continue
        end, is_sure = followed
        rays = views.rays(partner, there.stored(end))
        per_px = max(there.placed.size) / max(there.size) / views.focals[partner]
        length = np.linalg.norm(end - here.xy, axis=1)
        tolerance = per_px * (_TOLERANCE_PX + _TOLERANCE_SHARE * length)
        is_valid = is_sure & here.has_texture & np.isfinite(rays).all(axis=1)
        others.append(
            Seen(view=partner, rays=rays, is_valid=is_valid, tolerance=tolerance)
        )
    rays = views.rays(view, here.stored(here.xy))
    return explain(views, view, rays, others, min_views=_MIN_VIEWS)
