"""A model brought to a database that grew since it was made."""

from __future__ import annotations

import logging
from collections.abc import Mapping

import numpy as np
import pycolmap
from scipy.spatial import cKDTree

from sfmprep.geometry.adjustment import cameras_in
from sfmprep.geometry.views import keypoints_xy
from sfmprep.types import Index

logger = logging.getLogger(__name__)

_SAME_PX = 0.01  # keypoints that lie nearer are one


def open_cache(
    database: pycolmap.Database, min_num_matches: int
) -> pycolmap.DatabaseCache:
    """Reads cameras, images and verified pairs of a database, as COLMAP's mapper does.

    Args:
        database: It is not changed.
        min_num_matches: Pairs with fewer inliers are left out, and images without any.
    """
    options = pycolmap.DatabaseCacheOptions()
    options.min_num_matches = min_num_matches
    return pycolmap.DatabaseCache.create(database, options)


def carry_over(
    model: pycolmap.Reconstruction,
    cache: pycolmap.DatabaseCache,
    *,
    same_rows: bool = False,
) -> pycolmap.Reconstruction:
    """Makes a model anew with the images, cameras and keypoints of a database.

    Images are those of the same name, whatever their ids; keypoints are those at the
    same place, whatever was added before or behind them. Images that the database lacks
    lose their pose. A camera is as the model has it.

    Args:
        model: It stays as it is.
        cache: The database; of rigs only those of one camera each.
        same_rows: Whether the keypoints of the model are the first ones of the database
            though they have moved: then they stay where the model has them.

    Returns:
        A model in which all images of the cache are, those of the model with a pose.
    """
    carried = pycolmap.Reconstruction()
    carried.load(cache)
    if same_rows:
        _move_keypoints(carried, model)
    add_model(carried, model)
    return carried


def _move_keypoints(
    target: pycolmap.Reconstruction, model: pycolmap.Reconstruction
) -> None:
    ids = {image.name: key for key, image in target.images.items()}
    for key in model.reg_image_ids():
        image = model.images[key]
        if image.name in ids:
            there = target.images[ids[image.name]].points2D
            old, new = keypoints_xy(image.points2D), keypoints_xy(there)
            count = min(len(old), len(new))
            has_moved = (old[:count] != new[:count]).any(axis=1)
            for row in np.flatnonzero(has_moved).tolist():
                there[row].xy = old[row]


def add_model(
    target: pycolmap.Reconstruction,
    model: pycolmap.Reconstruction,
    *,
    moved: pycolmap.Sim3d | None = None,
) -> None:
    """Adds the poses and points of a model to another that has images of that name.

    An image that has a pose already keeps it, with its camera, and a keypoint that sees
    a point already keeps that: points of both are joined where they share one.

    Args:
        target: All images are in it, with or without a pose; it is changed.
        model: It stays as it is.
        moved: The frame of `target`, from that of the model; None for the same.
    """
    if moved is not None:
        model = pycolmap.Reconstruction(model)
        model.transform(moved)
    ids = {image.name: key for key, image in target.images.items()}
    posed = set(cameras_in(target))
    rows: dict[int, tuple[int, Index]] = {}
    for own in sorted(model.reg_image_ids()):
        image = model.images[own]
        if image.name not in ids:
            logger.warning("%s has no verified pair any more: no pose", image.name)
            continue
        other = target.images[ids[image.name]]
        if other.camera_id not in posed:
            _copy_camera(model.cameras[image.camera_id], target, other.camera_id)
            posed.add(other.camera_id)
        rows[own] = other.image_id, _same_rows(image, other)
        if not other.has_pose:
            frame = target.frames[other.frame_id]
            frame.set_cam_from_world(other.camera_id, image.cam_from_world())
            target.register_frame(other.frame_id)
    _add_points(target, model, rows)


def _copy_camera(
    camera: pycolmap.Camera, target: pycolmap.Reconstruction, key: int
) -> None:
    target.cameras[key].model = camera.model
    target.cameras[key].params = camera.params.tolist()


def _same_rows(image: pycolmap.Image, other: pycolmap.Image) -> Index:
    """For each keypoint of an image the row of the one at the same place, or -1.

    Keypoints that see no point are not asked: theirs is -1.
    """
    rows = np.full(image.num_points2D(), -1)
    asked = np.array(image.get_observation_point2D_idxs(), np.int64)
    old = keypoints_xy(image.get_observation_points2D())
    new = keypoints_xy(other.points2D)
    if not len(asked):
        return rows
    if asked.max() < len(new) and np.allclose(
        *(old, new[asked]), rtol=0, atol=_SAME_PX, equal_nan=True
    ):
        rows[asked] = asked
        return rows
    finite = np.isfinite(old).all(axis=1)
    known, there_at = asked[finite], np.flatnonzero(np.isfinite(new).all(axis=1))
    if len(known) and len(there_at):
        distance, row = cKDTree(new[there_at]).query(old[finite])
        rows[known] = np.where(distance <= _SAME_PX, there_at[row], -1)
    return rows


def _add_points(
    target: pycolmap.Reconstruction,
    model: pycolmap.Reconstruction,
    rows: Mapping[int, tuple[int, Index]],
) -> None:
    for point in model.points3D.values():
        free: dict[tuple[int, int], None] = {}
        owner = None
        for element in point.track.elements:
            if element.image_id not in rows:
                continue
            key, of_image = rows[element.image_id]
            row = int(of_image[element.point2D_idx])
            if row < 0:
                continue
            keypoint = target.images[key].points2D[row]
            if keypoint.has_point3D():
                owner = owner or keypoint.point3D_id
            else:
                free.setdefault((key, row))
        if owner is not None:
            for key, row in free:
                target.add_observation(owner, pycolmap.TrackElement(key, row))
        elif len(free) > 1:
            track = pycolmap.Track()
            for key, row in free:
                track.add_element(key, row)
            target.add_point3D(point.xyz, track, point.color)
