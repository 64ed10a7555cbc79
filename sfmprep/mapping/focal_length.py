"""Focal lengths from matched pairs, where nobody told them or told them wrongly.

For each of some focal lengths the relative pose of a pair is estimated anew, and what
its matches miss their epipolar lines by is summed; the focal length that the pairs of
a camera like best is taken. That asks the matches themselves, holds for fisheye lenses
as for pinholes, and costs as much for a hundred pairs as for a hundred thousand. The
closed form from fundamental matrices, which COLMAP's calibration of the view graph
uses, knows no fisheye lens and is unstable where optical axes meet.

All of a grid are tried only where nothing is expected. Of many cameras, most expect
something: what EXIF tells, or what was found for others of the same size and model.
There the search goes downhill from it, and is believed where it ends in a minimum that
is one.
"""

from __future__ import annotations

import logging
from collections.abc import Collection, Generator, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import TypeAlias, TypeVar

import numpy as np
import pycolmap

from sfmprep.progress import Progress, silent
from sfmprep.threads import thread_pool
from sfmprep.types import Float64

logger = logging.getLogger(__name__)

T = TypeVar("T")
Steps: TypeAlias = Generator[None, None, T]

# Focal lengths in longer sides: pinholes that see from 110 degrees to 8, and fisheye
# lenses from 290 to 39.
STEP = 1.25
PINHOLE_RATIOS = 0.35 * STEP ** np.arange(14)
_FISHEYE_RATIOS = 0.2 * STEP ** np.arange(9)
_FINE_STEP = STEP**0.25  # around the best of them

_MAX_PAIRS = 30  # of one camera
_MIN_PAIRS = 8  # of one of many
_MAX_TOTAL = 90
MIN_OWN_PAIRS = 3  # with fewer, pairs with other cameras are asked as well
MIN_MATCHES = 30
MAX_MATCHES = 300  # of one pair, which so never outvotes the others
_TRIALS = (50, 1000)  # of RANSAC
_FEW_TRIALS = (30, 200)  # where something is expected, and so most that is tried fits
_REACH = 2  # steps that are tried on both sides of the best of a search downhill
_COUNTED = 2  # rounds of questions that every camera needs, of those of its search

# A focal length is known where one that is `APART` times as long or as short costs
# `_WORSE` times as much. One that was told is refused where it is so far off and costs
# so much, and the best is at least better than its neighbours: where two views do not
# tell the focal length, small errors of the lens drive the best to an end of the grid.
# Where none was told, such a best is a better guess than 1.2 longer sides.
# Twice as long costs 1.4 times as much for the pairs of six photographs of
# fountain-P11, half as long 5 times.
APART = 1.3
_WORSE = 1.15
_DISTINCT = 1.05


@dataclass(frozen=True, kw_only=True, eq=False)
class MatchedViews:
    """Matches of two views in pixels of their files."""

    camera_ids: tuple[int, int]
    xy: tuple[Float64, Float64]  # both [M, 2]
    max_error_px: float  # from the epipolar line; larger errors count as much


@dataclass(frozen=True, kw_only=True)
class FocalLength:
    """What the pairs of one camera say."""

    pixels: float
    is_known: bool  # others fit clearly worse, or nothing speaks against what was told
    refused: bool = False  # another one was told, and the pairs contradict it


def find_focal_lengths(
    cameras: Mapping[int, pycolmap.Camera],
    pairs: Sequence[MatchedViews],
    *,
    known: Collection[int] = (),
    seed: int = 0,
    progress: Progress = silent,
) -> dict[int, FocalLength]:
    """Searches the focal lengths with which matches fit their epipolar lines.

    Cameras with many pairs of their own come first. Where there are fewer than three,
    those with other cameras are asked as well: the other's focal length is the one
    that is known, was found or is a prior that nothing contradicted yet, else as many
    longer sides as that which is tried.

    Args:
        cameras: By id. A focal length marked as a prior stays, unless the pairs
            contradict it; any other stays where no length fits better than those around
            it.
        pairs: The most telling ones first; wrong matches may be among theirs.
        known: Ids of cameras that are not asked.
        seed: Of RANSAC.
        progress: Wraps the loop over pairs.

    Returns:
        By camera id; none for cameras whose pairs all have fewer than 30 matches.
    """
    trusted = {
        key: camera for key, camera in cameras.items() if camera.has_prior_focal_length
    }
    plan = _plan(pairs, [key for key in cameras if key not in known])
    plan = {key: chosen for key, chosen in plan.items() if chosen}
    found: dict[int, FocalLength] = {}
    alike: dict[tuple[object, ...], list[float]] = {}  # found, by model and size

    def search() -> Iterator[None]:
        for key in plan:
            camera = cameras[key]
            kind = camera.model, camera.width, camera.height
            expected = None
            if camera.has_prior_focal_length:
                expected = camera.mean_focal_length()
            elif kind in alike:
                expected = float(np.median(alike[kind]))
            tell = _Told(pool, plan[key], key, cameras, dict(trusted), seed)
            found[key] = yield from _search(camera, expected, tell)
            trusted.pop(key, None)
            if found[key].is_known:
                trusted[key] = with_focal_length(camera, found[key].pixels)
                alike.setdefault(kind, []).append(found[key].pixels)

    with thread_pool() as pool:
        num_steps = _COUNTED * sum(map(len, plan.values()))
        for _ in progress(search(), desc="calibrate", total=num_steps):
            pass
    return found


def with_focal_length(camera: pycolmap.Camera, pixels: float) -> pycolmap.Camera:
    """A copy of a camera that has this mean focal length, as a prior.

    Where there is one in x and one in y, their ratio stays.
    """
    changed = pycolmap.Camera(camera.todict())
    params = np.array(camera.params)
    params[list(camera.focal_length_idxs())] *= pixels / camera.mean_focal_length()
    changed.params = params.tolist()
    changed.has_prior_focal_length = True
    return changed


def _plan(
    pairs: Sequence[MatchedViews], asked: Sequence[int]
) -> dict[int, list[MatchedViews]]:
    """The pairs that each camera is judged by, cameras with most of their own first."""
    own: dict[int, list[MatchedViews]] = {key: [] for key in asked}
    shared: dict[int, list[MatchedViews]] = {key: [] for key in asked}
    for pair in pairs:
        if len(pair.xy[0]) >= MIN_MATCHES:
            first, second = pair.camera_ids
            for key in {first, second} & own.keys():
                (own if first == second else shared)[key].append(pair)
    limit = min(_MAX_PAIRS, max(_MIN_PAIRS, _MAX_TOTAL // max(len(own), 1)))
    order = sorted(asked, key=lambda key: (-len(own[key]), -len(shared[key])))
    return {
        key: (own[key] + (shared[key] if len(own[key]) < MIN_OWN_PAIRS else []))[:limit]
        for key in order
    }


class _Told:
    """What the pairs of one camera miss by, asked a few focal lengths at a time."""

    def __init__(
        self,
        pool: Executor,
        pairs: Sequence[MatchedViews],
        key: int,
        cameras: Mapping[int, pycolmap.Camera],
        trusted: Mapping[int, pycolmap.Camera],
        seed: int,
    ) -> None:
        self._pool, self._pairs = pool, pairs
        self._rest = key, cameras, trusted
        self._seed = seed
        self._steps_left = _COUNTED * len(pairs)

    def __call__(self, pixels: Float64, trials: tuple[int, int]) -> Steps[Float64]:
        """Sums over pairs; a step a pair, the first `_COUNTED` times."""
        tried, where = np.unique(pixels, return_inverse=True)
        jobs = [
            self._pool.submit(_costs, pair, *self._rest, tried, self._seed, trials)
            for pair in self._pairs
        ]
        total = np.zeros(len(tried))
        for job in jobs:
            total += job.result()
            if self._steps_left:
                self._steps_left -= 1
                yield
        return total[where]

    def pass_over(self) -> Steps[None]:
        """The steps that need not be gone."""
        while self._steps_left:
            self._steps_left -= 1
            yield


def _search(
    camera: pycolmap.Camera, expected: float | None, tell: _Told
) -> Steps[FocalLength]:
    """Searches downhill from what is expected, and in all of a grid otherwise."""
    told = camera.mean_focal_length()
    ratios = _FISHEYE_RATIOS if is_fisheye(camera) else PINHOLE_RATIOS
    grid = ratios * max(camera.width, camera.height)
    if expected is not None:
        steps = np.arange(-_REACH, _REACH + 1)
        pixels = np.append(told, expected * STEP**steps)
        costs = yield from tell(pixels, _FEW_TRIALS)
        while len(more := _beyond(pixels[1:], costs[1:], grid[0], grid[-1])):
            pixels = np.append(pixels, more)
            costs = np.append(costs, (yield from tell(more, _FEW_TRIALS)))
        if camera.has_prior_focal_length and _is_upheld(pixels, costs):
            yield from tell.pass_over()
            return FocalLength(pixels=told, is_known=True)
        pixels, costs = yield from _finer(pixels, costs, tell, _FEW_TRIALS)
        found = _judge(camera, pixels, costs)
        _, sides = _minimum(pixels, costs)
        if sides > _WORSE and not found.refused:
            return found
    pixels = np.append(told, grid)
    costs = yield from tell(pixels, _TRIALS)
    pixels, costs = yield from _finer(pixels, costs, tell, _TRIALS)
    return _judge(camera, pixels, costs)


def _is_upheld(pixels: Float64, costs: Float64) -> bool:
    """Whether what was told, the first, is also the best of a grid, and by far.

    On a finer one the best is then less than `APART` off, and what was told stays.
    """
    is_best = pixels[1:][costs[1:].argmin()] == pixels[0]
    return bool(is_best and _minimum(pixels, costs)[1] > _WORSE)


def _beyond(pixels: Float64, costs: Float64, least: float, most: float) -> Float64:
    """What lies next to an end that is less than `_REACH` steps off the best."""
    best = pixels[costs.argmin()]
    reach = STEP ** (_REACH - 0.5)
    more = []
    if best / pixels.min() < reach and pixels.min() / STEP >= least:
        more.append(pixels.min() / STEP)
    if pixels.max() / best < reach and pixels.max() * STEP <= most:
        more.append(pixels.max() * STEP)
    return np.array(more)


def _finer(
    pixels: Float64, costs: Float64, tell: _Told, trials: tuple[int, int]
) -> Steps[tuple[Float64, Float64]]:
    """Adds focal lengths on both sides of the best; the first is no candidate."""
    best = pixels[1:][costs[1:].argmin()]
    more = np.array([best * _FINE_STEP**k for k in (-3, -2, -1, 1, 2, 3)])
    fine = yield from tell(more, trials)
    return np.append(pixels, more), np.append(costs, fine)


def is_fisheye(camera: pycolmap.Camera) -> bool:
    """Whether no fundamental matrix relates two of its images, whatever its lens."""
    return bool(camera.is_perspective_fisheye())


def _judge(camera: pycolmap.Camera, pixels: Float64, costs: Float64) -> FocalLength:
    """Decides by the costs of candidates, the first of which is the camera's own."""
    best, sides = _minimum(pixels, costs)
    is_off = abs(np.log(pixels[0]) - best) > np.log(APART)
    is_worse = costs[0] > _WORSE * costs.min() and is_off
    is_better = bool(is_worse and sides > _DISTINCT)
    if camera.has_prior_focal_length and not is_better:
        return FocalLength(pixels=float(pixels[0]), is_known=True)
    is_known = bool(sides > _WORSE)
    return FocalLength(
        pixels=float(np.exp(best) if sides > _DISTINCT else pixels[0]),
        is_known=is_known,
        refused=camera.has_prior_focal_length,
    )


def _minimum(pixels: Float64, costs: Float64) -> tuple[float, float]:
    """The logarithm of the best, and how many times as much one `APART` costs."""
    order = np.argsort(pixels[1:])
    grid, cost = np.log(pixels[1:][order]), costs[1:][order]
    best, apart = vertex(grid, cost), np.log(APART)
    sides = np.interp([best - apart, best + apart], grid, cost).min()
    return best, float(sides / costs.min())


def vertex(x: Float64, y: Float64) -> float:
    """Where the parabola through the lowest point and its neighbours is lowest."""
    k = int(y.argmin())
    if k in (0, len(y) - 1):
        return float(x[k])
    a, b, _ = np.polyfit(x[k - 1 : k + 2] - x[k], y[k - 1 : k + 2], 2)
    return float(x[k] - b / (2 * a)) if a > 0 else float(x[k])


def _costs(
    pair: MatchedViews,
    key: int,
    cameras: Mapping[int, pycolmap.Camera],
    trusted: Mapping[int, pycolmap.Camera],
    pixels: Float64,
    seed: int,
    trials: tuple[int, int],
) -> Float64:
    """What the matches of a pair miss by, for each focal length of camera `key`."""
    rows = np.unique(np.linspace(0, len(pair.xy[0]) - 1, MAX_MATCHES).astype(np.int64))
    xy = pair.xy[0][rows], pair.xy[1][rows]
    side = max(cameras[key].width, cameras[key].height)
    costs = np.empty(len(pixels))
    for k, focal in enumerate(pixels):
        views = [
            trusted[other]
            if other != key and other in trusted
            else with_focal_length(
                camera, focal / side * max(camera.width, camera.height)
            )
            for other, camera in ((c, cameras[c]) for c in pair.camera_ids)
        ]
        costs[k] = _epipolar_cost(
            *(views[0], views[1], xy, pair.max_error_px),
            *(seed, trials),
        )
    return costs


def _epipolar_cost(
    camera0: pycolmap.Camera,
    camera1: pycolmap.Camera,
    xy: tuple[Float64, Float64],
    max_error_px: float,
    seed: int,
    trials: tuple[int, int],
) -> float:
    """The squared errors of the best relative pose, each at most 1, in `max_error_px`.

    Errors are Sampson's distance on rays, from the epipolar planes in pixels.
    """
    options = pycolmap.RANSACOptions()
    options.max_error = max_error_px
    options.min_num_trials, options.max_num_trials = trials
    options.random_seed = seed
    found = pycolmap.estimate_relative_pose(camera0, xy[0], camera1, xy[1], options)
    if found is None:
        return float(len(xy[0]))
    pose = found["cam2_from_cam1"]
    essential = np.cross(np.eye(3), pose.translation) @ pose.rotation.matrix()
    (ray0, slope0), (ray1, slope1) = _rays(camera0, xy[0]), _rays(camera1, xy[1])
    plane1, plane0 = ray0 @ essential.T, ray1 @ essential
    gradients = (
        np.einsum("mij,mi->mj", slope0, plane0),
        np.einsum("mij,mi->mj", slope1, plane1),
    )
    across = (ray1 * plane1).sum(1) ** 2
    along = (np.hstack(gradients) ** 2).sum(1)
    squared = across / np.maximum(along, 1e-30) / max_error_px**2
    # a pixel beyond what its lens can show has no ray, and does not fit
    squared = np.where(np.isfinite(squared), squared, 1.0)
    return float(np.minimum(squared, 1).sum())


def _rays(camera: pycolmap.Camera, xy: Float64) -> tuple[Float64, Float64]:
    """Rays [M, 3] and their derivatives by the pixel [M, 3, 2]."""
    half = np.array([[0.5, 0.0], [0.0, 0.5]])
    derivatives = [
        np.asarray(camera.cam_ray_from_img(xy + step))
        - np.asarray(camera.cam_ray_from_img(xy - step))
        for step in half
    ]
    return np.asarray(camera.cam_ray_from_img(xy)), np.stack(derivatives, axis=2)
