"""Models that are no networks, as a user of the library might bring them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sfmprep.types import DenseMatches, Features, Float32, ImageBatch


class OwnExtractor:
    """The brightest pixels, described by a row of `dims` pixels that begins there."""

    def __init__(self, dims: int = 5, batch_size: int = 2, name: str = "own") -> None:
        self.identity = {"name": name, "weights_sha256": None}
        self.batch_size = batch_size
        self.dims = dims
        self.num_images = 0

    def extract(self, batch: ImageBatch) -> list[Features]:
        self.num_images += len(batch)
        return [
            self._features(pixels[0], (int(width), int(height)))
            for pixels, (width, height) in zip(batch.pixels, batch.sizes, strict=True)
        ]

    def _features(self, pixels: Float32, size: tuple[int, int]) -> Features:
        rows, columns = np.nonzero(pixels[:, : -self.dims] > 0.5)
        order = np.argsort(-pixels[rows, columns], kind="stable")[:50]
        rows, columns = rows[order], columns[order]
        described = [
            pixels[r, c : c + self.dims] for r, c in zip(rows, columns, strict=True)
        ]
        descriptors = np.array(described, np.float32).reshape(-1, self.dims)
        lengths = np.linalg.norm(descriptors, axis=1, keepdims=True)
        scale = size[0] / pixels.shape[1]
        return Features(
            xy=(scale * (np.column_stack([columns, rows]) + 0.5)).astype(np.float32),
            scores=pixels[rows, columns].astype(np.float32),
            descriptors=descriptors / lengths,
            image_size=size,
        )


@dataclass(frozen=True, eq=False)
class OwnImage:
    """What `OwnDenseMatcher` prepares: it knows its brightness."""

    brightness: float
    num_bytes: int = 1000

    @property
    def keypoints(self) -> Float32:
        """Anywhere."""
        return np.empty((0, 2), np.float32)


class OwnDenseMatcher:
    """One match a pair, whose score is the mean brightness of the second image."""

    batch_size = 2
    identity = {"name": "own dense", "weights_sha256": "ab"}

    def __init__(self) -> None:
        self.num_pairs = 0

    def prepare(self, batch: ImageBatch) -> list[OwnImage]:
        return [OwnImage(float(pixels.mean())) for pixels in batch.pixels]

    def match(self, pairs: Sequence[tuple[OwnImage, OwnImage]]) -> list[DenseMatches]:
        self.num_pairs += len(pairs)
        return [
            DenseMatches(
                xy0=np.full((1, 2), 3.5, np.float32),
                xy1=np.full((1, 2), 4.5, np.float32),
                scores=np.array([second.brightness], np.float32),
            )
            for _, second in pairs
        ]
