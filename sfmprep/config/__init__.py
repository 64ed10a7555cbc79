"""Recipes: what a run does, as frozen records; `recipe_file.py` reads them.

A recipe names its features and its matcher, and, under `otherwise`, what to use
instead where the weights of the first choice can be had neither here nor from the
network. Unknown keys are refused. `Recipe.frontends` are the choices in order.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

Unit = Annotated[float, Field(ge=0, le=1)]
Target = Literal["nerfstudio", "gsplat", "3dgs", "brush", "colmap"]


class Config(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


# ------------------------------------------------------------------------- features
class SiftConfig(Config):
    """SIFT (Lowe, IJCV 2004) as COLMAP extracts it, with RootSIFT normalisation."""

    type: Literal["sift"] = "sift"
    max_keypoints: PositiveInt = 8192
    """The most keypoints of one image; those at the largest scales are kept."""
    max_size: PositiveInt = 3200
    """Longer side in pixels that larger images are reduced to."""


class AlikedConfig(Config):
    """ALIKED (Zhao et al., TIM 2023), BSD-3-Clause."""

    type: Literal["aliked"] = "aliked"
    model: Literal["aliked-t16", "aliked-n16", "aliked-n16rot", "aliked-n32"] = (
        "aliked-n16"
    )
    """n16rot was trained with rotations and is less exact; n32 has more samples."""
    max_keypoints: PositiveInt = 4096
    """The most keypoints of one image, best scores first."""
    max_size: PositiveInt = 1600
    """Longer side in pixels that larger images are reduced to."""
    min_score: Unit = 0.2
    """Keypoints with a lower score are dropped, in 0..1."""
    nms_radius: PositiveInt = 2
    """Radius of non-maximum suppression, network pixels."""
    weights: Path | None = None
    """A file to use in place of the named weights."""


class XFeatConfig(Config):
    """XFeat (Potje et al., CVPR 2024), Apache-2.0."""

    type: Literal["xfeat"] = "xfeat"
    max_keypoints: PositiveInt = 4096
    """The most keypoints of one image, best scores first."""
    max_size: PositiveInt = 1600
    """Longer side in pixels that larger images are reduced to."""
    min_score: Unit = 0.05
    """Keypoints whose heat map value is lower are dropped, in 0..1."""
    weights: Path | None = None
    """A file to use in place of the named weights."""


class DiskConfig(Config):
    """DISK (Tyszkiewicz et al., NeurIPS 2020), Apache-2.0."""

    type: Literal["disk"] = "disk"
    max_keypoints: PositiveInt = 4096
    """The most keypoints of one image, best scores first."""
    max_size: PositiveInt = 1600
    """Longer side in pixels that larger images are reduced to."""
    min_score: float = 0.0
    """Keypoints with a lower score (a logit) are dropped."""
    nms_radius: PositiveInt = 2
    """Radius of non-maximum suppression, network pixels."""
    weights: Path | None = None
    """A file to use in place of the named weights."""


class CompactConfig(Config):
    """The features of this project's own training, Apache-2.0, inside the package."""

    type: Literal["compact"] = "compact"
    max_keypoints: PositiveInt = 4096
    """The most keypoints of one image, best scores first."""
    max_size: PositiveInt = 1600
    """Longer side in pixels that larger images are reduced to."""
    min_score: Unit = 0.05
    """Keypoints with a lower score are dropped, in 0..1."""
    nms_radius: Annotated[int, Field(ge=2)] = 2
    """Radius of non-maximum suppression, network pixels."""
    weights: Path | None = None
    """A file to use in place of the packaged weights."""


FeaturesConfig = Annotated[
    SiftConfig | AlikedConfig | XFeatConfig | DiskConfig | CompactConfig,
    Field(discriminator="type"),
]


# -------------------------------------------------------------------------- matcher
class NearestConfig(Config):
    """Mutual nearest neighbours of the descriptors."""

    type: Literal["nearest"] = "nearest"
    ratio: Unit | None = 0.8
    """Largest distance to the best over distance to the second best, or null."""
    min_similarity: Unit | None = None
    """Smallest cosine of the angle between two matched descriptors, or null."""


class LightGlueConfig(Config):
    """LightGlue (Lindenberger et al., ICCV 2023), Apache-2.0."""

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


class Frontend(Config):
    """Features and the matcher that goes with them."""

    features: FeaturesConfig
    matcher: MatcherConfig

    def label(self) -> str:
        """A short name for messages, such as `xfeat + lighterglue`."""
        return " + ".join(
            getattr(part, "model", part.type) for part in (self.features, self.matcher)
        )


# ----------------------------------------------------------------------- semi-dense
class S2ldConfig(Config):
    """S2LD (Li, Zhao, Xia, TIP 2023): one keypoint a cell, located in the other image.

    Its official checkpoint has no stated licence: bring the file.
    """

    type: Literal["s2ld"] = "s2ld"
    max_size: Annotated[int, Field(ge=64, le=2048)] = 1024
    """Longer side in pixels that larger images are reduced to."""
    min_score: Annotated[float, Field(ge=0.01, le=1)] = 0.2
    """Matches with a lower confidence are dropped, 0.01..1."""
    weights: Path | None = None
    """A file to use in place of the named weights."""


class LoftrConfig(Config):
    """LoFTR (Sun et al., CVPR 2021), Apache-2.0."""

    type: Literal["loftr"] = "loftr"
    model: Literal["loftr-outdoor", "loftr-indoor"] = "loftr-outdoor"
    """Which checkpoint."""
    max_size: Annotated[int, Field(ge=64, le=2048)] = 1024
    """Longer side in pixels that larger images are reduced to."""
    min_score: Annotated[float, Field(ge=0.01, le=1)] = 0.2
    """Matches with a lower confidence are dropped, 0.01..1."""
    weights: Path | None = None
    """A file to use in place of the named weights."""


class XFeatStarConfig(Config):
    """XFeat's semi-dense mode (Potje et al., CVPR 2024), Apache-2.0."""

    type: Literal["xfeat-star"] = "xfeat-star"
    max_keypoints: PositiveInt = 8192
    """The most cells of one image that are matched, most reliable first."""
    max_size: PositiveInt = 1600
    """Longer side in pixels that larger images are reduced to."""
    min_similarity: Unit = 0.82
    """Smallest cosine of the angle between two matched descriptors."""
    min_score: Unit = 0.25
    """Smallest confidence of the place inside the cell, in 0..1."""
    weights: Path | None = None
    """A file to use in place of the named weights."""


DenseMatcherConfig = Annotated[
    S2ldConfig | LoftrConfig | XFeatStarConfig, Field(discriminator="type")
]


class DenseConfig(Config):
    """Matching without a detector, and how its points become tracks."""

    matcher: DenseMatcherConfig
    """What finds the points."""
    pairs: Literal["weak", "all"] = "weak"
    """weak: those that `dense.weak_pairs` chooses where features found few; or all."""
    min_num_inliers: PositiveInt = 60
    """A pair with fewer verified matches is weak."""
    radius: PositiveFloat = 1.0
    """Points so near to a keypoint become it, pixels of the matcher's input."""
    max_keypoints: PositiveInt = 8192
    """The most keypoints that are added to one image, most confident first."""


# ---------------------------------------------------------------------------- pairs
class ExhaustiveConfig(Config):
    """Every image with every other."""

    type: Literal["exhaustive"] = "exhaustive"


class SequentialConfig(Config):
    """Neighbours in the order of the names: frames of a film."""

    type: Literal["sequential"] = "sequential"
    window: PositiveInt = 10
    """Each image is paired with so many that follow it."""
    quadratic: bool = True
    """Also with those 2, 4, 8, ... images later, up to 2 to the power of `window`."""


class RetrievalConfig(Config):
    """The most similar images, by a VLAD of the local descriptors; needs no weights."""

    type: Literal["retrieval"] = "retrieval"
    num_neighbours: PositiveInt = 20
    """Each image is paired with so many of the most similar ones."""
    num_clusters: PositiveInt = 256
    """Words of the vocabulary that is learned from the capture itself."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Pairs with a lower cosine are left out; neighbours often have one below 0."""


class PairsFileConfig(Config):
    """Pairs named by the user."""

    type: Literal["file"] = "file"
    path: Path
    """Text file, one pair of names a line, separated by a tab or a space."""


class AutoPairsConfig(Config):
    """Exhaustive for small captures, retrieval for the others."""

    type: Literal["auto"] = "auto"
    exhaustive_up_to: NonNegativeInt = 60
    """With so many images or fewer, every image is paired with every other."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """How pairs are found above that."""


PairsConfig = Annotated[
    AutoPairsConfig
    | ExhaustiveConfig
    | SequentialConfig
    | RetrievalConfig
    | PairsFileConfig,
    Field(discriminator="type"),
]


# --------------------------------------------------------------------------- COLMAP
class DatabaseConfig(Config):
    """Cameras and geometric verification."""

    camera_model: Literal[
        "SIMPLE_PINHOLE",
        "PINHOLE",
        "SIMPLE_RADIAL",
        "RADIAL",
        "OPENCV",
        "FULL_OPENCV",
        "SIMPLE_RADIAL_FISHEYE",
        "RADIAL_FISHEYE",
        "OPENCV_FISHEYE",
    ] = "SIMPLE_RADIAL"
    """COLMAP's camera model for new cameras."""
    cameras: Literal["auto", "single", "per-folder", "per-image"] = "auto"
    """Which images share a camera; auto: same make, model, lens, size and folder."""
    focal_length: PositiveFloat | None = None
    """Focal length in pixels of every image where it is known; null: EXIF or guess."""
    max_error_px: PositiveFloat = 4.0
    """Largest distance of an inlier from its epipolar line, pixels."""
    min_num_inliers: PositiveInt = 15
    """A pair with fewer inliers is dropped."""


class MappingConfig(Config):
    """From verified pairs to poses."""

    type: Literal["incremental", "global", "none"] = "incremental"
    """COLMAP's incremental mapper, its global one, or no mapping at all."""
    min_num_matches: PositiveInt = 15
    """Pairs with fewer verified matches are ignored."""
    min_model_size: PositiveInt = 3
    """Models with fewer images are dropped."""
    refine_principal_point: Literal["auto", "always", "never"] = "auto"
    """Whether the last bundle adjustment moves principal points."""


class RefinementConfig(Config):
    """Sub-pixel refinement of keypoints along tracks, before the last adjustment."""

    max_move_px: PositiveFloat = 3.0
    """No keypoint moves further, pixels of the image that its features saw."""


class WorldConfig(Config):
    """The world frame of the dataset: z is up, the origin is the middle."""

    up: Literal["auto", "keep"] = "auto"
    """auto: z against gravity, as EXIF and XMP, else cameras and planes, tell it."""
    centre: bool = True
    """Whether the origin moves to the middle of what the cameras look at."""
    unit_scale: bool = False
    """Whether all cameras are scaled into a ball of radius 1."""
    georeference: bool = False
    """Whether GPS in the photographs gives metres, and x east, y north, z up."""

    @model_validator(mode="after")
    def _one_frame(self) -> Self:
        if self.georeference and (self.unit_scale or self.up == "keep"):
            raise ValueError("georeference gives scale and up; drop unit_scale and up")
        return self


class SeedConfig(Config):
    """The cloud of points that a trainer starts from; poses never change with it."""

    level: Literal["sparse", "semi"] = "sparse"
    """sparse: the mapper's points; semi: also every match that fits the poses."""
    max_points: PositiveInt = 500_000
    """The most points; above that they are thinned evenly over the surface."""
    min_track_length: Annotated[int, Field(ge=2)] = 2
    """Points seen in fewer images are dropped."""
    max_error_px: PositiveFloat = 2.0
    """Points whose mean reprojection error is larger are dropped, pixels.

    Of `semi` also the largest distance of a match from its epipolar line, and of a
    keypoint from its new point.
    """
    min_angle_deg: Annotated[float, Field(ge=0, lt=180)] = 1.0
    """Points whose rays meet at a smaller angle are dropped, degrees."""
    max_uncertainty: PositiveFloat | None = 0.05
    """Points whose standard deviation is a larger share of their distance, or null."""


class OutlierConfig(Config):
    """Which registered images are left out of the dataset, with the reason."""

    min_num_points: NonNegativeInt = 20
    """Images that see fewer points are left out."""
    max_rotation_stddev_deg: PositiveFloat | None = 1.0
    """Images whose rotation is less certain are left out, degrees, or null."""
    max_distance_ratio: PositiveFloat | None = 10.0
    """Images that no chain of cameras joins to most others, null for any distance.

    The longest step of a chain, in units of the median distance of cameras from their
    middle, or from their points where that is larger.
    """


class ExportConfig(Config):
    """The dataset that trainers open."""

    targets: Annotated[tuple[Target, ...], Field(min_length=1)] = (
        *("nerfstudio", "gsplat", "3dgs", "brush"),
    )
    """What will read the dataset; those that agree share a folder."""
    camera: Literal["pinhole", "original"] = "pinhole"
    """original: keep lens distortion, for the targets that can read it."""
    downscales: tuple[Literal[2, 4, 8], ...] = (2, 4, 8)
    """Factors of the reduced copies `images_2`, `images_4`, ..."""
    max_size: PositiveInt | None = None
    """Longer side in pixels of the exported images, or null for full resolution."""
    jpeg_quality: Annotated[int, Field(ge=1, le=100)] = 95
    """Quality of images that had to be written anew."""
    world: WorldConfig = WorldConfig()
    """Up, origin and scale."""
    seed: SeedConfig = SeedConfig()
    """The points that training starts from."""
    outliers: OutlierConfig = OutlierConfig()
    """Images whose pose is not supported."""


class EngineConfig(Config):
    """How networks are run; nothing here changes what a run finds, up to rounding."""

    precision: Literal["auto", "float32", "half"] = "auto"
    """auto: half where the network allows it and the device is faster with it."""
    cache_gb: PositiveFloat = 2.0
    """Features that are kept ready for matching, on the device, 1e9 bytes."""
    num_workers: PositiveInt | None = None
    """Threads that decode photographs; null: one a core, at most 8."""


class Recipe(Config):
    """Everything a run does."""

    name: str
    description: str = ""
    features: FeaturesConfig
    matcher: MatcherConfig
    otherwise: tuple[Frontend, ...] = ()
    """What to use where the weights of the choice before cannot be had."""
    masks: Path | None = None
    """Folder of masks, a.jpg.png or a.png for a.jpg; black is ignored everywhere."""
    pairs: PairsConfig = AutoPairsConfig()
    dense: DenseConfig | None = None
    """Semi-dense matching beside the features, or null."""
    database: DatabaseConfig = DatabaseConfig()
    mapping: MappingConfig = MappingConfig()
    refinement: RefinementConfig | None = None
    """Sub-pixel refinement of the keypoints, or null."""
    export: ExportConfig = ExportConfig()
    engine: EngineConfig = EngineConfig()
    seed: NonNegativeInt = 0
    """Seed of everything random: RANSAC, the retrieval vocabulary, the mapper."""

    @property
    def frontends(self) -> tuple[Frontend, ...]:
        """The choices of features and matcher, best first."""
        return (
            Frontend(features=self.features, matcher=self.matcher),
            *self.otherwise,
        )

    def with_frontend(self, frontend: Frontend) -> Recipe:
        """This recipe with one choice made."""
        return self.model_copy(
            update={
                "features": frontend.features,
                "matcher": frontend.matcher,
                "otherwise": (),
            }
        )

    def to_yaml(self) -> str:
        """This recipe as text that `load_recipe` reads back."""
        return yaml.safe_dump(
            self.model_dump(mode="json"), sort_keys=False, allow_unicode=True
        )
