"""Matching without a detector."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt

from sfmprep.config.base import (
    MaxSize,
    ModelConfig,
    RungConfig,
    Unit,
    WeightsFile,
)


class S2ldConfig(ModelConfig):
    """S2LD (Li, Zhao, Xia, TIP 2023): one keypoint a cell, located in the other image.

    Its official checkpoint has no stated licence: bring the file.
    """

    implementation = "sfmprep.models.semidense.s2ld:S2ld"
    version = 2
    type: Literal["s2ld"] = "s2ld"
    max_size: Annotated[int, Field(ge=64, le=2048)] = 1024
    """Longer side in pixels that larger images are reduced to."""
    min_score: Annotated[float, Field(ge=0.01, le=1)] = 0.2
    """Matches with a lower confidence are dropped, 0.01..1."""
    weights: WeightsFile = None


class LoftrConfig(ModelConfig):
    """LoFTR (Sun et al., CVPR 2021), Apache-2.0."""

    implementation = "sfmprep.models.semidense.loftr:Loftr"
    type: Literal["loftr"] = "loftr"
    model: Literal["loftr-outdoor", "loftr-indoor"] = "loftr-outdoor"
    """Which checkpoint."""
    max_size: Annotated[int, Field(ge=64, le=2048)] = 1024
    """Longer side in pixels that larger images are reduced to."""
    min_score: Annotated[float, Field(ge=0.01, le=1)] = 0.2
    """Matches with a lower confidence are dropped, 0.01..1."""
    weights: WeightsFile = None


class XFeatStarConfig(ModelConfig):
    """XFeat's semi-dense mode (Potje et al., CVPR 2024), Apache-2.0."""

    implementation = "sfmprep.models.semidense.xfeat_star:XFeatStar"
    type: Literal["xfeat-star"] = "xfeat-star"
    max_keypoints: PositiveInt = 8192
    """The most cells of one image that are matched, most reliable first."""
    max_size: MaxSize = 1600
    min_similarity: Unit = 0.82
    """Smallest cosine of the angle between two matched descriptors."""
    min_score: Unit = 0.25
    """Smallest confidence of the place inside the cell, in 0..1."""
    weights: WeightsFile = None

    @property
    def weights_name(self) -> str:
        """Those of XFeat, whose file has its fine matcher too."""
        return "xfeat"


class PointmapConfig(ModelConfig):
    """DUSt3R (CVPR 2024) or MASt3R (ECCV 2024): pairs as points in space.

    Their checkpoints are CC BY-NC-SA 4.0, for non-commercial use only: bring the file.
    """

    implementation = "sfmprep.models.semidense.pointmaps:Pointmaps"
    type: Literal["pointmap"] = "pointmap"
    model: Literal["mast3r", "dust3r-dpt", "dust3r-linear"] = "mast3r"
    """Which checkpoint, of those that were trained at 512 pixels."""
    max_size: Annotated[int, Field(ge=64, le=512)] = 512
    """Longer side in pixels that larger images are reduced to."""
    stride: Annotated[int, Field(ge=2, le=64)] = 8
    """Pixels from one start of a match to the next, each way."""
    tolerance: PositiveFloat = 5.0
    """A match is kept if its way back ends nearer to its start, in pixels."""
    min_score: Unit = 0.5
    """Matches with a lower confidence are dropped, in 0..1."""
    weights: WeightsFile = None


class DepthAnythingConfig(ModelConfig):
    """Depth Anything 3 (Lin et al., 2025), Apache-2.0: depths and cameras of a pair.

    It has no matches: it foresees poses, and gives initial points.
    """

    implementation = "sfmprep.models.semidense.depth_anything:DepthAnything"
    type: Literal["depth-anything"] = "depth-anything"
    model: Literal["da3-small", "da3-base"] = "da3-base"
    """Which checkpoint."""
    max_size: Annotated[int, Field(ge=56, le=504)] = 504
    """Longer side in pixels that larger images are reduced to."""
    stride: Annotated[int, Field(ge=2, le=64)] = 8
    """Pixels from one initial point to the next, each way."""
    weights: WeightsFile = None


MakesPointmapsConfig = Annotated[
    PointmapConfig | DepthAnythingConfig, Field(discriminator="type")
]

DenseMatcherConfig = Annotated[
    S2ldConfig | LoftrConfig | XFeatStarConfig | PointmapConfig,
    Field(discriminator="type"),
]


class DenseConfig(RungConfig):
    """Matching without a detector, and how its points become tracks.

    A run is refused where no choice has its weights.
    """

    matcher: DenseMatcherConfig
    """What finds the points."""
    otherwise: tuple[DenseMatcherConfig, ...] = ()
    """What to use where the weights of the choice before cannot be had."""
    pairs: Literal["weak", "all"] = "weak"
    """weak: those where features found little and that matter; or all."""
    min_num_inliers: PositiveInt = 60
    """A pair with fewer verified matches is weak."""
    per_image: PositiveInt = 20
    """The most weak pairs that one image that is badly held asks for."""
    radius: PositiveFloat = 1.0
    """Points so near to a keypoint become it, pixels of the matcher's input."""
    max_keypoints: PositiveInt = 8192
    """The most keypoints that are added to one image, most confident first."""
