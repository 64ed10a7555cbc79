"""The dataset that trainers open."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    NonNegativeInt,
    PositiveFloat,
    PositiveInt,
    model_validator,
)

from sfmprep.config.base import Config
from sfmprep.config.mapping import OutlierConfig
from sfmprep.config.semidense import MakesPointmapsConfig

Target = Literal[
    "nerfstudio",
    "gsplat",
    "3dgs",
    "brush",
    "lichtfeld",
    "postshot",
    "postshot-inverted",
    "3dgrut",
    "colmap",
    "nerfstudio-360",
]


class WorldConfig(Config):
    """The world frame of the dataset: z is up, the origin is the middle."""

    up: Literal["auto", "keep"] = "auto"
    """auto: z against gravity, as EXIF and XMP, else cameras and planes, tell it."""
    centre: bool = True
    """Whether the origin moves to the middle of what the cameras look at."""
    unit_scale: bool = False
    """Whether all cameras are scaled into a ball of radius 1."""
    georeference: bool | Literal["auto"] = "auto"
    """Whether GPS in the photographs gives metres, and x east, y north, z up.

    auto: where it tells the scale to 5 % and nothing else is asked of scale and up.
    """

    @property
    def has_own_frame(self) -> bool:
        """Whether scale or up is asked for that GPS would not give."""
        return self.unit_scale or self.up == "keep"

    @model_validator(mode="after")
    def _one_frame(self) -> Self:
        if self.georeference is True and self.has_own_frame:
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
    """Points whose mean reprojection error is larger are dropped.

    In pixels of what the features saw: of the file reduced to `features.max_size`. Of
    `semi` also the largest distance of a match from its epipolar line, and of a
    keypoint from its new point.
    """
    min_angle_deg: Annotated[float, Field(ge=0, lt=180)] = 1.0
    """Points whose rays meet at a smaller angle are dropped, degrees."""
    max_uncertainty: PositiveFloat | None = 0.05
    """Points whose standard deviation is a larger share of their distance, or null."""
    pointmaps: MakesPointmapsConfig | None = None
    """What adds points where no feature was, which a second view confirms; or null."""


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
    tracks: bool = False
    """Whether poses, tracks and their uncertainties are written to tracks.npz too."""
    models: tuple[NonNegativeInt, ...] | None = None
    """Numbers of the models that become datasets beside the largest, which is 0.

    null: all that are worth training on. None share a frame; that of the largest is in
    the output folder itself, the others are in `submodels`.
    """
    world: WorldConfig = WorldConfig()
    """Up, origin and scale."""
    seed: SeedConfig = SeedConfig()
    """The points that training starts from."""
    outliers: OutlierConfig = OutlierConfig()
    """Images whose pose is not supported."""
