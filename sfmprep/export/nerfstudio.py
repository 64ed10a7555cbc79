"""transforms.json, as nerfstudio's NerfstudioDataParser and Brush read it.

Poses are camera to world with OpenGL axes, in the frame of the COLMAP model and of the
PLY file: `applied_transform` is the identity, and given, because nerfstudio assumes
another one where it is missing. A pinhole is called OPENCV with zero distortion, the
one perspective name that all readers know. Intrinsics stand at the top where all
images share them (LichtFeld reads no others) and in every frame otherwise. Which
images are for evaluation is not said: nerfstudio would then want all three splits.
(Its other reader, ColmapDataParser, refuses a kept fisheye with k4; this one does not.)
"""

from __future__ import annotations

from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pycolmap

from sfmprep import coords
from sfmprep.export.listing import GENERATOR

_PERSPECTIVE = ("k1", "k2", "p1", "p2")
_FISHEYE = ("k1", "k2", "k3", "k4")


def transforms(
    model: pycolmap.Reconstruction, *, ply: str, with_masks: bool
) -> dict[str, Any]:
    """The content of transforms.json for an exported model.

    Args:
        model: Every image registered and in `images/`; all cameras PINHOLE, all OPENCV
            or all OPENCV_FISHEYE.
        ply: Path of the seed cloud relative to the dataset.
        with_masks: Whether every image has a mask in `masks/`.
    """
    cameras = list(model.cameras.values())
    frames = []
    for image_id in sorted(model.images):
        image = model.images[image_id]
        world_from_cam = np.eye(4)
        world_from_cam[:3] = image.cam_from_world().inverse().matrix()
        frame: dict[str, Any] = {
            "file_path": f"images/{image.name}",
            "transform_matrix": coords.opengl_from_opencv(world_from_cam).tolist(),
        }
        if with_masks:
            frame["mask_path"] = f"masks/{PurePosixPath(image.name).stem}.png"
        if len(cameras) > 1:
            frame |= _intrinsics(model.cameras[image.camera_id])
        frames.append(frame)
    kind = "OPENCV" if cameras[0].model_name == "PINHOLE" else cameras[0].model_name
    return {
        "generator": GENERATOR,
        "camera_model": kind,
        **(_intrinsics(cameras[0]) if len(cameras) == 1 else {}),
        "applied_transform": np.eye(4)[:3].tolist(),
        "ply_file_path": ply,
        "frames": frames,
    }


def _intrinsics(camera: pycolmap.Camera) -> dict[str, float]:
    names = _FISHEYE if camera.model_name == "OPENCV_FISHEYE" else _PERSPECTIVE
    coefficients = camera.params[4:].tolist() or [0.0] * len(names)
    return {
        "w": camera.width,
        "h": camera.height,
        "fl_x": camera.focal_length_x,
        "fl_y": camera.focal_length_y,
        "cx": camera.principal_point_x,
        "cy": camera.principal_point_y,
        **dict(zip(names, coefficients, strict=True)),
    }
