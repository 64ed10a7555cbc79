"""Matchers of features."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from sfmprep.config.base import ModelConfig, Unit


class NearestConfig(ModelConfig):
    """Mutual nearest neighbours of the descriptors."""

    implementation = "sfmprep.models.matchers.nearest:Nearest"
    has_half = False
    type: Literal["nearest"] = "nearest"
    ratio: Unit | None = 0.8
    """Largest distance to the best over distance to the second best, or null."""
    min_similarity: Unit | None = None
    """Smallest cosine of the angle between two matched descriptors, or null."""


class LightGlueConfig(ModelConfig):
    """LightGlue (Lindenberger et al., ICCV 2023), Apache-2.0."""

    implementation = "sfmprep.models.matchers.lightglue:LightGlue"
    type: Literal["lightglue"] = "lightglue"
    model: Literal[
        "aliked-lightglue",
        "superpoint-lightglue",
        "disk-lightglue",
        "sift-lightglue",
        "lighterglue",
        "lighterglue-l3",
        "compact-lightglue",
    ]
    """Which checkpoint; it must fit the features."""
    min_score: Unit = 0.1
    """Matches with a lower score are dropped, in 0..1."""
    depth_confidence: Unit | None = 0.95
    """Share of confident keypoints at which a pair stops early, or null for never."""
    width_confidence: Unit | None = 0.99
    """Confidence at which unmatchable keypoints are dropped, or null for never."""
    weights: Path | None = None
    """A file to use in place of the named weights."""


MatcherConfig = Annotated[NearestConfig | LightGlueConfig, Field(discriminator="type")]
