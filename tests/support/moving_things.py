"""The courtyard of the demo while things move through it, with exact poses and masks.

A crate slides past, a person of two boxes walks, and a ball rolls, each on a way of its
own, while the camera walks around. Their light is not that of the scene, and they cast
no shadow.
"""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np

from sfmprep.demo.courtyard import build_courtyard, camera_walk
from sfmprep.demo.raycast import Camera, Rectangle, Sphere, Surface, render_image
from sfmprep.demo.textures import plank_painter, stone_painter, to_texture
from sfmprep.threads import thread_pool
from sfmprep.types import Bytes, Float64, Mask

_NOISE = 1.5  # grey levels


def render_moving_things(
    folder: Path,
    *,
    num_images: int = 24,
    size: tuple[int, int] = (480, 360),
    is_still: bool = False,
    arc: float = 1.0,
    until: float = 1.0,
) -> None:
    """Writes `images`, `masks` (black is what moves) and `reference.json`.

    Args:
        folder: Where to.
        num_images: At equal steps of time.
        size: (W, H) in pixels.
        is_still: Whether nothing is there that moves: then there are no masks.
        arc: Share of the camera's walk of 110 degrees that is walked.
        until: Share of what moves' ways that is gone.
    """
    surfaces, sky = build_courtyard(0)
    whole = camera_walk(round((num_images - 1) / arc) + 1, size, 0)
    cameras = whole[:num_images]
    for name in ("images",) if is_still else ("images", "masks"):
        (folder / name).mkdir(parents=True)

    def write(k: int) -> None:
        things = [] if is_still else moving_things(until * k / (num_images - 1))
        image = render_image([*surfaces, *things], cameras[k], sky)
        noise = np.random.default_rng([2, k]).normal(0, _NOISE, image.shape)
        blurred = np.asarray(cv2.GaussianBlur(image, (0, 0), 0.5))
        path = str(folder / "images" / f"{k:04d}.jpg")
        cv2.imwrite(path, to_texture(blurred + noise), [cv2.IMWRITE_JPEG_QUALITY, 95])
        if not is_still:
            seen = where_seen(surfaces, things, cameras[k])
            mask = np.where(seen, 0, 255).astype(np.uint8)
            cv2.imwrite(str(folder / "masks" / f"{k:04d}.jpg.png"), mask)

    with thread_pool(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(write, range(num_images)))
    images = {f"{k:04d}.jpg": camera_entry(camera) for k, camera in enumerate(cameras)}
    (folder / "reference.json").write_text(json.dumps({"images": images}), "utf-8")


def moving_things(time: float) -> list[Surface]:
    """What moves, at a time in 0..1."""
    rng = np.random.default_rng(7)
    walked = np.array([-2.2 + 3.4 * time, -1.1 + 0.5 * np.sin(5 * time), 0.0])
    slid = np.array([1.9 - 1.2 * time, 1.3 - 3.6 * time, 0.0])
    rolled = np.array(
        [-0.4 + 2.4 * np.cos(1 + 3 * time), 1.6 * np.sin(1 + 3 * time), 0]
    )
    person = plank_painter((60, 70, 190), "RUN")
    coat = plank_painter((170, 120, 70), "N 5")
    crate = plank_painter((90, 160, 100), "MOVE")
    ball = stone_painter((70, 140, 210), 0.35)(rng, 2.2, 1.1)
    return [
        *_box(rng, walked, (0.34, 0.3, 0.85), 0.0, 30, person),
        *_box(rng, walked, (0.5, 0.36, 0.8), 0.85, 30, coat),
        *_box(rng, slid, (0.6, 0.6, 0.55), 0.0, 70 * time, crate),
        Sphere(texture=ball, centre=rolled + (0, 0, 0.35), radius=0.35),
    ]


def where_seen(surfaces: list[Surface], things: list[Surface], camera: Camera) -> Mask:
    """The pixels of which half or more is of the things."""
    black, white = np.zeros((2, 2, 3), np.uint8), np.full((2, 2, 3), 255, np.uint8)
    plain = [_painted(s, black) for s in surfaces] + [
        _painted(t, white) for t in things
    ]
    drawn = render_image(plain, camera, np.zeros((2, 1, 3), np.uint8))
    seen: Mask = drawn[..., 0] >= 127
    return seen


def _painted(surface: Surface, texture: Bytes) -> Surface:
    return replace(surface, texture=texture)


def _box(rng, foot: Float64, size, low: float, turn_deg: float, paint) -> list[Surface]:
    """The sides and the top of an upright box."""
    cos, sin = np.cos(np.radians(turn_deg)), np.sin(np.radians(turn_deg))
    across = size[0] * np.array([cos, sin, 0.0])
    along = size[1] * np.array([-sin, cos, 0.0])
    up = np.array([0.0, 0.0, size[2]])
    top = foot + (0, 0, low) + up
    faces = [
        (-across - along, across, -up),
        (across - along, along, -up),
        (across + along, -across, -up),
        (-across + along, -along, -up),
        (-across + along, across, -along),
    ]
    return [
        Rectangle(
            texture=paint(
                rng, float(np.linalg.norm(right)), float(np.linalg.norm(down))
            ),
            corner=top + side / 2,
            right=right,
            down=down,
        )
        for side, right, down in faces
    ]


def camera_entry(camera: Camera) -> dict[str, object]:
    """A pose as reference.json holds it."""
    return {
        "R": camera.rotation.tolist(),
        "t": camera.translation.tolist(),
        "K": camera.intrinsics.tolist(),
        "dist": [0.0, 0.0, 0.0, 0.0],
        "width": camera.size[0],
        "height": camera.size[1],
    }
