"""The COLMAP model of the exported images: upright PINHOLE cameras, same world.

Images are numbered in the order of their names, because some loaders sort by id and
others by name. Every image has a frame and every camera a rig of its own: turning
images upright one by one would break rigs apart, and no trainer reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfmprep import coords
from sfmprep.config import ExportConfig
from sfmprep.errors import ImageError, ReconstructionError
from sfmprep.export.undistort import Undistortion, undistortion
from sfmprep.images import ImageSet

_MIN_TRACK = 2


@dataclass(frozen=True, kw_only=True, eq=False)
class ExportedModel:
    """A model and where its pixels come from."""

    model: pycolmap.Reconstruction
    undistortions: Mapping[str, Undistortion]  # by original name, in exported order


def export_model(
    reconstruction: pycolmap.Reconstruction,
    images: ImageSet,
    names: Mapping[str, str],
    config: ExportConfig,
) -> ExportedModel:
    """Maps cameras, poses and observations to the undistorted, upright images.

    Observations outside the exported image are dropped, and with them points that
    fewer than two remain of. Points keep their ids, positions and colours; their
    errors are computed anew.

    Args:
        reconstruction: All of `names` are registered in it.
        images: The files on disk.
        names: Original to exported name, in exported order.
        config: Sizes.

    Raises:
        ImageError: A registered image is not among `images`.
        ReconstructionError: A camera has not the size of its files, cannot be
            undistorted, or no point is left.
    """
    model = pycolmap.Reconstruction()
    by_name = {image.name: image for image in reconstruction.images.values()}
    cameras: dict[tuple[int, int], Undistortion] = {}
    undistortions = {}
    observed = []  # per image: ([N, 2] xy, [N] point ids) inside the exported image
    for name in names:
        source = by_name[name]
        orientation = _checked_orientation(reconstruction, source, images)
        key = (source.camera_id, orientation)
        if key not in cameras:
            cameras[key] = undistortion(
                reconstruction.cameras[source.camera_id],
                orientation,
                camera_id=len(cameras) + 1,
                multiple=max(config.downscales, default=1),
                max_size=config.max_size,
            )
            model.add_camera_with_trivial_rig(cameras[key].target)
        undistortions[name] = cameras[key]
        observed.append(_observations(source, cameras[key]))

    ids, counts = np.unique(
        np.concatenate([i for _, i in observed]), return_counts=True
    )
    kept = ids[(counts >= _MIN_TRACK) & (ids != pycolmap.INVALID_POINT3D_ID)]
    if not len(kept):
        raise ReconstructionError(
            "no 3D point is seen in two exported images; trainers start from the "
            "points, so triangulate them before the export"
        )
    tracks: dict[int, list[pycolmap.TrackElement]] = {i: [] for i in kept.tolist()}
    for image_id, (name, (xy, points)) in enumerate(
        zip(names, observed, strict=True), 1
    ):
        points = np.where(np.isin(points, kept), points, pycolmap.INVALID_POINT3D_ID)
        image = pycolmap.Image(
            name=names[name],
            points2D=pycolmap.Point2DList(
                [
                    pycolmap.Point2D(p, i)
                    for p, i in zip(xy, points.tolist(), strict=True)
                ]
            ),
            camera_id=undistortions[name].target.camera_id,
            image_id=image_id,
        )
        pose = coords.upright_pose(
            by_name[name].cam_from_world().matrix(), undistortions[name].orientation
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
        for row in np.flatnonzero(points != pycolmap.INVALID_POINT3D_ID).tolist():
            tracks[int(points[row])].append(pycolmap.TrackElement(image_id, row))
    for point_id, track in tracks.items():
        point = reconstruction.points3D[point_id]
        model.add_point3D_with_id(
            point_id,
            pycolmap.Point3D(
                xyz=point.xyz, color=point.color, track=pycolmap.Track(track)
            ),
        )
    model.update_point_3d_errors()
    return ExportedModel(model=model, undistortions=undistortions)


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


def _observations(
    image: pycolmap.Image, view: Undistortion
) -> tuple[coords.Float64, np.ndarray[tuple[int], np.dtype[np.uint64]]]:
    """Keypoints inside the exported image: xy [N, 2] there, and [N] point ids."""
    stored = np.array([p.xy for p in image.points2D], np.float64).reshape(-1, 2)
    ids = np.array([p.point3D_id for p in image.points2D], np.uint64)
    xy = view.target_xy(stored)
    # NaN compares as outside.
    inside = ((xy >= 0) & (xy < view.target_size)).all(axis=1)
    return xy[inside], ids[inside]
