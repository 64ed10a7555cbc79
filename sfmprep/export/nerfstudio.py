"""transforms.json, as nerfstudio's NerfstudioDataParser and Brush read it.

Poses are camera to world with OpenGL axes, in the frame of the COLMAP model and of the
PLY file: `applied_transform` is the identity, and given, because nerfstudio assumes
another one where it is missing. The model is called OPENCV with zero distortion, the
one perspective name that all readers know. Intrinsics stand at the top where all
images share them (LichtFeld reads no others) and in every frame otherwise.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pycolmap

from sfmprep import coords

GENERATOR = "sfmprep"


def transforms(model: pycolmap.Reconstruction, *, ply: str) -> dict[str, Any]:
    """The content of transforms.json for an exported model.

    Args:
        model: All cameras PINHOLE, every image registered and in `images/`.
        ply: Path of the seed cloud relative to the dataset.
    """
    frames = []
    for image_id in sorted(model.images):
        image = model.images[image_id]
        world_from_cam = np.eye(4)
        world_from_cam[:3] = image.cam_from_world().inverse().matrix()
        frame: dict[str, Any] = {
            "file_path": f"images/{image.name}",
            "transform_matrix": coords.opengl_from_opencv(world_from_cam).tolist(),
        }
        if len(model.cameras) > 1:
            frame |= _intrinsics(model.cameras[image.camera_id])
        frames.append(frame)
    shared = {}
    if len(model.cameras) == 1:
        shared = _intrinsics(next(iter(model.cameras.values())))
    return {
        "generator": GENERATOR,
        "camera_model": "OPENCV",
        **shared,
        **dict.fromkeys(("k1", "k2", "p1", "p2"), 0.0),
        "applied_transform": np.eye(4)[:3].tolist(),
        "ply_file_path": ply,
        "frames": frames,
    }


def _intrinsics(camera: pycolmap.Camera) -> dict[str, float]:
    return {
        "w": camera.width,
        "h": camera.height,
        "fl_x": camera.focal_length_x,
        "fl_y": camera.focal_length_y,
        "cx": camera.principal_point_x,
        "cy": camera.principal_point_y,
    }
