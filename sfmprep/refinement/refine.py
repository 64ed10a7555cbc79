"""Sub-pixel refinement of keypoints along tracks, from the photographs alone.

All patches of a track are brought into one frame (see `patches`) and moved until they
agree (see `patch_alignment`). Keypoints move with their patches where that is safe.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import RefinementConfig
from sfmprep.executors.protocol import Shards
from sfmprep.geometry.normals import surface_shapes
from sfmprep.geometry.views import ModelArrays, Observations, Views
from sfmprep.progress import Progress, silent
from sfmprep.refinement.alignment import Alignment, limit_steps
from sfmprep.refinement.blocks import Aligner
from sfmprep.refinement.in_shards import ROWS, Blocks, align_in_shards
from sfmprep.refinement.patches import LoadedFrame
from sfmprep.types import Float64, Index, Mask

logger = logging.getLogger(__name__)

_MIN_CORRELATION = 0.75  # with the mean of the others; else a keypoint stays
_BLOCK_BYTES = 1 << 29  # of patches in memory at once


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
    shards: Shards | None = None,
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
        shards: Have it done elsewhere; see `align_in_shards`. None for this process.
        progress: Wraps the loop over photographs, or over blocks of tracks.

    Raises:
        ImageError: a photograph is gone since the scan.
        SfmprepError: see `align_in_shards`.
    """
    views, observations = arrays.views, arrays.observations
    frames = _frames(views, images, max_size)
    normals = surface_shapes(arrays).normals.astype(np.float64)
    found = Alignment(
        shifts=np.zeros((len(observations), 2)),
        before=np.full(len(observations), -1.0),
        after=np.full(len(observations), -1.0),
    )
    aligner = Aligner(
        views=views,
        frames=frames,
        images=images,
        max_move=config.max_move_px,
        max_size=max_size,
    )
    of_patch = 2 * (2 * aligner.radius + 1) ** 2
    size = max(_BLOCK_BYTES // of_patch, 1) if shards is None else ROWS
    rows = _rows_of_blocks(observations, frames, size)
    blocks = Blocks(arrays, normals, rows)
    for rows_here, aligned in (
        (
            (b.rows, aligner.align(b, num_workers=num_workers, progress=progress))
            for b in blocks
        )
        if shards is None
        else align_in_shards(
            *(aligner, blocks, shards), num_workers=num_workers, progress=progress
        )
    ):
        found.shifts[rows_here] = limit_steps(aligned.shifts, config.max_move_px)
        found.before[rows_here] = aligned.before
        found.after[rows_here] = aligned.after
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


def _rows_of_blocks(
    observations: Observations, frames: dict[int, LoadedFrame], size: int
) -> list[Index]:
    """Rows of whole tracks of two or more usable views, some `size` of them at once.

    Tracks that begin in the same view stay together, so that a block needs few images.
    """
    usable = np.isin(observations.view, list(frames))
    count = np.bincount(observations.point, usable, observations.num_points)
    usable &= count[observations.point] >= 2
    if not usable.any():
        return []
    first = np.minimum.reduceat(observations.view, observations.starts)
    order = np.argsort(first, kind="stable")
    block = np.empty(len(order), np.int64)
    block[order] = np.cumsum(count[order]) // size
    rows = np.flatnonzero(usable)
    rows = rows[np.argsort(block[observations.point[rows]], kind="stable")]
    ends = np.flatnonzero(np.diff(block[observations.point[rows]])) + 1
    return np.split(rows, ends)
