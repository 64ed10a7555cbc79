"""The camera of an image before bundle adjustment."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import PurePosixPath

import pycolmap

from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig
from sfmprep.errors import ConfigError
from sfmprep.geometry.adjustment import cameras_in
from sfmprep.mapping.focal_length import is_fisheye, with_focal_length
from sfmprep.mapping.focal_priors import exif_focal_length

logger = logging.getLogger(__name__)

_FISHEYE = re.compile("fish.?eye", re.IGNORECASE)


def infer_camera(
    images: ImageSet, name: str, config: DatabaseConfig
) -> pycolmap.Camera:
    """The camera of an image before bundle adjustment.

    Where its model is left open, it is that of a fisheye lens if the lens is called so.
    Its numbers are the configured ones; else its focal length is the configured one,
    that of EXIF where it can be true, or COLMAP's guess of 1.2 times the longer side.

    Raises:
        ConfigError: `camera_params` has another count of numbers than the model, or
            they are none that a camera can have.
    """
    info = images.infos[name]
    size = info.size
    params = known_params(config, name)
    # numbers without a model are those of the default, whatever the lens is called
    has_numbers_alone = params is not None and config.camera_model == "auto"
    model = "SIMPLE_RADIAL" if has_numbers_alone else first_model(config, info)
    camera = pycolmap.Camera.create_from_model_name(0, model, 1.2 * max(size), *size)
    if params is not None:
        _check_params(camera, params)
        camera.params = list(params)
        camera.has_prior_focal_length = True
        return camera
    focal = config.focal_length
    if focal is None:
        prior = exif_focal_length(images, name, is_fisheye=is_fisheye(camera))
        focal = prior.pixels
        if prior.doubt:
            logger.warning("%s: %s. It is not used.", images.path(name), prior.doubt)
    return camera if focal is None else with_focal_length(camera, focal)


def possible_cameras(
    model: pycolmap.Reconstruction, images: ImageSet, name: str, config: DatabaseConfig
) -> list[pycolmap.Camera]:
    """The cameras that may have taken an image: those of a model first, as known.

    Raises:
        ConfigError: as for `infer_camera`.
    """
    there = cameras_in(model).keys()
    found = []
    for key in sorted(there):
        camera = pycolmap.Camera(model.cameras[key].todict())
        if (camera.width, camera.height) == images.infos[name].size:
            camera.has_prior_focal_length = True
            found.append(camera)
    if known_params(config, name) is None:  # else they are of the model that it names
        config = config.model_copy(update={"camera_model": "auto"})
    return [*found, infer_camera(images, name, config)]


def first_model(config: DatabaseConfig, info: ImageInfo) -> str:
    """The camera model before one is chosen by what the photographs tell."""
    if config.camera_model != "auto":
        return config.camera_model
    has_fisheye = _FISHEYE.search(info.lens_model or "") is not None
    return "SIMPLE_RADIAL_FISHEYE" if has_fisheye else "SIMPLE_RADIAL"


def is_known(config: DatabaseConfig, name: str) -> bool:
    """Whether the configuration tells the focal length of an image."""
    return config.focal_length is not None or known_params(config, name) is not None


def known_params(config: DatabaseConfig, name: str) -> Sequence[float] | None:
    """The configured numbers of an image's camera, those of the innermost folder."""
    params = config.camera_params
    if not isinstance(params, dict):
        return params
    folders = PurePosixPath(name).parents  # innermost first; "." is the last
    return next((params[str(f)] for f in folders if str(f) in params), None)


def _check_params(camera: pycolmap.Camera, params: Sequence[float]) -> None:
    model, names = camera.model_name, camera.params_info
    if len(params) != len(camera.params):
        raise ConfigError(
            f"database.camera_params: {model} has {len(camera.params)} numbers"
            f" ({names}) but {len(params)} were given."
        )
    focal = [params[k] for k in camera.focal_length_idxs()]
    centre = [params[k] for k in camera.principal_point_idxs()]
    size = (camera.width, camera.height)
    if min(focal) <= 0 or not all(
        0 < c < side for c, side in zip(centre, size, strict=True)
    ):
        raise ConfigError(
            f"database.camera_params: {', '.join(f'{p:g}' for p in params)} ({names})"
            f" is no camera of {size[0]} x {size[1]} pixels: expected a focal length"
            " above 0 and a principal point inside the image. Give pixels of the file."
        )
