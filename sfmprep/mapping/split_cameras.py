"""Cameras that were zoomed become several: in models, and in their database."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.errors import ReconstructionError
from sfmprep.mapping.adjust import adjust
from sfmprep.mapping.agreement import VerifiedMatches, matched_points
from sfmprep.mapping.carry_over import carry_over, open_cache
from sfmprep.mapping.database import copy_database
from sfmprep.mapping.focal_length import with_focal_length
from sfmprep.mapping.rounds import go_on
from sfmprep.mapping.runs import Run
from sfmprep.mapping.zooms import find_two_zooms, with_two_cameras

logger = logging.getLogger(__name__)

_MIN_IMAGES = 5  # of a camera
_ENOUGH = 500  # points that an image is asked for
_MIN_GROUP = 2  # images of one zoom: more than a pose that went wrong
_SAME_ZOOM = 0.05  # steps in the logarithm of the focal length
# What a free focal length must gain: made captures with zooms of 15 and 30 % gave 1.8
# to 4 times as many inliers, real ones with one zoom 1.01 at most.
_MIN_RATIO = 1.25
_MIN_MORE = 30


def split_zooms(
    run: Run, models: list[pycolmap.Reconstruction], known: Collection[int] = ()
) -> list[pycolmap.Reconstruction]:
    """Gives photographs a camera of their own where they were taken with another zoom.

    Large zooms are those of `find_zoomed`, in the largest model: the mapper registers
    these images anew. Small ones are those of `find_two_zooms`, in what comes of it,
    each half of a camera asked again. Then the mapper goes on with all cameras: points
    that one focal length kept away come back, and images that it kept out.

    Args:
        run: Its database gets the cameras.
        models: Largest first; they stay as they are.
        known: Ids of cameras that are not asked.

    Returns:
        Models, largest first; those that came in where no zoom is told.
    """
    if not models:
        return models
    zoomed = find_zoomed(run, models[0], known)
    posed = {models[0].images[key].name for key in models[0].reg_image_ids()}
    if zoomed and len(posed - zoomed.keys()) >= _MIN_IMAGES:
        names = sorted(zoomed)
        logger.info(
            "%d photographs, such as %s, have another focal length than the others of"
            " their camera: they get a camera of their own",
            *(len(names), names[0]),
        )
        shared = run.folder / "shared.db"
        copy_database(run.database, shared)
        split_cameras(run.database, zoomed)
        rest = pycolmap.Reconstruction(models[0])
        for key in models[0].reg_image_ids():
            if rest.images[key].name in zoomed:
                rest.deregister_frame(rest.images[key].frame_id)
        split = go_on(run, [rest, *models[1:]])
        if split and split[0].num_reg_images() >= models[0].num_reg_images():
            models = split
        else:
            logger.info("images are lost with cameras of their own: they share one")
            copy_database(shared, run.database)
    model = models[0]
    while found := find_two_zooms(model, known):
        for zooms in found:
            logger.info(
                "camera %d: %d photographs, such as %s, have a focal length that is"
                " %.1f %% longer than that of the other %d: they get a camera of"
                " their own",
                *(zooms.camera_id, len(zooms.longer), zooms.longer[0]),
                *(100 * (zooms.ratio - 1), len(zooms.shorter)),
            )
            longer = {*zooms.longer}
            ids = [k for k in model.reg_image_ids() if model.images[k].name in longer]
            model = with_two_cameras(model, zooms.camera_id, ids)
        try:
            adjust(model)
        except ReconstructionError as error:
            logger.debug("no cameras apart: %s", error)
            return models
    if model is models[0]:
        return models
    split_cameras(run.database, cameras_apart(run.database, model))
    return go_on(run, [model, *models[1:]])


def find_zoomed(
    run: Run, model: pycolmap.Reconstruction, known: Collection[int] = ()
) -> dict[str, pycolmap.Camera]:
    """Finds images that fit a model far better with a focal length of their own.

    All keypoints count that verified pairs join to points of a model, not only those
    that became its points: with a wrong focal length these are few, and fit. An image
    is found where a quarter more of them, and thirty, fit its pose when its focal
    length is free; and one other image of its camera with about the same.

    Args:
        run: Database and thresholds.
        model: It stays as it is.
        known: Ids of cameras that are not asked.

    Returns:
        By image name a camera, with the median focal length of its group.
    """
    with pycolmap.Database.open(run.database) as opened:
        cache = open_cache(opened, run.config.min_num_matches)
    carried, matches = carry_over(model, cache), VerifiedMatches(cache)
    limit_px = run.cameras.max_error_px * run.scale
    shared = Counter(image.camera_id for image in carried.images.values())
    own: dict[int, list[tuple[float, str]]] = {}
    for key in sorted(carried.images):
        image = carried.images[key]
        rig_id = carried.frames[image.frame_id].rig_id
        alone = carried.rigs[rig_id].num_sensors() == 1
        if image.camera_id in known or shared[image.camera_id] < _MIN_IMAGES:
            continue
        focal = _own_focal_length(carried, matches, key, limit_px) if alone else None
        if focal is not None:
            own.setdefault(image.camera_id, []).append((focal, image.name))
    found: dict[str, pycolmap.Camera] = {}
    for camera_id, focals in own.items():
        focals.sort()
        cuts = np.flatnonzero(np.diff(np.log([f for f, _ in focals])) > _SAME_ZOOM) + 1
        for group in np.split(np.arange(len(focals)), cuts):
            if len(group) < _MIN_GROUP:
                continue
            pixels = float(np.median([focals[row][0] for row in group]))
            camera = with_focal_length(carried.cameras[camera_id], pixels)
            found |= {focals[row][1]: camera for row in group}
    return found


def _own_focal_length(
    model: pycolmap.Reconstruction,
    matches: VerifiedMatches,
    image_id: int,
    limit_px: float,
) -> float | None:
    """Pixels; None where the camera's own fits about as many points."""
    xy, points = matched_points(model, matches, image_id, enough=_ENOUGH)
    image = model.images[image_id]
    given = model.cameras[image.camera_id]
    if image.has_pose:
        there = np.asarray(given.img_from_cam(image.cam_from_world() * points))
        held = int((np.linalg.norm(there - xy, axis=1) <= limit_px).sum())
        if len(xy) < _needed(held):
            return None  # so many more cannot fit
    estimation = pycolmap.AbsolutePoseEstimationOptions()
    estimation.ransac.max_error = limit_px
    estimation.ransac.random_seed = image_id
    refinement = pycolmap.AbsolutePoseRefinementOptions()
    counts: list[int] = []
    for free in (False, True):
        if free and len(xy) < _needed(counts[0]):
            return None  # so many cannot fit
        camera = pycolmap.Camera(given.todict())
        estimation.estimate_focal_length = refinement.refine_focal_length = free
        pose = pycolmap.estimate_and_refine_absolute_pose(
            xy, points, camera, estimation, refinement
        )
        counts.append(pose["num_inliers"] if pose else 0)
    if counts[1] < _needed(counts[0]):
        return None
    return float(camera.mean_focal_length())


def _needed(held: int) -> float:
    """How many points must fit with a free focal length, for those that fit without."""
    return max(held + _MIN_MORE, _MIN_RATIO * held)


def cameras_apart(
    path: Path, model: pycolmap.Reconstruction
) -> dict[str, pycolmap.Camera]:
    """Cameras of a model whose images share one in a database, by image name.

    Those of the camera that most images have there are not named: they keep the one of
    the database.
    """
    own = {
        model.images[k].name: model.images[k].camera_id for k in model.reg_image_ids()
    }
    with pycolmap.Database.open(path) as database:
        images = [image for image in database.read_all_images() if image.name in own]
    counts: dict[int, Counter[int]] = {}
    for image in images:
        counts.setdefault(image.camera_id, Counter())[own[image.name]] += 1
    most = {key: count.most_common(1)[0][0] for key, count in counts.items()}
    return {
        image.name: model.cameras[own[image.name]]
        for image in images
        if own[image.name] != most[image.camera_id]
    }


def split_cameras(path: Path, cameras: Mapping[str, pycolmap.Camera]) -> None:
    """Gives images of a database cameras of their own.

    Args:
        path: A database; images in rigs of several cameras stay as they are.
        cameras: By image name. Images that share one in the database share the new one
            where it has the same numbers.
    """
    added: dict[tuple[int, tuple[float, ...]], tuple[int, int]] = {}
    with pycolmap.Database.open(path) as database:
        for image in database.read_all_images():
            camera = cameras.get(image.name)
            frame = database.read_frame(image.frame_id)
            if camera is None or database.read_rig(frame.rig_id).num_sensors() > 1:
                continue
            key = image.camera_id, tuple(camera.params.tolist())
            if key not in added:
                added[key] = _add_camera(database, camera)
            image.camera_id, rig_id = added[key]
            moved = pycolmap.Frame()
            moved.frame_id, moved.rig_id = image.frame_id, rig_id
            moved.add_data_id(image.data_id)
            database.update_frame(moved)
            database.update_image(image)


def _add_camera(
    database: pycolmap.Database, camera: pycolmap.Camera
) -> tuple[int, int]:
    """Writes a camera and a rig of it alone; returns the ids of both."""
    camera = pycolmap.Camera(camera.todict())
    camera.has_prior_focal_length = True  # the model tells it
    camera.camera_id = database.write_camera(camera)
    rig = pycolmap.Rig()
    rig.add_ref_sensor(camera.sensor_id)
    return camera.camera_id, database.write_rig(rig)
