"""DISK: learned keypoints and 128-dimensional descriptors, one per pixel.

Paper: Tyszkiewicz, Fua, Trulls, "DISK: Learning local features with policy gradient",
NeurIPS 2020. Authors' code and weights: https://github.com/cvlab-epfl/disk,
Apache-2.0. The network is kornia's `feature.DISK` (Apache-2.0).
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from kornia.feature import DISK

from sfmprep.config import DiskConfig
from sfmprep.models.shared.adapter import Adapter, below, in_parts
from sfmprep.models.shared.extraction import features_of
from sfmprep.models.shared.nms import best_of_each, strict_maxima
from sfmprep.models.shared.precision import Where
from sfmprep.types import Features, ImageBatch

_MULTIPLE = 16  # of the network's input sides


class Disk:
    """Extracts DISK keypoints, scored by the network's logit.

    It is in float32 whatever the precision.
    """

    def __init__(self, config: DiskConfig, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        tensors = self._adapter.tensors()
        # The authors' checkpoint keeps the network beside the state of its training.
        self._network = self._adapter.load(
            DISK(), below(tensors, "extractor.") or tensors
        )
        self.identity = self._adapter.identity
        # Of the 129 maps of full resolution there are several at a time.
        self.batch_size = self._adapter.batch_size(config.max_size, share=4)

    @in_parts
    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts features with 128-dimensional float32 unit descriptors.

        Scores are logits.
        """
        width, height = batch.network_size
        pixels = self._adapter.pixels(batch)
        right, below = -width % _MULTIPLE, -height % _MULTIPLE
        if width + right == height + below == _MULTIPLE:
            right += _MULTIPLE  # the coarsest map is normalised, so it is not one cell
        maps, dense = self._network.heatmap_and_dense_descriptors(
            F.pad(pixels, (0, right, 0, below))
        )
        heatmaps = maps[:, 0, :height, :width]
        image, y, x = strict_maxima(
            heatmaps, radius=self._config.nms_radius, threshold=self._config.min_score
        ).unbind(1)
        scores = heatmaps[image, y, x]
        best = best_of_each(image, scores, limit=self._config.max_keypoints)
        image, y, x = image[best], y[best], x[best]
        xy, descriptors = torch.stack((x, y), dim=1), dense[image, :, y, x]
        return features_of(
            batch, image, xy, scores[best], F.normalize(descriptors, dim=1)
        )
