"""DIS optical flow, which needs no weights.

Paper: Kroeger, Timofte, Dai, Van Gool, "Fast Optical Flow using Dense Inverse Search",
ECCV 2016. The operator is OpenCV's (Apache-2.0).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from sfmprep.config import DisConfig
from sfmprep.models.identity import identity
from sfmprep.models.protocols import FlowImage
from sfmprep.models.shared.precision import Precision
from sfmprep.types import Bytes, Float32, ImageBatch

_MIN_SIDE = 32  # pixels; it refuses smaller pictures
_BATCH_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class DisImage:
    """One picture in grey, padded where it is tiny."""

    grey: Bytes  # [H, W]
    size: tuple[int, int]  # (W, H) of the picture

    @property
    def num_bytes(self) -> int:
        """How much memory it holds."""
        return self.grey.nbytes


class Dis:
    """Optical flow by OpenCV's DIS, on the CPU whatever the device.

    Args:
        config: The settings.
        device: Without effect.
        precision: Without effect.

    Raises:
        ConfigError: half precision without a CUDA device.
    """

    def __init__(
        self, config: DisConfig, *, device: str = "cpu", precision: Precision = "auto"
    ) -> None:
        self.identity = identity(config, device=device, precision=precision)
        self.batch_size = _BATCH_SIZE
        self._preset = {
            "ultrafast": cv2.DISOPTICAL_FLOW_PRESET_ULTRAFAST,
            "fast": cv2.DISOPTICAL_FLOW_PRESET_FAST,
            "medium": cv2.DISOPTICAL_FLOW_PRESET_MEDIUM,
        }[config.preset]

    def prepare(self, batch: ImageBatch) -> list[DisImage]:
        """Makes each image grey; see `FlowEstimator.prepare`."""
        width, height = size = batch.network_size
        right, below = max(_MIN_SIDE - width, 0), max(_MIN_SIDE - height, 0)
        images = []
        for pixels in batch.pixels:
            grey = _grey(pixels)
            if right or below:
                grey = np.pad(grey, ((0, below), (0, right)), mode="edge")
            images.append(DisImage(grey=grey, size=size))
        return images

    def flow(
        self,
        pairs: Sequence[tuple[FlowImage, FlowImage]],
        starts: Sequence[Float32 | None] | None = None,
    ) -> list[Float32]:
        """Estimates the flow of each pair; see `FlowEstimator.flow`."""
        starts = [None] * len(pairs) if starts is None else starts
        return [
            self._one(_mine(first), _mine(second), start)
            for (first, second), start in zip(pairs, starts, strict=True)
        ]

    def _one(self, first: DisImage, second: DisImage, start: Float32 | None) -> Float32:
        if first.size != second.size:
            raise ValueError(f"{first.size=} but {second.size=}; expected the same")
        width, height = first.size
        if start is not None:
            shape = first.grey.shape
            margin = (0, shape[0] - height), (0, shape[1] - width), (0, 0)
            start = np.pad(start, margin, mode="edge")  # a copy: it is written into
        # made anew, for it goes on from what it found last
        made: Any = cv2.DISOpticalFlow_create(self._preset)  # type: ignore[attr-defined]
        found = made.calc(first.grey, second.grey, start)
        return np.ascontiguousarray(found[:height, :width], np.float32)


def _grey(pixels: Float32) -> Bytes:
    """An image [3, H, W] in 0..1 as grey levels [H, W]."""
    if np.array_equal(pixels[0], pixels[1]) and np.array_equal(pixels[0], pixels[2]):
        return np.asarray(np.rint(255 * pixels[0]), np.uint8)  # the same, and faster
    rgb = np.rint(255 * pixels.transpose(1, 2, 0)).astype(np.uint8)
    return np.asarray(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), np.uint8)


def _mine(image: FlowImage) -> DisImage:
    if not isinstance(image, DisImage):
        raise ValueError(f"got a {type(image).__name__} but expected a DisImage")
    return image
