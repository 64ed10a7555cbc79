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
_TAPER_PX = 5.0  # standard deviation of the weights over the window
_LEVELS = ((2.0, 3), (1.2, 2), (0.8, 4))  # blur in pixels, and steps at that blur
_FINEST = _LEVELS[-1][0]
_BLUR_RADIUS = 4
_MAX_STEP_PX = 1.0
_PRIOR_PX = 0.5  # standard deviation of a keypoint's error before
_COARSE_PRIOR = 0.005  # squared change of a unit patch for a step of a pixel
_NUM_INDEPENDENT = 50.0  # pixels of a window whose noise is not shared by neighbours
_MIN_CORRELATION = 0.75
_MIN_CONTRAST = 1.0  # standard deviation of a patch, grey levels
_BLOCK_BYTES = 1 << 29
_CHUNK_ROWS = 4096


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
    before: Float64  # [M] correlation with the mean of the others, or -1 without any
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
        surface = (xyz[points], normals[points])
        guesses = _surface_warps(views, frames, part, *surface)
        aligned = _align_block(
            *(views, frames, part, guesses, images),
            radius=radius,
            max_move=config.max_move_px,
            max_size=max_size,
            num_workers=num_workers,
            progress=progress,
        )
        found.shifts[rows] = aligned.shifts
        found.before[rows] = aligned.before
        found.after[rows] = aligned.after
    moved = (
        (found.after >= _MIN_CORRELATION)
        & (found.after >= found.before)
        & (np.linalg.norm(found.shifts, axis=1) <= config.max_move_px)
    )
    lengths = _move_keypoints(model, views, frames, observations, found.shifts, moved)
    logger.info(
        "%d of %d keypoints refined, by %.2f px in the median",
        *(len(lengths), len(observations), np.median(lengths) if len(lengths) else 0),
    )
    return RefinementStats(
        num_observations=len(observations),
        num_compared=int((found.after > -1).sum()),
        num_moved=len(lengths),
        median_move_px=float(np.median(lengths)) if len(lengths) else 0.0,
        correlation_before=float(found.before[moved].mean()) if len(lengths) else 0.0,
        correlation_after=float(found.after[moved].mean()) if len(lengths) else 0.0,
    )


def _move_keypoints(
    model: pycolmap.Reconstruction,
    views: Views,
    frames: dict[int, LoadedFrame],
    observations: Observations,
    shifts: Float64,
    moved: Mask,
) -> Float64:
    """Adds shifts in pixels as loaded; returns the lengths in pixels of the files."""
    lengths = [np.empty(0)]
    for view, rows in enumerate(observations.by_view(len(views))):
        rows = rows[moved[rows]]
        if not len(rows):
            continue
        steps = frames[view].file_steps(shifts[rows])
        points = model.images[int(views.ids[view])].points2D
        for keypoint, xy in zip(
            observations.keypoint[rows].tolist(),
            observations.xy[rows] + steps,
            strict=True,
        ):
            points[keypoint].xy = xy
        lengths.append(np.linalg.norm(steps, axis=1))
    return np.concatenate(lengths)


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


def _surface_warps(
    views: Views,
    frames: dict[int, LoadedFrame],
    observations: Observations,
    xyz: Float64,
    normals: Float64,
) -> tuple[Float64, Float64]:
    """Warps for the plane of the neighbours, and for one that faces the reference."""
    offsets = xyz[observations.point] - views.centres[observations.view]
    distance = np.maximum(np.linalg.norm(offsets, axis=1), 1e-300)
    focals = np.ones(len(views))
    for view, frame in frames.items():
        focals[view] = views.focals[view] * frame.scale
    reference = reference_rows(observations, focals[observations.view] / distance)
    known = (views, frames, observations, xyz)
    return (
        plane_warps(*known, normals, reference),
        plane_warps(*known, None, reference),
    )


def _align_block(
    views: Views,
    frames: dict[int, LoadedFrame],
    observations: Observations,
    guesses: tuple[Float64, Float64],
    images: ImageSet,
    *,
    radius: int,
    max_move: float,
    max_size: int | None,
    num_workers: int | None,
    progress: Progress,
) -> Alignment:
    """Reads the photographs of a block of tracks and aligns it.

    Returns:
        Shifts in pixels as loaded; each track by the guess that fits it better.
    """
    side = 2 * radius + 1
    patches = np.zeros((2, len(observations), side, side), np.uint8)
    inside = np.zeros((2, len(observations)), bool)
    rows_of = {
        views.names[view]: (view, rows)
        for view, rows in enumerate(observations.by_view(len(views)))
        if len(rows)
    }
    loaded = load_batches(
        images, list(rows_of), max_size=max_size, num_workers=num_workers
    )
    for (name,), batch in progress(loaded, desc="refine", total=len(rows_of)):
        view, rows = rows_of[name]
        xy = frames[view].loaded_xy(observations.xy[rows])
        for k, warps in enumerate(guesses):
            patches[k, rows], inside[k, rows] = sample_patches(
                batch.pixels[0], xy, warps[rows], radius
            )
    found = [
        align_tracks(patches[:, rows], inside[:, rows], starts, max_move)
        for rows, starts in _chunks(observations)
    ]
    aligned, guess = zip(*found, strict=True)
    warps = np.where(np.concatenate(guess)[:, None, None] == 0, guesses[0], guesses[1])
    shifts = np.concatenate([part.shifts for part in aligned])
    return Alignment(
        shifts=np.einsum("mij,mj->mi", np.nan_to_num(warps), shifts),
        before=np.concatenate([part.before for part in aligned]),
        after=np.concatenate([part.after for part in aligned]),
    )


def _chunks(observations: Observations) -> Iterator[tuple[slice, Index]]:
    """Whole tracks of some thousand rows, and where each track begins in them."""
    starts = observations.starts
    for number in np.split(
        np.arange(len(starts)), np.flatnonzero(np.diff(starts // _CHUNK_ROWS)) + 1
    ):
        last = number[-1] + 1
        end = starts[last] if last < len(starts) else len(observations)
        yield (
            slice(int(starts[number[0]]), int(end)),
            starts[number] - starts[number[0]],
        )


# ------------------------------------------------------------------------- alignment
def align_tracks(
    patches: Patches, usable: Mask, starts: Index, max_move: float
) -> tuple[Alignment, Index]:
    """Moves patches until each agrees best with the mean of its track.

    Args:
        patches: [2, M, S, S] of the observations, by two guesses of the surface.
        usable: [2, M] which of them count.
        starts: [T] where each track begins, rising from 0.
        max_move: Patches that had to be shifted as far are not compared.

    Returns:
        The alignment in the frames of the tracks, and the guess [M] that was taken:
        that by which the unmoved patches of the track agree better.
    """
    track = np.repeat(np.arange(len(starts)), np.diff(starts, append=patches.shape[1]))
    unmoved = np.zeros((patches.shape[1], 2), np.float32)
    scores = []
    for pictures, usable_here in zip(patches, usable, strict=True):
        windows, contrast = _windows(pictures, unmoved, _LEVELS[0][0])
        weights = np.float32(usable_here & (contrast >= _MIN_CONTRAST))
        correlation, _ = _agreement(windows, weights, starts, track)
        scores.append(np.add.reduceat(correlation, starts))
    guess = np.int64(scores[1] > scores[0])[track]
    rows = np.arange(len(track))
    return (
        _align(patches[guess, rows], usable[guess, rows], starts, track, max_move),
        guess,
    )


def _align(
    patches: Patches, usable: Mask, starts: Index, track: Index, max_move: float
) -> Alignment:
    shifts = np.zeros((len(patches), 2), np.float32)
    weights = usable.astype(np.float32)
    for sigma, num_steps in _LEVELS:
        for _ in range(num_steps):
            windows, contrast = _windows(patches, shifts, sigma)
            weights *= contrast >= _MIN_CONTRAST
            correlation, _ = _agreement(windows, weights, starts, track)
            weights = (weights > 0) * np.clip(correlation, 0.01, 1) ** 2
            correlation, means = _agreement(windows, weights, starts, track)
            if sigma == _FINEST:
                noise = 2 * (1 - np.clip(correlation, 0, 1)) / _NUM_INDEPENDENT
                prior, pulled = noise / np.float32(_PRIOR_PX**2), shifts
            else:
                prior = np.full(len(shifts), _COARSE_PRIOR, np.float32)
                pulled = np.zeros_like(shifts)
            shifts += _steps(windows, means, track, prior, pulled)
            shifts = _limit(_centre(shifts, weights, starts, track), max_move)
            shifts[weights == 0] = 0
    windows, _ = _windows(patches, shifts, _FINEST)
    after, _ = _agreement(windows, weights, starts, track)
    windows, _ = _windows(patches, np.zeros_like(shifts), _FINEST)
    before, _ = _agreement(windows, weights, starts, track)
    after[np.linalg.norm(shifts, axis=1) > 0.99 * max_move] = -1
    return Alignment(
        shifts=shifts.astype(np.float64),
        before=before.astype(np.float64),
        after=after.astype(np.float64),
    )


def _centre(shifts: Float32, weights: Float32, starts: Index, track: Index) -> Float32:
    """Shifts whose weighted mean is 0: where a track lies as a whole is not seen."""
    total = np.add.reduceat(weights[:, None] * shifts, starts)
    total /= np.maximum(np.add.reduceat(weights, starts), 1e-6)[:, None]
    centred: Float32 = shifts - total[track]
    return centred


def _limit(steps: Float32, longest: float) -> Float32:
    length = np.linalg.norm(steps, axis=1, keepdims=True)
    limited: Float32 = steps * np.minimum(longest / np.maximum(length, 1e-6), 1)
    return limited.astype(np.float32)


_OFFSETS = np.arange(-_RADIUS, _RADIUS + 1, dtype=np.float32)
_TAPER = np.exp(-(_OFFSETS[:, None] ** 2 + _OFFSETS**2) / (2 * _TAPER_PX**2))
_ROOTS = np.sqrt(_TAPER / _TAPER.sum()).astype(np.float32)  # of weights of sum 1


def _windows(
    patches: Float32 | Patches, shifts: Float32, sigma: float
) -> tuple[Float32, Float32]:
    """Blurred, shifted, weighted windows of mean 0 and norm 1, and their contrast.

    Returns:
        [M, 15, 15], and the standard deviations [M] in grey levels.
    """
    side = patches.shape[1]
    pixels = np.arange(side, dtype=np.float32) - side // 2
    across, down = (
        _kernel(shifts[:, k, None] + _OFFSETS, pixels, sigma) for k in (0, 1)
    )
    windows = down @ patches.astype(np.float32) @ across.swapaxes(1, 2)
    windows -= np.einsum("ij,mij->m", _ROOTS**2, windows)[:, None, None]
    windows *= _ROOTS
    contrast = np.sqrt(np.einsum("mij,mij->m", windows, windows))
    windows /= np.maximum(contrast, 1e-6)[:, None, None]
    return windows, contrast


def _kernel(places: Float32, pixels: Float32, sigma: float) -> Float32:
    """Gaussian weights [M, 15, S] of a row of pixels around places [M, 15]."""
    kernel = np.exp(np.square((places[..., None] - pixels) / np.float32(sigma)) / -2)
    kernel /= kernel.sum(axis=2, keepdims=True)
    return np.asarray(kernel, np.float32)


def _agreement(
    windows: Float32, weights: Float32, starts: Index, track: Index
) -> tuple[Float32, Float32]:
    """Correlation [M] of each window with the mean of the others, and all means [T].

    -1 where there is no other, or the weight is 0. Means have norm 1.
    """
    weights = weights.astype(np.float32)
    totals = np.add.reduceat(weights[:, None, None] * windows, starts)
    squares = np.einsum("tij,tij->t", totals, totals)
    product = np.einsum("mij,mij->m", windows, totals[track])
    others = squares[track] - 2 * weights * product + weights**2
    alone = (others < 1e-6) | (weights == 0)
    others = np.sqrt(np.maximum(others, 1e-6))
    correlation = np.where(alone, np.float32(-1), (product - weights) / others)
    totals /= np.sqrt(np.maximum(squares, 1e-12))[:, None, None]
    return correlation, totals


def _steps(
    windows: Float32, means: Float32, track: Index, prior: Float32, pulled: Float32
) -> Float32:
    """Gauss-Newton steps [M, 2] that bring windows nearer to the means of tracks.

    `prior` [M] weighs the square of the shifts `pulled` [M, 2] against the difference.
    """
    pictures = means / _ROOTS
    slopes = np.stack([np.gradient(pictures, axis=k) * _ROOTS for k in (2, 1)], axis=1)
    # What a change of brightness or of contrast would explain as well is no motion.
    slopes -= np.einsum("tkij,ij->tk", slopes, _ROOTS)[..., None, None] * _ROOTS
    along = np.einsum("tkij,tij->tk", slopes, means)
    slopes -= along[..., None, None] * means[:, None]
    hessian = np.einsum("tkij,tlij->tkl", slopes, slopes)[track]
    hessian += (prior + np.float32(1e-6))[:, None, None] * np.eye(2, dtype=np.float32)
    right = np.einsum("mkij,mij->mk", slopes[track], windows) + prior[:, None] * pulled
    return _limit(-np.linalg.solve(hessian, right[..., None])[..., 0], _MAX_STEP_PX)
