"""A network of pointmaps that knows the demo scene, and is wrong by some degrees."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.spatial.transform import Rotation

from sfmprep.coords import Placed
from sfmprep.demo.courtyard import build_courtyard
from sfmprep.demo.raycast import Camera
from sfmprep.models.protocols import DenseImage, Points
from sfmprep.types import Float32, ImageBatch

_UNIT = 0.6  # of the network's lengths, in metres
_SIZE = (96, 72)


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """An image of the scene, by its number."""

    number: int
    placed: Placed
    keypoints: Float32
    num_bytes: int = 1000


class TruePointmaps:
    """Points of the courtyard of seed 0, in cameras that are turned by some degrees.

    Args:
        folder: Of the demo scene; its images are known by what they look like.
        degrees: By which the second camera of a pair is turned.
    """

    def __init__(self, folder: Path, degrees: float = 3.0) -> None:
        entries = json.loads((folder / "reference.json").read_text())["images"]
        self._cameras = [
            Camera(
                size=(entry["width"], entry["height"]),
                intrinsics=np.array(entry["K"]),
                rotation=np.array(entry["R"]),
                translation=np.array(entry["t"]),
            )
            for _, entry in sorted(entries.items())
        ]
        self._surfaces, _ = build_courtyard(0)
        self._degrees = degrees
        self._looks: dict[bytes, int] = {}
        self.looked_at: list[tuple[int, int]] = []

    def prepare(self, batch: ImageBatch) -> list[DenseImage]:
        """Images come in the order of the first pairs; see `know`."""
        return [
            Seen(
                number=self._looks[_look(pixels)],
                placed=Placed.of(batch, row),
                keypoints=np.ones((1, 2), np.float32),
            )
            for row, pixels in enumerate(batch.pixels)
        ]

    def know(self, number: int, batch: ImageBatch) -> None:
        """Tells what an image looks like."""
        self._looks[_look(batch.pixels[0])] = number

    def points(self, first: Seen, second: Seen) -> tuple[Points, Points]:
        """Both images' points in the first camera."""
        self.looked_at.append((first.number, second.number))
        one, other = self._cameras[first.number], self._cameras[second.number]
        axis = np.array([0.3, 1.0, 0.1]) / np.linalg.norm([0.3, 1.0, 0.1])
        off = Rotation.from_rotvec(np.radians(self._degrees) * axis).as_matrix()
        own = self._world(one) @ one.rotation.T + one.translation
        there = self._world(other) @ one.rotation.T + one.translation
        return self._told(own, first), self._told(there @ off.T, second)

    def _told(self, points: Float32, seen: Seen) -> Points:
        width, height = seen.placed.network_size
        x, y = np.meshgrid(np.arange(_SIZE[0]) + 0.5, np.arange(_SIZE[1]) + 0.5)
        xy = np.column_stack((x.ravel() / _SIZE[0], y.ravel() / _SIZE[1]))
        return Points(
            points=(points / _UNIT).astype(np.float32),
            confidence=np.full(len(points), 10, np.float32),
            is_sure=np.ones(len(points), bool),
            xy=(xy * [width, height]).astype(np.float32),
            placed=seen.placed,
        )

    def _world(self, camera: Camera) -> Float32:
        """What its pixels see, row by row; far away where that is the sky."""
        x, y = np.meshgrid(np.arange(_SIZE[0]) + 0.5, np.arange(_SIZE[1]) + 0.5)
        xy = np.stack((x, y, np.ones_like(x)), -1)
        xy[..., :2] *= np.array(camera.size) / _SIZE
        rays = xy @ np.linalg.inv(camera.intrinsics).T @ camera.rotation
        rays = np.moveaxis(rays, -1, 0).astype(np.float32)
        origin = camera.centre.astype(np.float32)[:, None, None]
        depth = np.full(rays.shape[1:], 100.0, np.float32)
        for surface in self._surfaces:
            hit, _, _ = surface.hit(origin, rays)
            depth = np.minimum(depth, hit)
        return np.moveaxis(origin + depth * rays, 0, -1).reshape(-1, 3)


def _look(pixels: Float32) -> bytes:
    return np.ascontiguousarray(pixels).tobytes()
