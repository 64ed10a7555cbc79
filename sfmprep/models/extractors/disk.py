"""DISK: learned keypoints and 128-dimensional descriptors, one per pixel.

Paper: Tyszkiewicz, Fua, Trulls, "DISK: Learning local features with policy gradient",
NeurIPS 2020. Authors' code and weights: https://github.com/cvlab-epfl/disk,
Apache-2.0. The network is kornia's `feature.DISK` (Apache-2.0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from kornia.feature import DISK

from sfmprep.config import DiskConfig
from sfmprep.models.shared.extraction import best_batch_size, features_of, in_parts
from sfmprep.models.shared.nms import best_of_each, strict_maxima
from sfmprep.types import Features, ImageBatch
from sfmprep.weights import load_strict, load_tensors, resolve_weights

_MULTIPLE = 16  # of the network's input sides
_CHECKPOINT_PREFIX = "extractor."


class Disk:
    """Extracts DISK keypoints, scored by the network's logit.

    Args:
        config: The settings.
        device: Where the network runs, as torch names it.

    Raises:
        WeightsError: the weights cannot be had, or do not fit.
    """

    def __init__(self, config: DiskConfig, *, device: str = "cpu") -> None:
        weights = resolve_weights("disk", config.weights)
        tensors = load_tensors(weights)
        # The authors' checkpoint keeps the network beside the state of its training.
        nested = {
            key.removeprefix(_CHECKPOINT_PREFIX): tensor
            for key, tensor in tensors.items()
            if key.startswith(_CHECKPOINT_PREFIX)
        }
        network = DISK()
        load_strict(network, nested or tensors, weights)
        self._config = config
        self._device = torch.device(device)
        self._network = network.eval().to(self._device)
        self._sha256 = weights.sha256
        # Of the 129 maps of full resolution there are several at a time.
        self.batch_size = max(1, best_batch_size(self._device, config.max_size) // 4)

    @property
    def weights_sha256(self) -> str:
        """The checksum of the weights in use."""
        return self._sha256

    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts features with 128-dimensional float32 unit descriptors.

        Returns:
            Per image what `Extractor.extract` promises; scores are logits.

        Raises:
            DeviceError: a single image does not fit into the memory of the device.
        """
        return in_parts(self._extract, batch, batch_size=self.batch_size)

    @torch.inference_mode()
    def _extract(self, batch: ImageBatch) -> list[Features]:
        width, height = batch.network_size
        pixels = torch.from_numpy(batch.pixels).to(self._device)
        # Its coarsest map is normalised over its area, so one cell alone is none.
        to_right = max(-width % _MULTIPLE, 2 * _MULTIPLE - width)
        padding = (0, to_right, 0, -height % _MULTIPLE)
        maps, dense = self._network.heatmap_and_dense_descriptors(
            F.pad(pixels, padding)
        )
        heatmaps = maps[:, 0, :height, :width]
        image, y, x = strict_maxima(
            heatmaps, radius=self._config.nms_radius, threshold=self._config.min_score
        ).unbind(1)
        scores = heatmaps[image, y, x]
        best = best_of_each(image, scores, limit=self._config.max_keypoints)
        image, y, x = image[best], y[best], x[best]
        return features_of(
            batch,
            image=image,
            xy=torch.stack((x, y), dim=1),
            scores=scores[best],
            descriptors=F.normalize(dense[image, :, y, x], dim=1),
        )
