"""Equirectangular photographs of the demo scene, with known places."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np

from sfmprep.demo.courtyard import build_courtyard, camera_walk
from sfmprep.demo.raycast import Camera, Surface, Texture, render_image
from sfmprep.types import Bytes, Float64

# Rotations from the world (z up) into cube faces; the first looks along y.
_LEVEL = np.array([(1, 0, 0), (0, 0, -1), (0, 1, 0)], np.float64)


def _faces() -> list[Float64]:
    turns = []
    for yaw in range(4):
        c, s = round(np.cos(yaw * np.pi / 2)), round(np.sin(yaw * np.pi / 2))
        turns.append(np.array([(c, 0, -s), (0, 1, 0), (s, 0, c)], np.float64))
    up = np.array([(1, 0, 0), (0, 0, 1), (0, -1, 0)], np.float64)
    down = np.array([(1, 0, 0), (0, 0, -1), (0, 1, 0)], np.float64)
    return [face @ _LEVEL for face in (*turns, up, down)]


def render_panorama(
    surfaces: list[Surface], sky: Texture, centre: Float64, width: int
) -> Bytes:
    """A picture [W/2, W, 3] BGR whose middle looks along the world's y."""
    side = width // 3
    half = side / 2
    intrinsics = np.array([(half, 0, half), (0, half, half), (0, 0, 1)], np.float64)
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(width // 2) + 0.5)
    longitude, latitude = (x / width - 0.5) * 2 * np.pi, (0.5 - y / width * 2) * np.pi
    rays = np.dstack(
        [
            np.sin(longitude) * np.cos(latitude),
            np.cos(longitude) * np.cos(latitude),
            np.sin(latitude),
        ]
    )
    picture = np.zeros((width // 2, width, 3), np.uint8)
    best = np.full(picture.shape[:2], -np.inf)
    for rotation in _faces():
        local = rays @ rotation.T
        nearer = local[..., 2] > best
        best[nearer] = local[..., 2][nearer]
        camera = Camera(
            size=(side, side),
            intrinsics=intrinsics,
            rotation=rotation,
            translation=-rotation @ centre,
        )
        face = np.clip(render_image(surfaces, camera, sky), 0, 255)
        depth = np.where(local[..., 2:] > 0, local[..., 2:], 1)
        at = (local[..., :2] / depth * half + half - 0.5).astype(np.float32)
        drawn = cv2.remap(
            face.astype(np.uint8),
            *(at, None, cv2.INTER_LINEAR),
            borderMode=cv2.BORDER_REPLICATE,
        )
        picture[nearer] = drawn[nearer]
    return picture


def write_panoramas(folder: Path, number: int, width: int) -> Float64:
    """Writes `IMG_0.jpg`, ... of a walk through the demo scene; returns its centres."""
    surfaces, sky = build_courtyard(seed=0)
    centres = np.array([c.centre for c in camera_walk(number, (4, 3), seed=0)])
    folder.mkdir(parents=True, exist_ok=True)
    for k, centre in enumerate(centres):
        picture = render_panorama(surfaces, sky, centre, width)
        cv2.imwrite(str(folder / f"IMG_{k}.jpg"), picture)
    return centres
