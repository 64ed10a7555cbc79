"""From matches to poses."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from sfmprep.config.base import Config
from sfmprep.config.semidense import MakesPointmapsConfig, PointmapConfig


class DatabaseConfig(Config):
    """Cameras and geometric verification."""

    camera_model: Literal[
        "auto",
        "SIMPLE_PINHOLE",
        "PINHOLE",
        "SIMPLE_RADIAL",
        "RADIAL",
        "OPENCV",
        "FULL_OPENCV",
        "SIMPLE_RADIAL_FISHEYE",
        "RADIAL_FISHEYE",
        "OPENCV_FISHEYE",
    ] = "auto"
    """COLMAP's camera model for new cameras.

    auto: SIMPLE_RADIAL, of lenses that EXIF calls a fisheye SIMPLE_RADIAL_FISHEYE, and
    after mapping RADIAL, OPENCV, RADIAL_FISHEYE or OPENCV_FISHEYE for cameras of which
    tracks that were left out of an adjustment fit clearly better with it.
    """
    cameras: Literal["auto", "single", "per-folder", "per-image"] = "auto"
    """Which images share a camera; auto: same make, model, lens, size and folder."""
    focal_length: PositiveFloat | None = None
    """Focal length in pixels of every image where it is known; null: EXIF or guess."""
    camera_params: list[float] | dict[str, list[float]] | None = None
    """Numbers of `camera_model` where they are known, as COLMAP orders them; by folder.

    With auto, of SIMPLE_RADIAL.

    Pixels of the files. `{left: [...], right: [...]}` is for images in folders `left`
    and `right`; `.` is for all that are in none of those named. A folder counts for
    those inside it.
    """
    refine: Literal["none", "focal", "all"] = "all"
    """What of cameras bundle adjustment changes: nothing, focal lengths, or all."""
    max_error_px: PositiveFloat = 4.0
    """Largest distance of an inlier from its epipolar line.

    In pixels of what the features saw: of the file reduced to `features.max_size`.
    """
    min_num_inliers: PositiveInt = 15
    """A pair with fewer inliers is dropped."""


class MappingConfig(Config):
    """From verified pairs to poses."""

    type: Literal["incremental", "global", "none"] = "incremental"
    """COLMAP's incremental mapper, its global one, or no mapping at all."""
    part_size: Annotated[int, Field(ge=10)] | None = 500
    """Captures of more than twice as many images are mapped in overlapping parts.

    About so many images are in each part; a process maps one, and so many processes run
    as there are cores. incremental only; null: never.
    """
    min_num_matches: PositiveInt = 15
    """Pairs with fewer verified matches are ignored."""
    min_model_size: PositiveInt = 3
    """Models with fewer images are dropped."""
    refine_principal_point: Literal["auto", "always", "never"] = "auto"
    """Whether the last bundle adjustment moves principal points; auto: as far as the
    photographs tell them, and neither those of cameras of one or two photographs nor
    those that are known: in `database.camera_params`, or given with poses and off the
    middle."""


class KnownPosesConfig(Config):
    """Poses that are known, however roughly, in place of a mapper's search for them."""

    path: Path
    """A COLMAP model, a transforms.json, a table name,x,y,z,qw,qx,qy,qz (.csv), a
    trajectory of TUM, or an export of Polycam, Record3D, Metashape, RealityCapture."""
    axes: Literal["auto", "opencv", "opengl"] = "auto"
    """Of the cameras: y down and z forward, or y up and z back.

    auto: as the format has them; of table and trajectory as the photographs tell.
    """
    direction: Literal["auto", "cam_from_world", "world_from_cam"] = "auto"
    """What a rotation and a vector of table or trajectory do; auto: as for axes."""
    time_offset: float | None = None
    """Seconds added to the times of images, for a trajectory; null: it is found."""
    num_neighbours: PositiveInt = 12
    """With `pairs: auto`, each view is paired with so many of those near by, within
    `pairs.per_image`."""


class ForeseeConfig(Config):
    """Pointmaps of images without a pose with some that have one.

    They foresee a pose and a focal length, good to some degrees, and so where in the
    image the points of the model should be.
    """

    network: MakesPointmapsConfig = PointmapConfig()
    """What makes the pointmaps."""
    per_image: Annotated[int, Field(ge=2)] = 4
    """With how many others each image is looked at; two must agree."""


class SecondRoundConfig(Config):
    """What is matched once there are models, and mapping goes on with it.

    Views that should see the same and were never matched, and images without a pose
    against the views that may see what they see; these by the stronger matcher too.
    """

    per_image: PositiveInt = 10
    """The most pairs that one image asks for."""
    max_pairs: PositiveInt = 10_000
    """The most pairs altogether, those of images without a pose first."""
    foresee: ForeseeConfig | None = None
    """Looking for images without a pose where pointmaps say, or null."""


class RefinementConfig(Config):
    """Sub-pixel refinement of keypoints along tracks, before the last adjustment."""

    max_move_px: PositiveFloat = 3.0
    """No keypoint moves further, pixels of the image that its features saw."""
    most_images: PositiveInt | None = None
    """Captures of more images are left as they are, or null for none."""

    def is_for(self, num_images: int) -> bool:
        """Whether a capture of so many images is refined."""
        return self.most_images is None or num_images <= self.most_images


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
