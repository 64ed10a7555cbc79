"""A rig of two cameras that walks through the demo scene."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from sfmprep.demo.courtyard import build_courtyard, camera_walk
from sfmprep.demo.raycast import Camera, render_image
from sfmprep.evaluation.reference import CameraPose

_RIGHT_OF_LEFT = Rotation.from_rotvec([0.02, -0.15, 0.05]).as_matrix()
_AT = np.array([-0.45, 0.02, 0.05])  # metres, of x_right = _RIGHT_OF_LEFT x_left + _AT


def rig_poses(num_frames: int, size: tuple[int, int]) -> dict[str, Camera]:
    """The cameras by name: `left/0.jpg`, `right/0.jpg` and on."""
    cameras = {}
    for k, left in enumerate(camera_walk(num_frames, size, seed=0)):
        cameras[f"left/{k}.jpg"] = left
        cameras[f"right/{k}.jpg"] = replace(
            left,
            rotation=_RIGHT_OF_LEFT @ left.rotation,
            translation=_RIGHT_OF_LEFT @ left.translation + _AT,
        )
    return cameras


def write_rig(
    folder: Path, num_frames: int = 6, size: tuple[int, int] = (480, 360)
) -> dict[str, CameraPose]:
    """Writes the photographs of all frames; returns their true poses by name."""
    surfaces, sky = build_courtyard(seed=0)
    cameras = rig_poses(num_frames, size)
    for name, camera in cameras.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        rendered = np.clip(render_image(surfaces, camera, sky), 0, 255)
        cv2.imwrite(str(path), rendered.astype(np.uint8))
    return {
        name: CameraPose(rotation=c.rotation, centre=c.centre)
        for name, c in cameras.items()
    }


def write_rig_config(path: Path, *, told: bool, scale: float = 1.0) -> Path:
    """COLMAP's file of the rig, with or without the place of the right camera.

    Args:
        path: Where it goes.
        told: Whether the place is told.
        scale: Of the unit of its lengths, in metres.
    """
    right: dict[str, object] = {"image_prefix": "right/"}
    if told:
        x, y, z, w = Rotation.from_matrix(_RIGHT_OF_LEFT).as_quat()
        right["cam_from_rig_rotation"] = [w, x, y, z]
        right["cam_from_rig_translation"] = (_AT / scale).tolist()
    left = {"image_prefix": "left/", "ref_sensor": True}
    path.write_text(json.dumps([{"cameras": [left, right]}]))
    return path


def rig_errors(poses: dict[str, CameraPose], frames: Sequence[int]) -> np.ndarray:
    """Of each frame the angle in degrees and the distance off from the true rig."""
    errors = []
    for k in frames:
        left, right = poses[f"left/{k}.jpg"], poses[f"right/{k}.jpg"]
        turn = right.rotation @ left.rotation.T
        at = right.rotation @ (left.centre - right.centre)
        off = Rotation.from_matrix(turn @ _RIGHT_OF_LEFT.T).magnitude()
        errors.append((np.degrees(off), float(np.linalg.norm(at - _AT))))
    return np.array(errors)
