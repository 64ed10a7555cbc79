"""Sub-pixel refinement of keypoints along tracks, from the photographs alone.

All patches of a track are brought into one frame (see `patches`) and moved until they
agree (see `patch_alignment`). Keypoints move with their patches where that is safe.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import RefinementConfig
from sfmprep.geometry.normals import surface_shapes
from sfmprep.geometry.views import ModelArrays, Observations, Views
from sfmprep.progress import Progress, silent
from sfmprep.refinement.alignment import (
    Alignment,
    align_tracks,
    limit_steps,
    patch_radius,
)
from sfmprep.refinement.patches import (
    LoadedFrame,
    plane_warps,
    reference_rows,
    sample_patches,
)
from sfmprep.types import Float64, Index, Mask

logger = logging.getLogger(__name__)

_MIN_CORRELATION = 0.75  # with the mean of the others; else a keypoint stays
_BLOCK_BYTES = 1 << 29  # of patches in memory at once
_CHUNK_ROWS = 4096  # patches that are aligned at once


@dataclass(frozen=True, kw_only=True)
class RefinementStats:
    """What a refinement did; all zero for a model without points."""

    num_observations: int  # of all points
    num_compared: int  # those whose patch could be compared with others
    num_moved: int
    median_move_px: float  # of those that moved, pixels of the file
    correlation_before: float  # with the others of the track, mean of those that moved
    correlation_after: float


def refine_keypoints(
    model: pycolmap.Reconstruction,
    arrays: ModelArrays,
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

    Memory does not grow with the capture: above some 300,000 observations tracks are
    done in several rounds, each of which reads the photographs that it needs.

    Args:
        model: Poses and points, good to a few pixels; its keypoints are moved.
        arrays: Of this model.
        images: The capture.
        config: How far a keypoint may move.
        max_size: Longer side in pixels that images were reduced to for their features,
            and are reduced to here; None for full resolution.
        num_workers: Threads that decode photographs, or None for one a core, at most 8.
        progress: Wraps the loop over photographs.
    """
    views, observations = arrays.views, arrays.observations
    frames = _frames(views, images, max_size)
    normals = surface_shapes(arrays).normals.astype(np.float64)
    found = Alignment(
        shifts=np.zeros((len(observations), 2)),
        before=np.full(len(observations), -1.0),
        after=np.full(len(observations), -1.0),
    )
    radius = patch_radius(config.max_move_px)
    for rows in _blocks(observations, frames, radius):
        part = observations.select(rows)
        points = np.unique(observations.point[rows])
        surface = (arrays.xyz[points], normals[points])
        guesses = _surface_warps(views, frames, part, *surface)
        aligned = _align_block(
            *(views, frames, part, guesses, images),
            radius=radius,
            max_move=config.max_move_px,
            max_size=max_size,
            num_workers=num_workers,
            progress=progress,
        )
        found.shifts[rows] = limit_steps(aligned.shifts, config.max_move_px)
        found.before[rows] = aligned.before
        found.after[rows] = aligned.after
    moved = (found.after >= _MIN_CORRELATION) & (found.after >= found.before)
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
    views: Views, images: ImageSet, max_size: int | None
) -> dict[int, LoadedFrame]:
    """The frames of the views whose photographs are at hand, by row."""
    frames = {}
    for view, name in enumerate(views.names):
        info, camera = images.infos.get(name), views.cameras[view]
        if info is None:
            logger.warning(
                "%s is not among the images in %s that can be read, so its keypoints"
                " are not refined",
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
