"""DISK: learned keypoints and 128-dimensional descriptors, one per pixel.

Paper: Tyszkiewicz, Fua, Trulls, "DISK: Learning local features with policy gradient",
NeurIPS 2020. Authors' code and weights: https://github.com/cvlab-epfl/disk,
Apache-2.0. The network is kornia's `feature.DISK` (Apache-2.0).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from kornia.feature import DISK

from sfmprep import coords
from sfmprep.config import DiskConfig
from sfmprep.models.peaks import strict_maxima
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

    batch_size = 1  # images go through the network one by one

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

    @property
    def weights_sha256(self) -> str:
        """The checksum of the weights in use."""
        return self._sha256

    @torch.inference_mode()
    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts features with 128-dimensional float32 unit descriptors.

        Returns:
            Per image what `Extractor.extract` promises; scores are logits.
        """
        # One by one: a larger batch rounds otherwise, and needs 129 maps per image.
        return [self._extract_one(batch, item) for item in range(len(batch))]

    def _extract_one(self, batch: ImageBatch, item: int) -> Features:
        width, height = batch.network_size
        pixels = torch.from_numpy(batch.pixels[item : item + 1]).to(self._device)
        padding = (0, -width % _MULTIPLE, 0, -height % _MULTIPLE)
        maps, dense = self._network.heatmap_and_dense_descriptors(
            F.pad(pixels, padding)
        )
        heatmap = maps[0, 0, :height, :width]
        xy = strict_maxima(
            heatmap, radius=self._config.nms_radius, threshold=self._config.min_score
        )
        scores = heatmap[xy[:, 1], xy[:, 0]]
        scores, best = scores.topk(min(len(xy), self._config.max_keypoints))
        xy = xy[best]
        descriptors = F.normalize(dense[0, :, xy[:, 1], xy[:, 0]].T, dim=1)
        xy_network = coords.colmap_from_centre(xy.cpu().numpy())
        return Features(
            xy=coords.stored_from_network(xy_network, batch, item),
            scores=scores.cpu().numpy(),
            descriptors=descriptors.cpu().numpy(),
            image_size=(int(batch.sizes[item, 0]), int(batch.sizes[item, 1])),
            orientation=int(batch.orientations[item]),
        )
