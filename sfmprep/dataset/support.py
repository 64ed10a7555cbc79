"""Points with their observations, and how well these support them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sfmprep.config import SeedConfig
from sfmprep.geometry.triangulate import (
    largest_angles_deg,
    relative_stddev,
    reprojection_errors,
)
from sfmprep.geometry.views import Observations, Views
from sfmprep.types import Float64, Mask


@dataclass(frozen=True, kw_only=True, eq=False)
class Points:
    """Points, their observations, and how good they are."""

    xyz: Float64  # [N, 3]
    observations: Observations
    errors: Float64  # [N] mean reprojection error, pixels of what the features saw

    def __len__(self) -> int:
        return len(self.xyz)

    def select(self, kept: Mask) -> Points:
        """Some of them."""
        return Points(
            xyz=self.xyz[kept],
            observations=self.observations.select(kept[self.observations.point]),
            errors=self.errors[kept],
        )


def measured(
    views: Views, scales: Float64, observations: Observations, xyz: Float64
) -> Points:
    """Points with their mean reprojection errors.

    `scales` [V] are the pixels of a view's file for one of what its features saw.
    """
    errors = scaled_errors(views, scales, observations, xyz)
    means = np.empty(0)
    if len(errors):
        means = np.add.reduceat(errors, observations.starts) / observations.counts()
    return Points(xyz=xyz, observations=observations, errors=means)


def scaled_errors(
    views: Views, scales: Float64, observations: Observations, xyz: Float64
) -> Float64:
    """Reprojection errors [M] in pixels of what the features saw, see `measured`."""
    errors = reprojection_errors(views, observations, xyz)
    scaled: Float64 = errors / scales[observations.view]
    return scaled


def refused_by(
    views: Views, points: Points, noise: float, config: SeedConfig
) -> dict[str, Mask]:
    """Which points every threshold takes, by its name."""
    observations, xyz = points.observations, points.xyz
    angles = largest_angles_deg(views, observations, xyz)
    refused = {
        "min_track_length": observations.counts() < config.min_track_length,
        "max_error_px": ~(points.errors <= config.max_error_px),
        "min_angle_deg": angles < config.min_angle_deg,
    }
    if config.max_uncertainty is not None:
        stddev = relative_stddev(views, observations, xyz, noise)
        refused["max_uncertainty"] = ~(stddev <= config.max_uncertainty)
    return refused


def nothing() -> Points:
    """No points."""
    number, row = np.empty(0, np.int64), np.empty((0, 3))
    return Points(
        xyz=row,
        errors=np.empty(0),
        observations=Observations(
            point=number, view=number, keypoint=number, xy=row[:, :2], ray=row
        ),
    )


def concatenated(blocks: list[Points]) -> Points:
    """All points of one or more blocks."""
    shifts = np.cumsum([0, *(len(block) for block in blocks)])
    parts = [block.observations for block in blocks]
    return Points(
        xyz=np.concatenate([block.xyz for block in blocks]),
        errors=np.concatenate([block.errors for block in blocks]),
        observations=Observations(
            point=np.concatenate(
                [p.point + shift for p, shift in zip(parts, shifts, strict=False)]
            ),
            view=np.concatenate([p.view for p in parts]),
            keypoint=np.concatenate([p.keypoint for p in parts]),
            xy=np.concatenate([p.xy for p in parts]),
            ray=np.concatenate([p.ray for p in parts]),
        ),
    )
