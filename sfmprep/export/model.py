"""The COLMAP models of the exported images, all in the world frame of the source.

Upright images are numbered in the order of their names, because some loaders sort by
id and others by name. Each has a frame and every camera a rig of its own: turning
images upright one by one would break rigs apart, and no trainer reads them. The model
of the photographs as stored keeps its numbers, rigs and frames.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfmprep import coords
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import ExportConfig
from sfmprep.errors import ConfigError, ImageError, ReconstructionError
from sfmprep.geometry.undistort import Undistortion, undistortion
from sfmprep.geometry.views import keypoints_ids, keypoints_xy
from sfmprep.types import Float64, Ids

_MIN_TRACK = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedModel:
    """A model and where its pixels come from."""

    model: pycolmap.Reconstruction  # images have their original names
    undistortions: Mapping[str, Undistortion]  # by original name, in exported order


def export_model(
    reconstruction: pycolmap.Reconstruction,
    images: ImageSet,
    names: Sequence[str],
    config: ExportConfig,
) -> ExportedModel:
    """Maps cameras, poses and observations to the exported, upright images.

    Observations outside the exported image are dropped, and with them points that
    fewer than two remain of. Points keep their ids, positions and colours; their
    errors are computed anew.

    Args:
        reconstruction: All of `names` are registered in it.
        images: The files on disk.
        names: Original names, in exported order.
        config: Sizes, and whether lenses are kept.

    Raises:
        ConfigError: Lenses are to be kept that no trainer reads, or of two kinds.
        ImageError: A registered image is not among `images`.
        ReconstructionError: A camera has not the size of its files, cannot be
            undistorted, or no point is left.
    """
    by_name = {image.name: image for image in reconstruction.images.values()}
    undistortions = _undistortions(reconstruction, images, names, config)
    observed = [
        _observations(by_name[name], view) for name, view in undistortions.items()
    ]
    ids, counts = np.unique(
        np.concatenate([ids for _, ids in observed]), return_counts=True
    )
    kept = ids[(counts >= _MIN_TRACK) & (ids != pycolmap.INVALID_POINT3D_ID)]
    # those that never were seen twice are points of depths
    points = reconstruction.points3D.items()
    single = [key for key, point in points if point.track.length() < _MIN_TRACK]
    kept = np.union1d(kept, np.intersect1d(np.array(single, np.uint64), ids))
    _expect_points(len(kept))
    model = pycolmap.Reconstruction()
    # The numbers of the cameras are in the order of their first images.
    for view in dict.fromkeys(undistortions.values()):
        model.add_camera_with_trivial_rig(view.target)
    for image_id, (name, (xy, _)) in enumerate(zip(names, observed, strict=True), 1):
        view = undistortions[name]
        image = pycolmap.Image(
            name=name,
            keypoints=xy,
            camera_id=view.target.camera_id,
            image_id=image_id,
        )
        pose = coords.upright_pose(
            by_name[name].cam_from_world().matrix(), view.orientation
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
    _add_points(model, reconstruction, kept, [ids for _, ids in observed])
    model.update_point_3d_errors()
    return ExportedModel(model=model, undistortions=undistortions)


def stored_model(
    reconstruction: pycolmap.Reconstruction, images: ImageSet, names: Sequence[str]
) -> pycolmap.Reconstruction:
    """The model of the photographs as stored, which is `reconstruction` itself.

    Args:
        reconstruction: All of `names` are registered in it.
        images: The files on disk.
        names: Original names.

    Raises:
        ImageError: A registered image is not among `images`.
        ReconstructionError: A camera has not the size of its files, or no point is
            there.
    """
    by_name = {image.name: image for image in reconstruction.images.values()}
    for name in names:
        _checked_orientation(reconstruction, by_name[name], images)
    _expect_points(reconstruction.num_points3D())
    return reconstruction


def renamed(
    model: pycolmap.Reconstruction, names: Mapping[str, str]
) -> pycolmap.Reconstruction:
    """A copy whose images have the names that `names` gives them.

    Args:
        model: Images that are not registered keep their names.
        names: Old to new name, of all registered images.
    """
    copy = pycolmap.Reconstruction(model)
    for image_id in copy.reg_image_ids():
        image = copy.images[image_id]
        image.name = names[image.name]
    return copy


def _expect_points(num_points: int) -> None:
    """Raises ReconstructionError where there is no point to start from."""
    if not num_points:
        raise ReconstructionError(
            "no 3D point is seen in two exported images; trainers start from the "
            "points, so triangulate them before the export"
        )


def _undistortions(
    reconstruction: pycolmap.Reconstruction,
    images: ImageSet,
    names: Sequence[str],
    config: ExportConfig,
) -> dict[str, Undistortion]:
    """The view of each image, by original name; one for each camera and turn."""
    by_name = {image.name: image for image in reconstruction.images.values()}
    views: dict[tuple[int, int], Undistortion] = {}
    found = {}
    for name in names:
        source = by_name[name]
        orientation = _checked_orientation(reconstruction, source, images)
        key = (source.camera_id, orientation)
        if key not in views:
            views[key] = undistortion(
                reconstruction.cameras[source.camera_id],
                orientation,
                camera_id=len(views) + 1,
                multiple=max(config.downscales, default=1),
                max_size=config.max_size,
                keep_lens=config.camera == "original",
            )
        found[name] = views[key]
    kinds = {view.target.model_name: view.source.camera_id for view in views.values()}
    if len(kinds) > 1:
        described = " and ".join(f"camera {i} as {kind}" for kind, i in kinds.items())
        raise ConfigError(
            f"export.camera=original: trainers read one camera model for all images, "
            f"but {described} would be needed. Leave out export.camera=original"
        )
    return found


def _checked_orientation(
    reconstruction: pycolmap.Reconstruction, image: pycolmap.Image, images: ImageSet
) -> int:
    """The turn (EXIF 1, 3, 6 or 8) of the file, which must fit its camera."""
    info = images.infos.get(image.name)
    if info is None:
        raise ImageError(
            f"{images.root}: the model's image {image.name!r} is not there; pass the "
            "folder of images that the model was made from"
        )
    camera = reconstruction.cameras[image.camera_id]
    if info.size != (camera.width, camera.height):
        raise ReconstructionError(
            f"{images.path(image.name)} is {info.size[0]} x {info.size[1]} pixels but "
            f"camera {camera.camera_id} of the model is {camera.width} x "
            f"{camera.height}; pass the images that the model was made from"
        )
    return coords.rotation_part(info.orientation)


def _observations(image: pycolmap.Image, view: Undistortion) -> tuple[Float64, Ids]:
    """Keypoints inside the exported image: xy [N, 2] there, and [N] point ids."""
    ids = keypoints_ids(image.points2D)
    xy = view.target_xy(keypoints_xy(image.points2D))
    # NaN compares as outside.
    inside = ((xy >= 0) & (xy < view.target_size)).all(axis=1)
    return xy[inside], ids[inside]


def _add_points(
    model: pycolmap.Reconstruction,
    reconstruction: pycolmap.Reconstruction,
    kept: Ids,
    observed: list[Ids],
) -> None:
    """Adds the points `kept` with the tracks that `observed`, per image, gives them."""
    ids = np.concatenate(observed)
    counts = [len(own) for own in observed]
    image_ids = np.repeat(np.arange(1, len(observed) + 1, dtype=np.int32), counts)
    rows = np.concatenate([np.arange(count, dtype=np.int32) for count in counts])
    order = np.argsort(ids, kind="stable")
    ids, image_ids, rows = ids[order], image_ids[order], rows[order]
    begins, ends = (np.searchsorted(ids, kept, side) for side in ("left", "right"))
    # elements of one point at a time: as objects, all of them are larger than the model
    for point_id, begin, end in zip(
        kept.tolist(), begins.tolist(), ends.tolist(), strict=True
    ):
        source = reconstruction.points3D[point_id]
        point = pycolmap.Point3D()  # with arguments it takes 4 times as long
        point.xyz, point.color = source.xyz, source.color
        seen = zip(image_ids[begin:end].tolist(), rows[begin:end].tolist(), strict=True)
        point.track = pycolmap.Track([pycolmap.TrackElement(*each) for each in seen])
        model.add_point3D_with_id(point_id, point)
