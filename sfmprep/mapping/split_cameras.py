"""Cameras that were zoomed become two: in models, and in the database behind them."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection
from pathlib import Path

import pycolmap

from sfmprep.mapping.adjust import adjust
from sfmprep.mapping.rounds import go_on
from sfmprep.mapping.runs import Run
from sfmprep.mapping.zooms import find_two_zooms, with_two_cameras

logger = logging.getLogger(__name__)


def split_zooms(
    run: Run, models: list[pycolmap.Reconstruction], known: Collection[int] = ()
) -> list[pycolmap.Reconstruction]:
    """Gives photographs a camera of their own where tracks tell another zoom.

    Cameras are asked in the largest model (see `find_two_zooms`), and each half of one
    again. The mapper then goes on from the model with its cameras: points that one
    focal length kept away come back, and images that it kept out.

    Args:
        run: Its database gets the cameras.
        models: Largest first; they stay as they are.
        known: Ids of cameras that are not asked.

    Returns:
        Models, largest first; those that came in where no zoom is told.
    """
    if not models:
        return models
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
            names = {*zooms.longer}
            ids = [k for k in model.reg_image_ids() if model.images[k].name in names]
            model = with_two_cameras(model, zooms.camera_id, ids)
        adjust(model)
    if model is models[0]:
        return models
    split_cameras(run.database, model)
    return go_on(run, [model, *models[1:]])


def split_cameras(path: Path, model: pycolmap.Reconstruction) -> None:
    """Gives images cameras of their own in a database where they have some in a model.

    Of images that share a camera in the database, those of the camera that most have in
    the model keep it, and so do those that the model lacks.

    Args:
        path: A database; images in rigs of several cameras stay as they are.
        model: Images are known by their names.
    """
    own = {
        model.images[key].name: model.images[key].camera_id
        for key in sorted(model.reg_image_ids())
    }
    with pycolmap.Database.open(path) as database:
        images = [image for image in database.read_all_images() if image.name in own]
        counts: dict[int, Counter[int]] = {}
        for image in images:
            counts.setdefault(image.camera_id, Counter())[own[image.name]] += 1
        added: dict[tuple[int, int], tuple[int, int]] = {}
        for image in images:
            (most, _), *others = counts[image.camera_id].most_common()
            frame = database.read_frame(image.frame_id)
            alone = database.read_rig(frame.rig_id).num_sensors() == 1
            if not others or own[image.name] == most or not alone:
                continue
            key = image.camera_id, own[image.name]
            if key not in added:
                added[key] = _add_camera(database, model.cameras[own[image.name]])
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
