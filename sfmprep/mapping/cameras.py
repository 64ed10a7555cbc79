"""The camera of an image before bundle adjustment."""

from __future__ import annotations

import logging

import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig

logger = logging.getLogger(__name__)


def infer_camera(
    images: ImageSet, name: str, config: DatabaseConfig
) -> pycolmap.Camera:
    """The camera of an image before bundle adjustment.

    Its focal length is the configured one, else that of EXIF, else COLMAP's guess of
    1.2 times the longer side.
    """
    info = images.infos[name]
    focal = config.focal_length or _exif_focal_length(info.size, images, name)
    camera = pycolmap.Camera.create_from_model_name(
        0, config.camera_model, focal or 1.2 * max(info.size), *info.size
    )
    camera.has_prior_focal_length = focal is not None
    return camera


def _exif_focal_length(
    size: tuple[int, int], images: ImageSet, name: str
) -> float | None:
    """Focal length in pixels where EXIF tells it: directly, or by COLMAP's tables."""
    info = images.infos[name]
    if info.focal_length_35mm:
        # a frame of 36 x 24 mm; the EXIF standard compares diagonals
        return info.focal_length_35mm * float(np.hypot(*size) / np.hypot(36, 24))
    if not (info.focal_length_mm and info.model):
        return None
    try:
        camera = pycolmap.infer_camera_from_image(images.path(name))
    except ValueError as error:
        logger.info("%s: COLMAP cannot read it for its focal length: %s", name, error)
        return None
    return float(camera.mean_focal_length()) if camera.has_prior_focal_length else None
