"""Matchers of features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sfmprep.config.base import ModelConfig, RungConfig, Unit, WeightsFile


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
    version = 2
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
    max_keypoints: PositiveInt | None = None
    """The most keypoints of an image that take part, best first; null for all."""
    min_score: Unit = 0.1
    """Matches with a lower score are dropped, in 0..1."""
    depth_confidence: Unit | None = 0.95
    """Share of confident keypoints at which a pair stops early, or null for never."""
    width_confidence: Unit | None = 0.99
    """Confidence at which unmatchable keypoints are dropped, or null for never."""
    weights: WeightsFile = None


class SuperGlueConfig(ModelConfig):
    """SuperGlue (Sarlin et al., CVPR 2020), weights for non-commercial research only.

    It was trained with `superpoint-v1`.
    """

    implementation = "sfmprep.models.matchers.superglue:SuperGlue"
    has_half = False
    type: Literal["superglue"] = "superglue"
    model: Literal["superglue-outdoor", "superglue-indoor"] = "superglue-outdoor"
    """Which checkpoint."""
    min_score: Unit = 0.2
    """Matches with a lower score are dropped, in 0..1."""
    num_iterations: PositiveInt = 20
    """Of the transport: more are slower and a little more decided."""
    weights: WeightsFile = None


MatcherConfig = Annotated[
    NearestConfig | LightGlueConfig | SuperGlueConfig, Field(discriminator="type")
]


class StrongerConfig(RungConfig):
    """A dearer matcher of the same features, for pairs that stay weak and matter.

    The rung is left out where no choice has its weights.
    """

    matcher: MatcherConfig
    """What tries them."""
    otherwise: tuple[MatcherConfig, ...] = ()
    """What to use where the weights of the choice before cannot be had."""
    min_num_inliers: PositiveInt = 30
    """A pair with fewer verified matches is weak."""
    per_image: PositiveInt = 10
    """The most weak pairs that one image that is badly held asks for."""
