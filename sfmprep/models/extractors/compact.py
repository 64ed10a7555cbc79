"""The features of this project's own training: `sfmprep.train` makes their weights.

64-dimensional descriptors and sub-pixel keypoints, small and fast enough for a CPU;
`sfmprep/weights/MODEL_CARD.md` says what they were trained on and how good they are.
"""

from __future__ import annotations

import torch
from torch import Tensor

from sfmprep.config import CompactConfig
from sfmprep.models.extractors.compact_network import CompactNetwork
from sfmprep.models.shared.extraction import best_batch_size, features_of, in_parts
from sfmprep.models.shared.nms import best_of_each, strict_maxima
from sfmprep.models.shared.precision import Precision, use_half
from sfmprep.types import Features, ImageBatch
from sfmprep.weights import load_strict, load_tensors, resolve_weights

_WINDOW = 2  # pixels around a maximum that its sub-pixel position is read from


class Compact:
    """Extracts the compact features.

    Args:
        config: The settings; scores are in 0..1.
        device: Where the network runs, as torch names it.
        precision: Of the convolutions; the descriptor's perceptron is in float32.

    Raises:
        ConfigError: half precision without a CUDA device.
        WeightsError: the weights cannot be had, or do not fit.
    """

    def __init__(
        self,
        config: CompactConfig,
        *,
        device: str = "cpu",
        precision: Precision = "auto",
    ) -> None:
        half = use_half(precision, device)
        weights = resolve_weights("compact", config.weights)
        network = CompactNetwork()
        load_strict(network, load_tensors(weights), weights)
        network.prepare(torch.float16 if half else torch.float32)
        self._config = config
        self._device = torch.device(device)
        self._network = network.to(self._device)
        self._sha256 = weights.sha256
        self.batch_size = best_batch_size(self._device, config.max_size)

    @property
    def weights_sha256(self) -> str:
        """The checksum of the weights in use."""
        return self._sha256

    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts features with 64-dimensional float32 unit descriptors.

        Returns:
            Per image what `Extractor.extract` promises; scores are in 0..1.

        Raises:
            DeviceError: a single image does not fit into the memory of the device.
        """
        return in_parts(self._extract, batch, batch_size=self.batch_size)

    @torch.inference_mode()
    def _extract(self, batch: ImageBatch) -> list[Features]:
        maps = self._network(torch.from_numpy(batch.pixels).to(self._device))
        image, xy, scores = detect(
            maps.logits,
            radius=self._config.nms_radius,
            min_score=self._config.min_score,
            max_keypoints=self._config.max_keypoints,
        )
        return features_of(
            batch,
            image=image,
            xy=xy,
            scores=scores,
            descriptors=self._network.describe(maps, image, xy),
        )


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
