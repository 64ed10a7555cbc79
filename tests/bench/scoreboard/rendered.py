"""Rendered captures that are harder than the demo, with exact poses."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sfmprep.demo.courtyard import build_courtyard, camera_walk
from sfmprep.demo.raycast import (
    Camera,
    Rectangle,
    Sphere,
    Surface,
    look_at,
    render_image,
)
from sfmprep.demo.textures import (
    paint_masonry,
    paint_paving,
    paint_poster,
    paint_window,
    paste,
    stone_painter,
    to_texture,
)
from sfmprep.threads import thread_pool
from sfmprep.types import Float32

NUM_IMAGES = 24
NUM_AROUND = 36
SIZE = (960, 720)
_NOISE = 1.5  # grey levels


@dataclass(frozen=True)
class Lens:
    """OpenCV's k1, k2, p1, p2, k3, a focal length, and a principal point."""

    dist: tuple[float, float, float, float, float]
    focal: float  # widths of the image
    shift: tuple[float, float] = (0.0, 0.0)  # of the principal point, widths

    def matrix(self, size: tuple[int, int]) -> NDArray[np.float64]:
        """K for COLMAP pixels."""
        width, height = size
        x, y = width / 2 + self.shift[0] * width, height / 2 + self.shift[1] * width
        focal = self.focal * width
        return np.array([[focal, 0, x], [0, focal, y], [0, 0, 1]])


ORDINARY = Lens((-0.12, 0.05, 0.0005, -0.0003, 0.0), 0.85, (0.02, -0.015))
WIDE = Lens((-0.28, 0.09, 0.0, 0.0, -0.012), 0.55)


# ------------------------------------------------------------------------------- makers
def courtyard_through(lens: Lens, folder: Path) -> None:
    """The courtyard through a lens that bends straight lines."""
    surfaces, sky = build_courtyard(0)
    cameras = camera_walk(NUM_IMAGES, SIZE, 0)
    canvas, pixels = _canvas(lens)

    def photograph(k: int) -> Float32:
        pose = cameras[k]
        camera = replace(canvas, rotation=pose.rotation, translation=pose.translation)
        flat = render_image(surfaces, camera, sky)
        seen = cv2.remap(flat, pixels, np.empty(0), cv2.INTER_CUBIC)
        return np.asarray(seen, np.float32)

    entries = [_entry(camera, lens) for camera in cameras]
    _write(folder, entries, photograph)


def courtyard_with_passers_by(folder: Path) -> None:
    """The courtyard with five textured balls that are elsewhere in every photograph."""
    surfaces, sky = build_courtyard(0)
    cameras = camera_walk(NUM_IMAGES, SIZE, 0)
    rng = np.random.default_rng(0)
    painted = stone_painter((90, 120, 200), 0.3)(rng, 2.5, 1.3)

    def photograph(k: int) -> Float32:
        return render_image([*surfaces, *_balls(k, painted)], cameras[k], sky)

    lens = Lens((0, 0, 0, 0, 0), 0.85)
    _write(folder, [_entry(camera, lens) for camera in cameras], photograph)


def _balls(k: int, painted: NDArray[np.uint8]) -> Iterable[Surface]:
    """Those of one photograph, between the camera's walk and the walls."""
    rng = np.random.default_rng([1, k])
    for _ in range(5):
        place = np.array([*rng.uniform((-2.5, -2.0), (1.5, 2.5)), 0.4])
        yield Sphere(texture=painted, centre=place, radius=0.4)


def house(
    sides: Sequence[int],
    folder: Path,
    *,
    seed: int = 0,
    every: int = 1,
    size: tuple[int, int] = SIZE,
) -> None:
    """A walk around a square house on paving; sides of one number are painted alike.

    Args:
        sides: Of the south, east, north and west side.
        folder: See `Maker` in `scenes`.
        seed: Of what is painted and of the walk.
        every: Every so many-th image of the walk is written.
        size: (W, H) of the images, pixels.
    """
    surfaces, sky = _house(sides, seed), np.full((2, 1, 3), 215, np.uint8)
    angles = np.linspace(0, 2 * np.pi, NUM_AROUND, endpoint=False)
    rng = _rng(5, seed=seed)
    cameras = [
        look_at(
            np.array([9 * np.cos(angle), 9 * np.sin(angle), 1.7 + rng.normal(0, 0.1)]),
            np.array([0, 0, 1.6]) + rng.normal(0, 0.1, 3),
            size,
            rng.normal(0, 1.5),
        )
        for angle in angles
    ][::every]
    lens = Lens((0, 0, 0, 0, 0), 0.85)
    entries = [_entry(camera, lens) for camera in cameras]
    _write(folder, entries, lambda k: render_image(surfaces, cameras[k], sky))


def _rng(*key: int, seed: int) -> np.random.Generator:
    return np.random.default_rng([*key, seed] if seed else [*key])


def _house(sides: Sequence[int], seed: int) -> list[Surface]:
    long, high, yard = 6.0, 3.6, 24.0
    painted = {n: _front(n, long, high, seed) for n in set(sides)}
    half, down = long / 2, np.array([0.0, 0.0, -high])
    ground = paint_paving(_rng(3, seed=seed), yard, yard)
    surfaces: list[Surface] = [
        Rectangle(
            texture=ground,
            corner=np.array([-yard / 2, yard / 2, 0.0]),
            right=np.array([yard, 0.0, 0.0]),
            down=np.array([0.0, -yard, 0.0]),
        )
    ]
    for (x, y), number in zip(((0, -1), (1, 0), (0, 1), (-1, 0)), sides, strict=True):
        out, right = np.array([x, y, 0.0]), np.array([-y, x, 0.0])
        corner = half * out - half * right - down
        surfaces.append(
            Rectangle(
                texture=painted[number], corner=corner, right=long * right, down=down
            )
        )
    return surfaces


def _front(number: int, long: float, high: float, seed: int) -> NDArray[np.uint8]:
    """Bricks, two windows and a poster."""
    rng = _rng(4, number, seed=seed)
    colour = (100.0 + 15 * number, 118, 166 - 15 * number)
    wall = paint_masonry(rng, long, high, course=0.13, length=0.3, colour=colour)
    for x in (0.8, 3.9):
        paste(wall, paint_window(rng, 1.1, 1.4), x, 0.9)
    poster = paint_poster(
        rng, 0.7, 1.0, ("BAKERY", "REGATTA", "CHOIR", "ORGAN")[number]
    )
    paste(wall, poster, 2.6, 1.2)
    return wall


# ------------------------------------------------------------------------------- lenses
def _canvas(lens: Lens) -> tuple[Camera, NDArray[np.float32]]:
    """A pinhole camera that sees all that the lens does, and where it sees it.

    Returns:
        The camera, without a pose, and for each pixel of the lens the place on it
        [H, W, 2], for OpenCV, whose first pixel has its centre at 0.
    """
    columns, rows = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    bent = np.stack([columns, rows], axis=-1).reshape(-1, 1, 2)
    matrix, dist = lens.matrix(SIZE), np.array(lens.dist)
    until = (cv2.TERM_CRITERIA_EPS | cv2.TERM_CRITERIA_COUNT, 100, 1e-9)
    solved = cv2.undistortPoints(bent, matrix, dist, criteria=until)
    flat = np.asarray(solved, np.float64)[:, 0]
    focal, margin = matrix[0, 0], 4
    low, high = focal * flat.min(axis=0) - margin, focal * flat.max(axis=0) + margin
    size = math.ceil(high[0] - low[0]), math.ceil(high[1] - low[1])
    flat_matrix = np.array([[focal, 0, -low[0]], [0, focal, -low[1]], [0, 0, 1]])
    pixels = focal * flat - low - 0.5
    camera = Camera(
        size=size, intrinsics=flat_matrix, rotation=np.eye(3), translation=np.zeros(3)
    )
    return camera, pixels.astype(np.float32).reshape(SIZE[1], SIZE[0], 2)


# ------------------------------------------------------------------------------ writing
def _entry(camera: Camera, lens: Lens) -> dict[str, Any]:
    """The camera as an entry of reference.json."""
    return {
        "R": camera.rotation.tolist(),
        "t": camera.translation.tolist(),
        "K": lens.matrix(camera.size).tolist(),
        "dist": list(lens.dist),
        "width": camera.size[0],
        "height": camera.size[1],
    }


def _write(
    folder: Path,
    entries: Sequence[dict[str, Any]],
    photograph: Callable[[int], Float32],
) -> None:
    """Writes JPEG of quality 95, with a little blur and noise, and the reference."""
    (folder / "images").mkdir(parents=True)

    def write_image(k: int) -> None:
        blurred = np.asarray(cv2.GaussianBlur(photograph(k), (0, 0), 0.5))
        noise = np.random.default_rng([2, k]).normal(0, _NOISE, blurred.shape)
        path = str(folder / "images" / f"{k:04d}.jpg")
        image = to_texture(blurred + noise)
        cv2.imwrite(path, image, [cv2.IMWRITE_JPEG_QUALITY, 95])

    with thread_pool(min(4, os.cpu_count() or 1)) as pool:
        list(pool.map(write_image, range(len(entries))))
    images = {f"{k:04d}.jpg": entry for k, entry in enumerate(entries)}
    (folder / "reference.json").write_text(json.dumps({"images": images}), "utf-8")


courtyard_ordinary_lens = partial(courtyard_through, ORDINARY)
courtyard_wide_lens = partial(courtyard_through, WIDE)
TWIN_FRONTS, FOURFOLD = (0, 1, 0, 2), (0, 0, 0, 0)
twin_fronts, fourfold_house = partial(house, TWIN_FRONTS), partial(house, FOURFOLD)
