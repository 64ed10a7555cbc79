"""XFeat: fast learned keypoints and 64-dimensional descriptors.

Paper: Potje, Cadar, Araujo, Martins, Nascimento, "XFeat: Accelerated Features for
Lightweight Image Matching", CVPR 2024. Ported from the authors' repository
https://github.com/verlab/accelerated_features and from kornia's `feature.xfeat`, code
and weights Apache-2.0. What changed: sparse extraction only, so no fine matcher; batch
normalisation is folded into the convolutions; colours are averaged before the resize;
channels lie last throughout; keypoints are pixel centres, so the resize to multiples of
32 takes their half pixel along. New: the backbone in half precision.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import nn

from sfmprep.config import XFeatConfig
from sfmprep.models.shared.adapter import Adapter, in_parts
from sfmprep.models.shared.extraction import CELL, cell_heatmaps, features_of
from sfmprep.models.shared.folding import fold_batch_norms
from sfmprep.models.shared.nms import best_of_each, strict_maxima
from sfmprep.models.shared.precision import Where
from sfmprep.models.shared.sampling import sample
from sfmprep.types import Features, ImageBatch

FINE_MATCHER = "fine_matcher."
"""What the names of the tensors begin with that are XFeat*'s alone."""
_NMS_RADIUS = 2
_MULTIPLE = 32  # of the network's input sides


class XFeat:
    """Extracts XFeat keypoints, scored by heat map value times reliability.

    `min_score` applies to the heat map value alone. The precision is that of the
    backbone; the heads are in float32.
    """

    def __init__(self, config: XFeatConfig, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        self._network = load_network(self._adapter, self._adapter.tensors())
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(config.max_size)

    @in_parts
    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts 64-dimensional float32 unit descriptors; scores are in 0..1."""
        width, height = (
            max(_MULTIPLE, side // _MULTIPLE * _MULTIPLE) for side in batch.network_size
        )
        pixels = self._adapter.pixels(batch)
        grey = F.interpolate(
            pixels.mean(1, keepdim=True),
            (height, width),
            mode="bilinear",
            align_corners=False,
        )
        dense, logits, reliability = self._network(grey)
        heatmaps = cell_heatmaps(logits)
        image, y, x = strict_maxima(
            heatmaps, radius=_NMS_RADIUS, threshold=self._config.min_score
        ).unbind(1)
        # The positions that XFeat was trained with, not those of x / 8.
        row = y * (dense.shape[1] / (height - 1)) - 0.5
        column = x * (dense.shape[2] / (width - 1)) - 0.5
        reliable = sample(reliability, image, row, column)[:, 0]
        scores = heatmaps[image, y, x] * reliable
        best = best_of_each(image, scores, limit=self._config.max_keypoints)
        descriptors = sample(
            F.normalize(dense, dim=3),
            image[best],
            row[best],
            column[best],
            kernel="cubic",
        )
        xy = torch.stack((x[best], y[best]), dim=1)
        return features_of(
            *(batch, image[best], xy, scores[best], F.normalize(descriptors, dim=1)),
            size=(width, height),
        )


def load_network(adapter: Adapter, tensors: Mapping[str, torch.Tensor]) -> XFeatNetwork:
    """The network with its weights on its device, ready to be called.

    Raises:
        WeightsError: the tensors do not fit.
    """
    # The matcher that refines semi-dense matches shares the file.
    own = {k: tensor for k, tensor in tensors.items() if not k.startswith(FINE_MATCHER)}
    return adapter.load(XFeatNetwork(), own)


class XFeatNetwork(nn.Module):
    """The backbone with its keypoint and reliability heads.

    Keys are as in xfeat.pt until `prepare`, without which it cannot be called.
    """

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(1)
        self.skip1 = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 24, 1))
        self.block1 = nn.Sequential(
            _Layer(1, 4), _Layer(4, 8, stride=2), _Layer(8, 8), _Layer(8, 24, stride=2)
        )
        self.block2 = nn.Sequential(_Layer(24, 24), _Layer(24, 24))
        self.block3 = nn.Sequential(
            _Layer(24, 64, stride=2), _Layer(64, 64), _Layer(64, 64, kernel=1)
        )
        self.block4 = nn.Sequential(
            _Layer(64, 64, stride=2), _Layer(64, 64), _Layer(64, 64)
        )
        self.block5 = nn.Sequential(
            _Layer(64, 128, stride=2),
            _Layer(128, 128),
            _Layer(128, 128),
            _Layer(128, 64, kernel=1),
        )
        self.block_fusion = nn.Sequential(
            _Layer(64, 64), _Layer(64, 64), nn.Conv2d(64, 64, 1)
        )
        self.heatmap_head = nn.Sequential(
            _Layer(64, 64, kernel=1),
            _Layer(64, 64, kernel=1),
            nn.Conv2d(64, 1, 1),
            nn.Sigmoid(),
        )
        self.keypoint_head = nn.Sequential(
            _Layer(64, 64, kernel=1),
            _Layer(64, 64, kernel=1),
            _Layer(64, 64, kernel=1),
            nn.Conv2d(64, 65, 1),
        )

    def prepare(self, dtype: torch.dtype) -> None:
        """Makes the network ready to be called, once, after its weights were loaded.

        Args:
            dtype: Of the backbone; normalisation and heads stay in float32.
        """
        fold_batch_norms(self.eval())
        heads = (self.norm, self.heatmap_head, self.keypoint_head)
        for part in self.children():
            if part not in heads:
                part.to(dtype)
        # The many thin layers take a third less time on a CPU in this layout.
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(
        self,
        grey: torch.Tensor,  # [B, 1, H, W] float32, H and W multiples of 32
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Computes the maps in float32, one cell for 8 by 8 pixels.

        Returns:
            1. dense descriptors [B, H / 8, W / 8, 64], not normalised,
            2. logits [B, H / 8, W / 8, 65] of the cell's pixels, row by row, and of
               there being no keypoint,
            3. reliability [B, H / 8, W / 8, 1] in 0..1.
        """
        grey = self.norm(grey)
        x = grey.to(next(self.block1.parameters()).dtype)
        x2 = self.block2(self.block1(x) + self.skip1(x))
        x3 = self.block3(x2)
        x4 = self.block4(x3)
        x5 = self.block5(x4)
        size = x3.shape[-2:]
        x4 = F.interpolate(x4, size, mode="bilinear", align_corners=False)
        x5 = F.interpolate(x5, size, mode="bilinear", align_corners=False)
        dense = self.block_fusion(x3 + x4 + x5).float()
        maps = dense, self.keypoint_head(_cells(grey)), self.heatmap_head(dense)
        dense, logits, reliability = (each.permute(0, 2, 3, 1) for each in maps)
        return dense, logits, reliability


def _cells(grey: torch.Tensor) -> torch.Tensor:
    """Gathers the pixels of each cell, row by row: [B, 1, H, W] to [B, 64, h, w].

    As `pixel_unshuffle`, but with channels last.
    """
    count, _, height, width = grey.shape
    cells = grey.view(count, height // CELL, CELL, width // CELL, CELL)
    return cells.transpose(2, 3).flatten(3).permute(0, 3, 1, 2)


class _Layer(nn.Module):
    """Convolution, batch normalisation without affine part, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(
                inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False
            ),
            nn.BatchNorm2d(outputs, affine=False),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x)
        return result
