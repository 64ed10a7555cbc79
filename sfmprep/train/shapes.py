"""Drawn shapes whose corners and centres are known exactly, on any background.

After the synthetic shapes of DeTone, Malisiewicz, Rabinovich ("SuperPoint", CVPR
Workshops 2018). They teach where in a pixel a keypoint is, which photographs cannot.
"""

from __future__ import annotations

import cv2
import numpy as np
from numpy.typing import NDArray

from sfmprep.types import Float32

Bytes = NDArray[np.uint8]

_FINER = 8  # drawn so many times larger each way, then averaged
_MIN_DISTANCE = 6.0  # pixels between two keypoints; nearer ones are ambiguous


def draw_shapes(rng: np.random.Generator, size: int) -> tuple[Bytes, Float32]:
    """Draws dots, polygons and chequers on a smooth background.

    Returns:
        The picture [S, S, 3], and the keypoints [N, 2]: corners of polygons and
        chequers, centres of dots; pixel centres at integers.
    """
    fine = _FINER * size
    level = rng.integers(40, 216, 3)
    canvas = np.empty((fine, fine, 3), np.uint8)
    canvas[:] = level
    found: list[NDArray[np.float64]] = []
    free = np.ones((8, 8), bool)  # cells of the picture without a shape yet
    cell = fine / 8
    for _ in range(rng.integers(12, 40)):
        row, column = rng.integers(8, size=2)
        if not free[row, column]:
            continue
        free[row, column] = False
        middle = (np.array([column, row]) + rng.uniform(0.35, 0.65, 2)) * cell
        colour = tuple(int(c) for c in _contrasting(rng, level))
        kind = rng.random()
        if kind < 0.4:
            radius = int(rng.uniform(0.5, 3.5) * _FINER)
            cv2.circle(canvas, np.rint(middle).astype(int).tolist(), radius, colour, -1)
            found.append(np.rint(middle)[None])
        elif kind < 0.8:
            corners = _polygon(rng, middle, 0.33 * cell)
            cv2.fillPoly(canvas, [np.rint(corners).astype(np.int32)], colour)
            found.append(np.rint(corners))
        else:
            found.append(_chequer(rng, canvas, middle, 0.33 * cell, colour))
    picture = cv2.resize(canvas, (size, size), interpolation=cv2.INTER_AREA)
    if not found:
        return picture.astype(np.uint8), np.empty((0, 2), np.float32)
    # the centre of fine pixel k is at (k + 1/2) / _FINER - 1/2
    xy = ((np.concatenate(found) + 0.5) / _FINER - 0.5).astype(np.float32)
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    return picture.astype(np.uint8), xy[distance.min(1) > _MIN_DISTANCE]


def _contrasting(
    rng: np.random.Generator, level: NDArray[np.int64]
) -> NDArray[np.int64]:
    step = rng.integers(30, 120) * rng.choice((-1, 1))
    return np.clip(level + step + rng.integers(-15, 16, 3), 0, 255)


def _polygon(
    rng: np.random.Generator, middle: NDArray[np.float64], reach: float
) -> NDArray[np.float64]:
    count = rng.integers(3, 6)
    angles = 2 * np.pi * (np.arange(count) + rng.uniform(-0.25, 0.25, count)) / count
    angles += rng.uniform(0, 2 * np.pi)
    radii = reach * rng.uniform(0.6, 1, count)
    return middle + radii[:, None] * np.stack([np.cos(angles), np.sin(angles)], 1)


def _chequer(
    rng: np.random.Generator,
    canvas: Bytes,
    middle: NDArray[np.float64],
    reach: float,
    colour: tuple[int, ...],
) -> NDArray[np.float64]:
    """Two triangles that meet: their common corner is the saddle of a chequer."""
    middle = np.rint(middle)
    turn = rng.uniform(0, np.pi)
    ends = turn + np.array([0.0, 0.5, 1.0, 1.5]) * np.pi + rng.uniform(-0.2, 0.2, 4)
    outer = np.rint(middle + reach * np.stack([np.cos(ends), np.sin(ends)], 1))
    for first, second in ((0, 1), (2, 3)):
        triangle = np.stack([middle, outer[first], outer[second]]).astype(np.int32)
        cv2.fillPoly(canvas, [triangle], colour)
    return np.concatenate([middle[None], outer])
