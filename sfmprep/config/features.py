"""Extractors."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sfmprep.config.base import MaxKeypoints, MaxSize, ModelConfig, Unit, WeightsFile


class SiftConfig(ModelConfig):
    """SIFT (Lowe, IJCV 2004) as COLMAP extracts it, with RootSIFT normalisation."""

    implementation = "sfmprep.models.extractors.sift:Sift"
    has_half = False
    type: Literal["sift"] = "sift"
    max_keypoints: PositiveInt = 8192
    """The most keypoints of one image; those at the largest scales are kept."""
    max_size: MaxSize = 3200


class AlikedConfig(ModelConfig):
    """ALIKED (Zhao et al., TIM 2023), BSD-3-Clause."""

    implementation = "sfmprep.models.extractors.aliked:Aliked"
    type: Literal["aliked"] = "aliked"
    model: Literal["aliked-t16", "aliked-n16", "aliked-n16rot", "aliked-n32"] = (
        "aliked-n16"
    )
    """n16rot was trained with rotations and is less exact; n32 has more samples."""
    max_keypoints: MaxKeypoints = 4096
    max_size: MaxSize = 1600
    min_score: Unit = 0.2
    """Keypoints with a lower score are dropped, in 0..1."""
    nms_radius: PositiveInt = 2
    """Radius of non-maximum suppression, network pixels."""
    weights: WeightsFile = None


class XFeatConfig(ModelConfig):
    """XFeat (Potje et al., CVPR 2024), Apache-2.0."""

    implementation = "sfmprep.models.extractors.xfeat:XFeat"
    type: Literal["xfeat"] = "xfeat"
    max_keypoints: MaxKeypoints = 4096
    max_size: MaxSize = 1600
    min_score: Unit = 0.05
    """Keypoints whose heat map value is lower are dropped, in 0..1."""
    weights: WeightsFile = None


class DiskConfig(ModelConfig):
    """DISK (Tyszkiewicz et al., NeurIPS 2020), Apache-2.0."""

    implementation = "sfmprep.models.extractors.disk:Disk"
    has_half = False
    type: Literal["disk"] = "disk"
    max_keypoints: MaxKeypoints = 4096
    max_size: MaxSize = 1600
    min_score: float = 0.0
    """Keypoints with a lower score (a logit) are dropped."""
    nms_radius: PositiveInt = 2
    """Radius of non-maximum suppression, network pixels."""
    weights: WeightsFile = None


class CompactConfig(ModelConfig):
    """The features of this project's own training, Apache-2.0, inside the package."""

    implementation = "sfmprep.models.extractors.compact:Compact"
    type: Literal["compact"] = "compact"
    max_keypoints: MaxKeypoints = 4096
    max_size: MaxSize = 1600
    min_score: Unit = 0.05
    """Keypoints with a lower score are dropped, in 0..1."""
    nms_radius: Annotated[int, Field(ge=2)] = 2
    """Radius of non-maximum suppression, network pixels."""
    weights: Path | None = None
    """A file to use in place of the packaged weights."""


class SuperPointConfig(ModelConfig):
    """SuperPoint (DeTone et al., CVPRW 2018), in one of two trainings.

    `superpoint-open` is MIT. `superpoint-v1` is Magic Leap's, for non-commercial
    research only: bring the file; `superpoint-lightglue` was trained with it.
    """

    implementation = "sfmprep.models.extractors.superpoint:SuperPoint"
    type: Literal["superpoint"] = "superpoint"
    model: Literal["superpoint-open", "superpoint-v1"] = "superpoint-open"
    """Which checkpoint."""
    max_keypoints: MaxKeypoints = 4096
    max_size: MaxSize = 1600
    min_score: Unit = 0.005
    """Smallest score of a keypoint, in 0..1."""
    nms_radius: PositiveInt = 4
    """Radius of non-maximum suppression, network pixels."""
    sampling: Literal["auto", "exact", "legacy"] = "auto"
    """Where descriptors are read.

    legacy: as v1's authors did, up to 3.5 pixels off at the right and lower edge; the
    matchers trained on v1 expect it. exact: at the keypoint. auto: legacy for v1.
    """
    weights: WeightsFile = None


class R2d2Config(ModelConfig):
    """R2D2 (Revaud et al., NeurIPS 2019), weights for non-commercial use only."""

    implementation = "sfmprep.models.extractors.r2d2:R2d2"
    has_half = False
    type: Literal["r2d2"] = "r2d2"
    model: Literal["r2d2-wasf-n16", "r2d2-waf-n16", "r2d2-wasf-n8-big"] = (
        "r2d2-wasf-n16"
    )
    """Which checkpoint."""
    max_keypoints: MaxKeypoints = 5000
    max_size: MaxSize = 1024
    min_size: PositiveInt = 256
    """Longer side in pixels of the smallest scale that is looked at."""
    min_repeatability: Unit = 0.7
    """Smallest repeatability of a keypoint, in 0..1."""
    min_reliability: Unit = 0.7
    """Smallest reliability of its descriptor, in 0..1."""
    weights: WeightsFile = None


class D2NetConfig(ModelConfig):
    """D2-Net (Dusmanu et al., CVPR 2019), Clear BSD: no patents are granted."""

    implementation = "sfmprep.models.extractors.d2net:D2Net"
    type: Literal["d2net"] = "d2net"
    max_keypoints: MaxKeypoints = 4096
    max_size: MaxSize = 1600
    is_multiscale: bool = False
    """Whether images of half and twice the size are looked at too."""
    weights: WeightsFile = None


FeaturesConfig = Annotated[
    SiftConfig
    | AlikedConfig
    | XFeatConfig
    | DiskConfig
    | SuperPointConfig
    | R2d2Config
    | D2NetConfig
    | CompactConfig,
    Field(discriminator="type"),
]
