"""The features of this project's own training: `sfmprep.train` makes their weights.

64-dimensional descriptors and sub-pixel keypoints, small and fast enough for a CPU;
`sfmprep/weights/MODEL_CARD.md` says what they were trained on and how good they are.
"""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from sfmprep.config import CompactConfig
from sfmprep.models.extractors.compact_network import CompactNetwork
from sfmprep.models.shared.adapter import Adapter, in_parts
from sfmprep.models.shared.extraction import features_of
from sfmprep.models.shared.nms import best_of_each, strict_maxima
from sfmprep.models.shared.precision import Where
from sfmprep.types import Features, ImageBatch

_WINDOW = 2  # pixels around a maximum that its sub-pixel position is read from


class Compact:
    """Extracts the compact features.

    The precision is that of the convolutions; the descriptor's perceptron is in
    float32.
    """

    def __init__(self, config: CompactConfig, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        self._network = self._adapter.load(CompactNetwork())
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(config.max_size)

    @in_parts
    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts 64-dimensional float32 unit descriptors; scores are in 0..1."""
        maps = self._network(self._adapter.pixels(batch))
        image, xy, scores = detect(
            maps.logits,
            radius=self._config.nms_radius,
            min_score=self._config.min_score,
            max_keypoints=self._config.max_keypoints,
        )
        descriptors = self._network.describe(maps, image, xy)
        return features_of(batch, image, xy, scores, descriptors)


def detect(
    logits: Tensor,  # [B, H, W]
    *,
    radius: int,  # _WINDOW or more
    min_score: float,
    max_keypoints: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the highest strict maxima of score maps, with sub-pixel positions.

    The position is the mean of the window's pixels, weighted by the soft maximum of
    their logits.

    Returns:
        The images [N] that keypoints are of, rising; xy [N, 2] with pixel centres at
        integers; scores [N] in 0..1, falling in each image.
    """
    threshold = torch.logit(torch.tensor(min_score), eps=1e-6).item()
    maxima = strict_maxima(logits, radius=radius, threshold=threshold)
    heights = logits[maxima.unbind(1)]
    chosen = best_of_each(maxima[:, 0], heights, limit=max_keypoints)
    image, y, x = maxima[chosen].unbind(1)
    xy = torch.stack((x, y), 1) + soft_offset(logits, image, y, x)
    return image, xy, heights[chosen].sigmoid()


def soft_offset(logits: Tensor, image: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """Reads where in the 5x5 window around whole pixels [N] the peak is.

    Returns:
        [N, 2] (x, y) from the pixel's centre, pixels.
    """
    step = torch.arange(-_WINDOW, _WINDOW + 1, device=logits.device)
    rows = y[:, None, None] + step[:, None]
    windows = logits[image[:, None, None], rows, x[:, None, None] + step]
    soft = windows.flatten(1).softmax(1).view_as(windows)
    return torch.stack((soft.sum(1) @ step.float(), soft.sum(2) @ step.float()), 1)
