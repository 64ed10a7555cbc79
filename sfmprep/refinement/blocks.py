"""Blocks of tracks, aligned with the photographs that they need, here or elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.geometry.views import Observations, Views
from sfmprep.progress import Progress, silent
from sfmprep.refinement.alignment import Alignment, align_tracks, patch_radius
from sfmprep.refinement.patches import (
    LoadedFrame,
    plane_warps,
    reference_rows,
    sample_patches,
)
from sfmprep.types import Float64, Index

_CHUNK_ROWS = 4096  # patches that are aligned at once


@dataclass(frozen=True, kw_only=True, eq=False)
class Block:
    """Whole tracks, with all that is known of them."""

    rows: Index  # [M] of all observations
    observations: Observations  # these
    xyz: Float64  # [N, 3] their points
    normals: Float64  # [N, 3] unit

    def __len__(self) -> int:
        return len(self.rows)

    @staticmethod
    def joined(blocks: Sequence[Block]) -> Block:
        """All of some blocks, at least one, as one."""
        some = [block.observations for block in blocks]
        starts = np.cumsum([0, *(len(block.xyz) for block in blocks)])[:-1]
        return Block(
            rows=np.concatenate([block.rows for block in blocks]),
            observations=Observations(
                point=np.concatenate([each.point for each in some])
                + np.repeat(starts, [len(each) for each in some]),
                view=np.concatenate([each.view for each in some]),
                keypoint=np.concatenate([each.keypoint for each in some]),
                xy=np.concatenate([each.xy for each in some]),
                ray=np.concatenate([each.ray for each in some]),
            ),
            xyz=np.concatenate([block.xyz for block in blocks]),
            normals=np.concatenate([block.normals for block in blocks]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Aligner:
    """What blocks are aligned with."""

    views: Views
    frames: dict[int, LoadedFrame]  # of the views whose photographs are at hand, by row
    images: ImageSet
    max_move: float
    max_size: int | None

    @property
    def radius(self) -> int:
        """That of the patches, in pixels."""
        return patch_radius(self.max_move)

    def align(
        self,
        block: Block,
        *,
        num_workers: int | None = None,
        progress: Progress = silent,
    ) -> Alignment:
        """Reads the photographs of a block and aligns its tracks.

        Args:
            block: All of its views have frames.
            num_workers: Threads that decode, or None for one a core, at most 8.
            progress: Wraps the loop over photographs.

        Returns:
            Shifts in pixels as loaded; each track by the guess that fits it better.

        Raises:
            ImageError: a photograph is gone since the scan.
        """
        views, observations = self.views, block.observations
        guesses = _surface_warps(
            *(views, self.frames, observations, block.xyz, block.normals)
        )
        side = 2 * self.radius + 1
        patches = np.zeros((2, len(observations), side, side), np.uint8)
        inside = np.zeros((2, len(observations)), bool)
        rows_of = {
            views.names[view]: (view, rows)
            for view, rows in enumerate(observations.by_view(len(views)))
            if len(rows)
        }
        loaded = load_batches(
            self.images,
            list(rows_of),
            max_size=self.max_size,
            num_workers=num_workers,
        )
        for (name,), batch in progress(loaded, desc="refine", total=len(rows_of)):
            view, rows = rows_of[name]
            xy = self.frames[view].loaded_xy(observations.xy[rows])
            for k, warps in enumerate(guesses):
                patches[k, rows], inside[k, rows] = sample_patches(
                    batch.pixels[0], xy, warps[rows], self.radius
                )
        found = [
            align_tracks(patches[:, rows], inside[:, rows], starts, self.max_move)
            for rows, starts in _chunks(observations)
        ]
        aligned, guess = zip(*found, strict=True)
        first = np.concatenate(guess)[:, None, None] == 0
        warps = np.where(first, guesses[0], guesses[1])
        shifts = np.concatenate([part.shifts for part in aligned])
        return Alignment(
            shifts=np.einsum("mij,mj->mi", np.nan_to_num(warps), shifts),
            before=np.concatenate([part.before for part in aligned]),
            after=np.concatenate([part.after for part in aligned]),
        )


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
