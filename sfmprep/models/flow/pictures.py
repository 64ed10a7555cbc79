"""Optical flow between grey pictures as they come, both ways."""

from __future__ import annotations

from collections import deque

import numpy as np

from sfmprep.models.protocols import FlowEstimator, FlowImage
from sfmprep.types import Bytes, Float32, ImageBatch

_KEPT = 4  # pictures, so that each of a film is prepared once


class FlowOfPictures:
    """An estimator of optical flow as what chooses the frames of a film asks for it.

    Args:
        estimator: What finds the flow.
    """

    def __init__(self, estimator: FlowEstimator) -> None:
        self._estimator = estimator
        self._prepared: deque[tuple[Bytes, FlowImage]] = deque(maxlen=_KEPT)

    def __call__(
        self, before: Bytes, now: Bytes, guess: Float32 | None = None
    ) -> tuple[Float32, Float32]:
        """The flow from one picture to the next, and back.

        Args:
            before: [H, W] grey.
            now: [H, W] of the same size.
            guess: [H, W, 2] to begin with, there; its opposite back. None for nothing.

        Returns:
            Both [H, W, 2], in pixels.

        Raises:
            ValueError: the pictures have two sizes.
            DeviceError: they do not fit into the memory of the device.
        """
        first, second = self._prepare(before), self._prepare(now)
        starts = [None, None] if guess is None else [guess, -guess]
        there, back = self._estimator.flow([(first, second), (second, first)], starts)
        return there, back

    def _prepare(self, picture: Bytes) -> FlowImage:
        for known, prepared in self._prepared:
            if known is picture:
                return prepared
        height, width = picture.shape
        plane = picture.astype(np.float32) / np.float32(255)
        batch = ImageBatch(
            pixels=np.broadcast_to(plane, (1, 3, height, width)).copy(),
            sizes=np.array([(width, height)], np.int32),
            orientations=np.ones(1, np.int32),
        )
        [prepared] = self._estimator.prepare(batch)
        self._prepared.append((picture, prepared))
        return prepared
