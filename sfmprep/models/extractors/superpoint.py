"""SuperPoint: keypoints and 256-dimensional descriptors of one convolutional network.

Paper: DeTone, Malisiewicz, Rabinovich, "SuperPoint: Self-Supervised Interest Point
Detection and Description", CVPRW 2018. Written from it and from the shapes of the two
public checkpoints: Magic Leap's (`superpoint_v1.pth`, non-commercial) and the
re-training of rpautrat/SuperPoint (`superpoint_v6_from_tf.pth`, MIT); a file is told by
the names of its tensors. What is otherwise than in either: keypoints are strict maxima
of their window, without those that further rounds of suppression bring back on the
flanks of stronger ones; pictures are padded to whole cells, so that the last rows have
keypoints too.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.config import SuperPointConfig
from sfmprep.models.shared.adapter import Adapter, in_parts
from sfmprep.models.shared.extraction import (
    CELL,
    cell_heatmaps,
    features_of,
    padded_grey,
)
from sfmprep.models.shared.nms import best_of_each, strict_maxima
from sfmprep.models.shared.precision import Where
from sfmprep.models.shared.sampling import sample
from sfmprep.types import Features, ImageBatch

_NORM_EPS = 1e-3  # TensorFlow's, which the open weights were trained with


class SuperPoint:
    """Extracts SuperPoint keypoints, scored by their probability.

    The precision is that of the convolutions of the encoder; the heads are in float32.
    """

    def __init__(self, config: SuperPointConfig, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        tensors = self._adapter.tensors()
        is_v1 = "conv1a.weight" in tensors
        self._is_legacy = config.sampling == "legacy" or (
            config.sampling == "auto" and is_v1
        )
        self._network = self._adapter.load(
            SuperPointNetwork(has_norms=not is_v1),
            _renamed(tensors) if is_v1 else tensors,
        )
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(config.max_size)

    @in_parts
    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts 256-dimensional float32 unit descriptors; scores are in 0..1."""
        radius = self._config.nms_radius
        grey = padded_grey(self._adapter.pixels(batch), multiple=CELL)
        logits, dense = self._network(grey)
        heatmaps = cell_heatmaps(logits)
        found = strict_maxima(heatmaps, radius=radius, threshold=self._config.min_score)
        width, height = batch.network_size
        inside = (found[:, 1] < height - radius) & (found[:, 2] < width - radius)
        image, y, x = found[inside].unbind(1)
        scores = heatmaps[image, y, x]
        best = best_of_each(image, scores, limit=self._config.max_keypoints)
        image, xy = image[best], torch.stack((x[best], y[best]), 1)
        descriptors = self._describe(dense, image, xy)
        return features_of(batch, image, xy, scores[best], descriptors)

    def _describe(self, dense: Tensor, image: Tensor, xy: Tensor) -> Tensor:
        """Reads unit descriptors [N, 256] from dense ones [B, h, w, 256]."""
        size = torch.tensor((dense.shape[2], dense.shape[1]), device=xy.device)
        if self._is_legacy:
            place = (xy - 3.5) * (size - 1) / (CELL * size - 4.5)
        else:
            place = (xy + 0.5) / CELL - 0.5
        return F.normalize(sample(dense, image, place[:, 1], place[:, 0]), dim=1)


class SuperPointNetwork(nn.Module):
    """An encoder of four scales with two heads; keys as in the open checkpoint."""

    def __init__(self, *, has_norms: bool) -> None:
        super().__init__()

        def block(inputs: int, outputs: int, kernel: int = 3) -> _Block:
            return _Block(inputs, outputs, kernel, has_norm=has_norms)

        widths = (1, 64, 64, 128, 128)
        self.backbone = nn.Sequential(
            *(
                nn.Sequential(block(before, width), block(width, width))
                for before, width in zip(widths, widths[1:], strict=False)
            )
        )
        self.detector = nn.Sequential(block(128, 256), block(256, 65, kernel=1))
        self.descriptor = nn.Sequential(block(128, 256), block(256, 256, kernel=1))

    def prepare(self, dtype: torch.dtype) -> None:
        """Makes the network ready to be called, once, after its weights were loaded."""
        self.backbone.to(dtype)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        grey: Tensor,  # [B, 1, H, W] float32 in 0..1, H and W multiples of 8
    ) -> tuple[Tensor, Tensor]:
        """Computes the maps in float32, one cell for 8 by 8 pixels.

        Returns:
            1. logits [B, h, w, 65] of the cell's pixels, row by row, and of there being
               no keypoint,
            2. dense unit descriptors [B, h, w, 256].
        """
        x = grey.to(next(self.backbone.parameters()).dtype)
        for number, stage in enumerate(self.backbone):
            x = stage(F.max_pool2d(x, 2) if number else x)
        x = x.float()
        logits, dense = (
            head(x).permute(0, 2, 3, 1) for head in (self.detector, self.descriptor)
        )
        return logits, F.normalize(dense, dim=3)


class _Block(nn.Module):
    """A convolution, a rectifier where it is 3 by 3, and, where there is one, a norm.

    The norm comes after the rectifier, so it cannot be folded into the convolution.
    """

    def __init__(
        self, inputs: int, outputs: int, kernel: int, *, has_norm: bool
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2)
        self.bn = nn.BatchNorm2d(outputs, eps=_NORM_EPS) if has_norm else nn.Identity()
        self._is_rectified = kernel > 1

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        result: Tensor = self.bn(F.relu_(x) if self._is_rectified else x)
        return result


def _renamed(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of v1 under the names of the open checkpoint."""
    heads = {"P": "detector", "D": "descriptor"}

    def place(found: re.Match[str]) -> str:
        stage, step = found.group(1), "ab".index(found.group(2))
        room = heads.get(stage) or f"backbone.{int(stage) - 1}"
        return f"{room}.{step}.conv"

    return {
        re.sub(r"^conv([1-4PD])([ab])(?=\.)", place, name): tensor
        for name, tensor in tensors.items()
    }
