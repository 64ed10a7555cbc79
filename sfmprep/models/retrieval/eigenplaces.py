"""EigenPlaces: a residual network and a generalised mean over its last map.

Paper: Berton, Trivigno, Caputo, Masone, "EigenPlaces: Training Viewpoint Robust Models
for Visual Place Recognition", ICCV 2023. The backbone is that of He, Zhang, Ren, Sun,
"Deep Residual Learning for Image Recognition", CVPR 2016. Written from the papers and
from the shapes of the public checkpoints of gmberton/EigenPlaces (MIT).
"""

from __future__ import annotations

from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.config import EigenPlacesConfig
from sfmprep.models.shared.adapter import Adapter, in_parts
from sfmprep.models.shared.extraction import imagenet_normalised
from sfmprep.models.shared.folding import fold_batch_norms
from sfmprep.models.shared.precision import Where
from sfmprep.types import Float32, ImageBatch

_LAYERS = {18: (2, 2, 2, 2), 50: (3, 4, 6, 3)}
_WIDTHS = (64, 128, 256, 512)
_LEAST = 1e-6  # of what is raised to a power


class EigenPlaces:
    """Describes images; the precision is that of the backbone."""

    def __init__(self, config: EigenPlacesConfig, **where: Unpack[Where]) -> None:
        self._adapter = Adapter.of(config, **where)
        _, depth, dimensions = config.model.split("-")
        self._network = self._adapter.load(
            EigenPlacesNetwork(int(depth.removeprefix("r")), int(dimensions))
        )
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(config.max_size)

    @in_parts
    def embed(self, batch: ImageBatch) -> list[Float32]:
        """Describes each image; see `protocols.Retriever`."""
        pixels = imagenet_normalised(self._adapter.pixels(batch))
        return list(self._network(pixels).cpu().numpy())


class EigenPlacesNetwork(nn.Module):
    """Backbone and aggregation; keys as in the public files.

    Args:
        depth: Of the backbone, 18 or 50 layers.
        dimensions: Of the result.
    """

    def __init__(self, depth: int, dimensions: int) -> None:
        super().__init__()
        is_deep = depth > 18
        layers = []
        inputs = 64
        for width, count in zip(_WIDTHS, _LAYERS[depth], strict=True):
            blocks = []
            for number in range(count):
                stride = 2 if width > 64 and number == 0 else 1
                blocks.append(_Block(inputs, width, stride, is_deep=is_deep))
                inputs = 4 * width if is_deep else width
            layers.append(nn.Sequential(*blocks))
        self.backbone = nn.Sequential(
            nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False),
            nn.BatchNorm2d(64),
            nn.ReLU(inplace=True),
            nn.MaxPool2d(3, stride=2, padding=1),
            *layers,
        )
        self.aggregation = nn.ModuleDict(
            {"1": _GeneralisedMean(), "3": nn.Linear(inputs, dimensions)}
        )

    def prepare(self, dtype: torch.dtype) -> None:
        """Makes the network ready to be called, once, after its weights were loaded."""
        fold_batch_norms(self.backbone)
        self.backbone.to(dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """From [B, 3, H, W], normalised, to unit rows [B, D] in float32."""
        x = self.backbone(pixels.to(next(self.backbone.parameters()).dtype)).float()
        return self.aggregated(x)

    def aggregated(self, x: Tensor) -> Tensor:
        """From the last map [B, C, h, w] to unit rows."""
        mean = self.aggregation["1"](F.normalize(x, dim=1))
        return F.normalize(self.aggregation["3"](mean), dim=1)


class _GeneralisedMean(nn.Module):
    """The mean of powers, and the root of it (Radenović et al., TPAMI 2019)."""

    def __init__(self) -> None:
        super().__init__()
        self.p = nn.Parameter(torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        """From [B, C, h, w] to [B, C]."""
        result: Tensor = x.clamp(min=_LEAST).pow(self.p).mean((2, 3)).pow(1 / self.p)
        return result


class _Block(nn.Module):
    """A residual block of two convolutions, or of three with a narrow one amid."""

    def __init__(self, inputs: int, width: int, stride: int, *, is_deep: bool) -> None:
        super().__init__()
        outputs = 4 * width if is_deep else width
        first = 1 if is_deep else 3
        self.conv1 = nn.Conv2d(
            *(inputs, width, first),
            stride=1 if is_deep else stride,
            padding=first // 2,
            bias=False,
        )
        self.bn1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(
            *(width, width, 3),
            stride=stride if is_deep else 1,
            padding=1,
            bias=False,
        )
        self.bn2 = nn.BatchNorm2d(width)
        if is_deep:
            self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
            self.bn3 = nn.BatchNorm2d(outputs)
        self._is_deep = is_deep
        self.downsample = None
        if stride > 1 or inputs != outputs:
            self.downsample = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False),
                nn.BatchNorm2d(outputs),
            )

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.bn2(self.conv2(F.relu_(self.bn1(self.conv1(x)))))
        if self._is_deep:
            x = self.bn3(self.conv3(F.relu_(x)))
        return F.relu_(x + shortcut)
