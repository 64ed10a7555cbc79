"""ALIKED as an extractor: keypoints from the score map, descriptors, COLMAP pixels."""

from __future__ import annotations

from typing import Unpack

import torch
from torch import Tensor

from sfmprep.config import AlikedConfig
from sfmprep.models.extractors.aliked_network import AlikedNetwork
from sfmprep.models.shared.adapter import Adapter, in_parts
from sfmprep.models.shared.extraction import features_of
from sfmprep.models.shared.nms import best_of_each, strict_maxima
from sfmprep.models.shared.precision import Where
from sfmprep.models.shared.sampling import sample
from sfmprep.types import Features, ImageBatch

_TEMPERATURE = 0.1  # of the soft argmax; the weights were trained with it


class Aliked:
    """ALIKED (Zhao et al., TIM 2023) with the authors' weights.

    A keypoint is a strict maximum of the score map within `nms_radius`, at least that
    far from the border and not below `min_score`. The `max_keypoints` highest are kept
    and moved to sub-pixel positions. Their final score is the map's there, which may be
    a little below the maximum and below `min_score`.

    This is kornia's selection with a threshold. The original differs in two ways: its
    non-maximum suppression adds points on the flanks of stronger ones, and where no
    score reaches the threshold it lowers it to the mean.
    """

    def __init__(self, config: AlikedConfig, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        self._network = self._adapter.load(AlikedNetwork(config.model))
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(config.max_size)

    @in_parts
    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts float32 unit descriptors [N, 128], [N, 64] for t16."""
        maps = self._network(self._adapter.pixels(batch))
        image, xy, scores = detect_keypoints(
            maps.scores,
            radius=self._config.nms_radius,
            min_score=self._config.min_score,
            max_keypoints=self._config.max_keypoints,
        )
        descriptors = self._network.describe(maps, image, xy)
        return features_of(batch, image, xy, scores, descriptors)


def detect_keypoints(
    scores: Tensor,  # [B, H, W]
    *,
    radius: int,
    min_score: float,
    max_keypoints: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the highest strict maxima of score maps, with sub-pixel positions.

    The position is the mean of the window's pixels, weighted by their scores' soft
    maximum (differentiable keypoint detection, DKD).

    Returns:
        The images [N] that keypoints are of, rising; xy [N, 2] with pixel centres at
        integers; bilinear scores [N], falling in each image. N is 0 where no maximum
        is above `min_score` or the maps are smaller than a window.
    """
    maxima = strict_maxima(scores, radius=radius, threshold=min_score)
    heights = scores[tuple(maxima.T)]
    maxima = maxima[best_of_each(maxima[:, 0], heights, limit=max_keypoints)]
    image, y, x = maxima.unbind(1)

    side = torch.arange(-radius, radius + 1, device=scores.device)
    windows = scores[
        image[:, None, None], y[:, None, None] + side[:, None], x[:, None, None] + side
    ]  # [N, 2 * radius + 1, 2 * radius + 1]
    soft = (windows.flatten(1) / _TEMPERATURE).softmax(dim=1).view_as(windows)
    shift = torch.stack((soft.sum(1) @ side.float(), soft.sum(2) @ side.float()), dim=1)
    xy = torch.stack((x, y), dim=1) + shift

    # To [-1, 1] and back, as in the original: the rounding decides which whole pixel
    # the descriptor truncates to.
    height, width = scores.shape[1:]
    extent = torch.tensor((width - 1, height - 1), device=scores.device)
    grid = xy / extent * 2 - 1
    xy = extent * (grid + 1) / 2
    final = sample(scores[..., None], image, xy[:, 1], xy[:, 0])[:, 0]
    order = best_of_each(image, final, limit=max_keypoints)
    return image[order], xy[order], final[order]
