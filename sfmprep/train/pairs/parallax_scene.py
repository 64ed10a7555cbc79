"""Random scenes on a photograph: cameras, surfaces and their relief, for `parallax`."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from sfmprep.train.pairs.views import transform
from sfmprep.types import Bytes, Float32, Float64, Mask

_LEAST_CROP = 0.5  # of the photograph's shorter side
_SEGMENT_SIDE = 96  # pixels; segments are found at this resolution
_SEEDS = 16  # of the segments
_MAX_RELIEF = 0.08  # of the inverse depth in the middle
# Of relief along epipolar lines. Below 1 no surface hides itself, and each step of the
# inversion reduces its error, which is at most some 15 pixels at first, by as much.
MAX_SLOPE = 0.2


@dataclass(frozen=True, kw_only=True, eq=False)
class Cameras:
    """The camera of the canvas, from which view 0 is cut, and that of view 1."""

    K: Float64  # of the canvas
    K1: Float64
    rotation: Float64  # [3, 3] cam1_from_cam0
    translation: Float64  # [3]

    @property
    def centre1(self) -> Float64:
        """Where camera 1 is, seen from camera 0."""
        centre: Float64 = -self.rotation.T @ self.translation
        return centre


@dataclass(frozen=True, eq=False)
class Surface:
    """A tilted plane, and where on the photograph it is."""

    plane: Float64  # [3] inverse depth = plane . (x, y, 1), canvas pixels
    mask: Bytes | None  # [C, C] 0 or 255; None is everywhere


def crop(rng: np.random.Generator, photograph: Bytes, side: int) -> Bytes:
    """A random square of a photograph, resized to [side, side, 3]."""
    height, width = photograph.shape[:2]
    shorter = min(height, width)
    cut = max(1, round(rng.uniform(_LEAST_CROP, 1) * shorter))
    x, y = rng.integers(width - cut + 1), rng.integers(height - cut + 1)
    how = cv2.INTER_AREA if cut > side else cv2.INTER_LINEAR
    part = photograph[y : y + cut, x : x + cut]
    return np.array(cv2.resize(part, (side, side), interpolation=how), np.uint8)


def sample_cameras(
    rng: np.random.Generator,
    size: int,
    margin: int,
    *,
    max_angle: float,
    max_roll: float,
    max_scale: float,
) -> Cameras:
    """Two cameras that look at the middle of the scene; angles in radians."""
    focal = size * rng.uniform(0.8, 1.6)
    focal1 = focal * np.exp(rng.uniform(-0.2, 0.2))
    scale = np.exp(rng.uniform(-1, 1) * np.log(max_scale))
    distance = focal1 / focal / scale
    angle, azimuth = rng.uniform(0, max_angle), rng.uniform(0, 2 * np.pi)
    sideways = np.array([np.cos(azimuth), np.sin(azimuth), 0])
    away = np.sin(angle) * sideways - np.array([0, 0, np.cos(angle)])
    centre = np.array([0, 0, 1]) + distance * away
    target = np.array([*rng.uniform(-0.15, 0.15, 2), 1])
    axis = (target - centre) / np.linalg.norm(target - centre)
    turn = np.cross([0, 0, 1], axis)
    sine = float(np.linalg.norm(turn))
    turn *= np.arctan2(sine, axis[2]) / max(sine, 1e-12)
    cam0_from_cam1 = cv2.Rodrigues(turn)[0]
    roll = cv2.Rodrigues(np.array([0, 0, rng.uniform(-max_roll, max_roll)]))[0]
    rotation = np.asarray(roll @ cam0_from_cam1.T, np.float64)
    middle = (size - 1) / 2
    return Cameras(
        K=_intrinsics(focal, middle + margin),
        K1=_intrinsics(focal1, middle),
        rotation=rotation,
        translation=-rotation @ centre,
    )


def _intrinsics(focal: float, middle: float) -> Float64:
    return np.array([[focal, 0, middle], [0, focal, middle], [0, 0, 1]], np.float64)


def sample_surfaces(
    rng: np.random.Generator, canvas: Bytes, other: Bytes, cameras: Cameras
) -> list[Surface]:
    """The background first; objects are painted onto `canvas` as `other` looks."""
    side = len(canvas)
    middle = np.full(2, (side - 1) / 2)
    background = _sample_plane(rng, middle, 1.0, 25, cameras)
    surfaces = [Surface(background, None)]

    def add(mask: Bytes, nearer: tuple[float, float]) -> None:
        box = cv2.boundingRect(mask)
        if box[2] and box[3]:
            centre = np.array([box[0] + box[2] / 2, box[1] + box[3] / 2])
            there = max(float(background @ [*centre, 1]), 0.2)
            inverse_depth = there * np.exp(rng.uniform(*nearer))
            plane = _sample_plane(rng, centre, inverse_depth, 35, cameras)
            surfaces.append(Surface(plane, mask))

    for mask in _segments(rng, canvas, int(rng.integers(1, 5))):
        add(mask, (0.0, 0.5))
    for _ in range(rng.integers(0, 3)):
        mask = _blob(rng, side)
        np.copyto(canvas, other, where=mask[..., None] > 0)
        add(mask, (0.2, 0.7))
    return surfaces


def _sample_plane(
    rng: np.random.Generator,
    xy: Float64,
    inverse_depth: float,
    max_tilt_deg: float,
    cameras: Cameras,
) -> Float64:
    """A plane through the point seen at `xy` that both cameras see from the front.

    Its normal is tilted against the mean of the directions towards the cameras.
    """
    point = np.linalg.solve(cameras.K, [*xy, 1]) / inverse_depth
    towards0, towards1 = -point, cameras.centre1 - point
    normal = towards0 / np.linalg.norm(towards0) + towards1 / np.linalg.norm(towards1)
    normal /= np.linalg.norm(normal)
    tilt = np.cross(normal, rng.normal(size=3))
    tilt *= np.tan(np.deg2rad(rng.uniform(0, max_tilt_deg))) / np.linalg.norm(tilt)
    normal += tilt
    return np.asarray(np.linalg.solve(cameras.K.T, normal / (normal @ point)))


def _segments(rng: np.random.Generator, canvas: Bytes, number: int) -> list[Bytes]:
    """Masks of connected parts whose borders follow the edges of the image."""
    side = _SEGMENT_SIDE
    small = cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA)
    seeds = rng.integers(1, side - 1, (_SEEDS, 2))
    markers = np.zeros((side, side), np.int32)
    markers[seeds[:, 1], seeds[:, 0]] = np.arange(1, _SEEDS + 1)
    cells = np.maximum(cv2.watershed(small, markers), 0).astype(np.uint8)
    # watershed leaves the lines between cells empty
    cells = np.where(cells, cells, cv2.dilate(cells, np.ones((3, 3), np.uint8)))
    anchors = seeds[: number + 1]
    away = ((seeds[:, None] - anchors) ** 2).sum(axis=2)
    part_of_cell = np.concatenate(([0], away.argmin(axis=1)))
    parts = part_of_cell[cells]
    return [_enlarged(parts == part, len(canvas)) for part in range(1, number + 1)]


def _enlarged(mask: Mask, side: int) -> Bytes:
    smooth = cv2.resize(mask.astype(np.uint8) * 255, (side, side))
    return np.asarray(cv2.threshold(smooth, 127, 255, cv2.THRESH_BINARY)[1], np.uint8)


def _blob(rng: np.random.Generator, side: int) -> Bytes:
    """The mask of a round or a jagged object."""
    corners = int(rng.integers(4, 24))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = side * rng.uniform(0.05, 0.15) * rng.uniform(0.6, 1.4, corners)
    rim = rng.uniform(0.15, 0.85, 2) * side + radii[:, None] * np.column_stack(
        (np.cos(angles), np.sin(angles))
    )
    mask = np.zeros((side, side), np.uint8)
    cv2.fillPoly(mask, [rim.astype(np.int32)], (255,))
    return mask


def sample_relief(
    rng: np.random.Generator, side: int, surfaces: list[Surface], cameras: Cameras
) -> Float32:
    """Smooth bumps of the inverse depth [C, C], too flat to hide each other."""
    coarse = int(rng.integers(3, 9))
    knots = rng.normal(size=(coarse, coarse)).astype(np.float32)
    bumps = cv2.resize(knots, (side, side), interpolation=cv2.INTER_CUBIC)
    slope = max(float(np.abs(np.diff(bumps, axis=axis)).max()) for axis in (0, 1))
    # the epipolar displacement per unit of inverse depth, over the canvas
    corners = np.array(
        [[x, y] for x in (0, side / 2, side) for y in (0, side / 2, side)]
    )
    farthest = 1.0
    for surface in surfaces:
        back, epipole = to_canvas(surface.plane, cameras)
        seen = transform(np.asarray(np.linalg.inv(back), np.float64), corners)
        shift = epipole[2] * transform(back, seen) - epipole[:2]
        farthest = max(farthest, float(np.hypot(*shift.T).max()))
    most = min(_MAX_RELIEF, MAX_SLOPE / (np.sqrt(2) * max(slope, 1e-6) * farthest))
    return np.asarray(bumps * np.float32(rng.uniform(0, most)), np.float32)


def to_canvas(plane: Float64, cameras: Cameras) -> tuple[Float64, Float64]:
    """The homography [3, 3] from view 1 to the canvas, and the epipole through it.

    A canvas pixel p with relief r is seen at q where, up to scale and with h the
    homography's image of q, p = h + r (e[2] h - e[:2]).
    """
    epipole = cameras.K1 @ cameras.translation
    forth = cameras.K1 @ cameras.rotation @ np.linalg.inv(cameras.K)
    back: Float64 = np.linalg.inv(forth + np.outer(epipole, plane)).astype(np.float64)
    return back, back @ epipole
