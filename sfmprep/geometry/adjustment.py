"""What is adjusted: the registered images of a model, and their cameras."""

from __future__ import annotations

from collections.abc import Collection

import pycolmap


def config_of(
    model: pycolmap.Reconstruction, fixed: Collection[int] = ()
) -> pycolmap.BundleAdjustmentConfig:
    """All registered images of a model, without a gauge; `fixed` cameras stay as is."""
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
    for key in fixed:
        config.set_constant_cam_intrinsics(key)
    return config


def cameras_in(model: pycolmap.Reconstruction) -> dict[int, int]:
    """How many registered images each camera took."""
    counts: dict[int, int] = {}
    for image_id in model.reg_image_ids():
        key = model.images[image_id].camera_id
        counts[key] = counts.get(key, 0) + 1
    return counts
