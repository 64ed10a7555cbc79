"""Cameras that are known: what those that come with given poses tell."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping

import numpy as np
import pycolmap

from sfmprep.config import DatabaseConfig
from sfmprep.mapping.cameras import known_params
from sfmprep.mapping.focal_length import is_fisheye, with_focal_length

logger = logging.getLogger(__name__)

_SAME_ASPECT = 0.01
_SAME_FOCAL = 0.01  # of focal lengths in x and y, for one to do
_MIDDLE_PX = 0.5  # of the size it is given at: some count pixels from their middle
_TANGENTIAL = {pycolmap.CameraModelId.OPENCV, pycolmap.CameraModelId.FULL_OPENCV}


def take_cameras(
    database: pycolmap.Database,
    given: Mapping[str, pycolmap.Camera],
    taken: Collection[int] = (),
) -> tuple[set[int], set[int]]:
    """Gives cameras of a database what those that were given for their images tell.

    A camera with a principal point in the middle, no distortion and one focal length is
    what is written where nothing else is known: it tells a focal length, and its lens
    is found as if none was given, unless the camera was guessed to be a fisheye, which
    it then replaces. A camera of another shape than the image, or of a sphere, is a
    warning in the log. The first image of a camera decides, in the order of names.

    Args:
        database: It is changed.
        given: Cameras by image name, of any size.
        taken: Ids of cameras that stay.

    Returns:
        Ids of cameras with a given lens, and of those with a given focal length alone.
    """
    asked = set(taken)
    lenses, focal_lengths = set(), set()
    for image in sorted(database.read_all_images(), key=lambda image: image.name):
        if image.camera_id in asked or image.name not in given:
            continue
        asked.add(image.camera_id)
        camera = database.read_camera(image.camera_id)
        lens = _scaled(given[image.name], camera)
        if lens is None:
            logger.warning(
                "the camera given for %s is of %d x %d pixels, the image has %d x %d:"
                " it is not used",
                *(image.name, given[image.name].width, given[image.name].height),
                *(camera.width, camera.height),
            )
            continue
        if _is_plain(lens, given[image.name]) and not is_fisheye(camera):
            camera = with_focal_length(camera, lens.mean_focal_length())
            focal_lengths.add(image.camera_id)
        else:
            camera.model, camera.params = lens.model, lens.params.tolist()
            lenses.add(image.camera_id)
        camera.has_prior_focal_length = True
        database.update_camera(camera)
    return lenses, focal_lengths


def with_known_params(
    model: pycolmap.Reconstruction, config: DatabaseConfig
) -> set[int]:
    """Ids of cameras of a model whose numbers the configuration tells."""
    return {
        image.camera_id
        for image in model.images.values()
        if known_params(config, image.name) is not None
    }


def with_known_centre(
    model: pycolmap.Reconstruction,
    config: DatabaseConfig,
    given: Mapping[str, pycolmap.Camera],
) -> set[int]:
    """Ids of cameras of a model whose principal point is known.

    Known are those in the configuration, and of given lenses those off the middle,
    which is where they lie that nobody searched. In the middle one is known that
    tangential distortion goes with: that takes the place of an offset.

    Args:
        model: Whose cameras are meant.
        config: What is known of cameras.
        given: Cameras by image name, as for `take_cameras`.
    """
    asked, known = set(), with_known_params(model, config)
    for image in sorted(model.images.values(), key=lambda image: image.name):
        if image.camera_id in asked or image.name not in given:
            continue
        asked.add(image.camera_id)
        lens = _scaled(given[image.name], model.cameras[image.camera_id])
        if lens is None or _is_plain(lens, given[image.name]):
            continue
        if lens.model in _TANGENTIAL or not _is_centred(lens, given[image.name]):
            known.add(image.camera_id)
    return known


def _scaled(given: pycolmap.Camera, camera: pycolmap.Camera) -> pycolmap.Camera | None:
    """A given camera at the size of another; None where it has another shape.

    One without a size has its numbers in shares of the longer side, from the middle.
    None also for a sphere, which has no focal length.
    """
    lens = pycolmap.Camera(given.todict())
    if not len(lens.focal_length_idxs()):
        return None
    if lens.width == 0:
        params = np.array(lens.params)
        params[:4] *= max(camera.width, camera.height)
        params[2:4] += camera.width / 2, camera.height / 2
        lens.width, lens.height = camera.width, camera.height
        lens.params = params.tolist()
    if abs(lens.width / lens.height - camera.width / camera.height) > _SAME_ASPECT:
        return None
    lens.rescale(camera.width, camera.height)
    return lens


def _is_plain(lens: pycolmap.Camera, given: pycolmap.Camera) -> bool:
    """Whether nothing of a lens is told but a focal length; see `_is_centred`."""
    params = np.array(lens.params)
    focal = params[list(lens.focal_length_idxs())]
    return bool(
        not lens.is_perspective_fisheye()
        and not params[list(lens.extra_params_idxs())].any()
        and np.ptp(focal) <= _SAME_FOCAL * focal.max()
        and _is_centred(lens, given)
    )


def _is_centred(lens: pycolmap.Camera, given: pycolmap.Camera) -> bool:
    """Whether the principal point of a lens is in the middle, `given` at its size."""
    size = np.array([lens.width, lens.height])
    centre = np.array(lens.params)[list(lens.principal_point_idxs())]
    tolerance = _MIDDLE_PX * max(lens.width / given.width if given.width else 1.0, 1.0)
    return bool(np.abs(centre - size / 2).max() <= tolerance)
