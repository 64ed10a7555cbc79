"""R2D2: keypoints that are repeatable, with descriptors that are reliable.

Paper: Revaud, Weinzaepfel, De Souza, Humenberger, "R2D2: Repeatable and Reliable
Detector and Descriptor", NeurIPS 2019. Written from it and from the shapes of the
public checkpoints of naver/r2d2 (CC BY-NC-SA 3.0: bring the file, or accept the
licence). What is otherwise: places at reduced scales take their half pixel along, which
is up to 1.5 pixels; of keypoints of several scales within a pixel only the best stays,
since tracks would join them; pixels of a plateau are none.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Unpack

import torch
import torch.nn.functional as F
from scipy.spatial import cKDTree
from torch import Tensor, nn

from sfmprep.config import R2d2Config
from sfmprep.models.shared.adapter import Adapter, below, in_parts
from sfmprep.models.shared.extraction import features_of, imagenet_normalised
from sfmprep.models.shared.nms import best_of_each, strict_maxima
from sfmprep.models.shared.precision import Where
from sfmprep.types import Features, ImageBatch

_STEP = 2**0.25  # between two scales
_NEAR = 1.0  # pixels; keypoints of several scales are one
_MEMORY = 6  # times that of ALIKED: no layer reduces the image


class R2d2:
    """Extracts R2D2 keypoints at several scales, scored by both maps together."""

    def __init__(self, config: R2d2Config, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        tensors = below(self._adapter.tensors(), "state_dict.")
        tensors = below(tensors, "module.") or self._adapter.tensors()
        first = tensors.get("ops.0.weight")
        width = len(first) if first is not None else 32
        self._network = self._adapter.load(R2d2Network(width), tensors)
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(config.max_size, share=_MEMORY)

    @in_parts
    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts 128-dimensional float32 unit descriptors; scores are in 0..1."""
        pixels = self._adapter.pixels(batch)
        found = [self._detect(level, pixels) for level in self._scales(pixels)]
        image, xy, scores, descriptors = (
            torch.cat(column) for column in zip(*found, strict=True)
        )
        limit = self._config.max_keypoints
        best = best_of_each(image, scores, limit=2 * limit)
        best = best[_apart(image[best], xy[best])]
        best = best[best_of_each(image[best], scores[best], limit=limit)]
        columns = image, xy, scores, descriptors
        return features_of(batch, *(column[best] for column in columns))

    def _scales(self, pixels: Tensor) -> Iterator[Tensor]:
        """The images, and reduced ones, each made from the one before."""
        height, width = pixels.shape[2:]
        scale = 1.0
        level = pixels
        while True:
            yield level
            scale /= _STEP
            if scale + 0.001 < self._config.min_size / max(height, width):
                return
            size = [max(1, round(side * scale)) for side in (height, width)]
            level = F.interpolate(level, size, mode="bilinear", align_corners=False)

    def _detect(
        self, level: Tensor, pixels: Tensor
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Keypoints of one scale: image, places in `pixels`, scores, descriptors."""
        dense, repeatability, reliability = self._network(level)
        found = strict_maxima(
            repeatability, radius=1, threshold=self._config.min_repeatability
        )
        image, y, x = found.unbind(1)
        is_reliable = reliability[image, y, x] >= self._config.min_reliability
        image, y, x = found[is_reliable].unbind(1)
        full, size = (
            torch.tensor(maps.shape[:1:-1], device=level.device)
            for maps in (pixels, level)
        )
        xy = (torch.stack((x, y), 1) + 0.5) * full / size - 0.5
        scores = repeatability[image, y, x] * reliability[image, y, x]
        return image, xy, scores, F.normalize(dense[image, :, y, x], dim=1)


class R2d2Network(nn.Module):
    """Nine convolutions at full resolution; keys as in the public checkpoints.

    Args:
        width: Channels of the first layers, 32, or 48 in the big network.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        plan = (  # kernel, dilation, channels, whether a rectifier follows
            *((3, 1, width, True), (3, 1, width, True), (3, 1, 2 * width, True)),
            *((3, 2, 2 * width, True), (3, 2, 4 * width, True)),
            *((3, 4, 4 * width, True), (2, 4, 4 * width, False)),
            *((2, 8, 4 * width, False), (2, 16, 128, None)),
        )
        inputs = 3
        for kernel, dilation, outputs, is_rectified in plan:
            padding = dilation * (kernel - 1) // 2
            layers.append(
                nn.Conv2d(inputs, outputs, kernel, padding=padding, dilation=dilation)
            )
            if is_rectified is not None:
                layers.append(nn.BatchNorm2d(outputs, affine=False))
            if is_rectified:
                layers.append(nn.ReLU(inplace=True))
            inputs = outputs
        self.ops = nn.Sequential(*layers)
        self.clf = nn.Conv2d(128, 2, 1)
        self.sal = nn.Conv2d(128, 1, 1)

    def forward(
        self,
        pixels: Tensor,  # [B, 3, H, W] in 0..1
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Computes the maps.

        Returns:
            1. descriptors [B, 128, H, W], not normalised,
            2. repeatability [B, H, W] in 0..1,
            3. reliability [B, H, W] in 0..1.
        """
        dense = self.ops(imagenet_normalised(pixels))
        squared = dense * dense
        peaks = F.softplus(self.sal(squared))[:, 0]
        return dense, peaks / (1 + peaks), self.clf(squared).softmax(1)[:, 1]


def _apart(image: Tensor, xy: Tensor) -> Tensor:
    """Which keypoints [N], best first in each image, have no better one within 1 px."""
    # images lie so far apart that no point is near one of another
    places = torch.cat((xy, 1e6 * image[:, None]), 1).double().cpu().numpy()
    near = cKDTree(places).query_pairs(_NEAR, output_type="ndarray")
    kept = torch.ones(len(places), dtype=torch.bool)
    kept[near.max(axis=1)] = False
    return kept.to(image.device)
