"""A semi-dense matcher without weights, for pipelines on the demo scene."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sfmprep.models.protocols import DenseImage
from sfmprep.types import DenseMatches, Float32, ImageBatch


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """An image by the mean of its pixels, which tells it from the others."""

    pixels: Float32
    keypoints: Float32
    num_bytes: int = 1000


class Flow:
    """Finds a grid's points in the other image by optical flow; needs no weights."""

    batch_size = 1
    identity = {"weights_sha256": "flow"}

    def __init__(self, step: int = 12) -> None:
        self._step = step  # pixels

    def prepare(self, batch: ImageBatch) -> list[DenseImage]:
        width, height = batch.network_size
        x, y = np.meshgrid(
            np.arange(24, width - 24, self._step),
            np.arange(24, height - 24, self._step),
        )
        grid = np.stack([x.ravel(), y.ravel()], 1).astype(np.float32) + np.float32(0.5)
        return [Seen(pixels=pixels.mean(0), keypoints=grid) for pixels in batch.pixels]

    def match(
        self, pairs: Sequence[tuple[DenseImage, DenseImage]]
    ) -> list[DenseMatches]:
        return [self._match(first, second) for first, second in pairs]

    def _match(self, first: Any, second: Any) -> DenseMatches:
        import cv2

        grey = [np.uint8(255 * each.pixels) for each in (first, second)]
        start = first.keypoints[:, None]
        there, found, _ = cv2.calcOpticalFlowPyrLK(*grey, start, None)
        back, again, _ = cv2.calcOpticalFlowPyrLK(*grey[::-1], there, None)
        away = np.linalg.norm(back - start, axis=2)[:, 0]
        good = (found[:, 0] > 0) & (again[:, 0] > 0) & (away < 0.5)
        return DenseMatches(
            xy0=start[good, 0],
            xy1=there[good, 0],
            scores=np.full(int(good.sum()), 0.9, np.float32),
        )
