"""What DUSt3R and MASt3R read off their tokens: points, confidence and descriptors.

DPT: Ranftl, Bochkovskiy, Koltun, "Vision Transformers for Dense Prediction", ICCV 2021.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.models.shared.vit import Mlp

_POINT = 4  # three coordinates and a confidence
LOCAL = 25  # a descriptor and its confidence


class RawMaps(NamedTuple):
    """Channels of every pixel before their activations."""

    points: Tensor  # [B, 4, H, W]
    local: Tensor | None  # [B, 25, H, W]


class LinearHead(nn.Module):
    """One layer that gives a token all pixels of its patch."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, _POINT * patch**2)
        self._patch = patch

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> RawMaps:
        """From the last of the tokens [B, N, C]."""
        cells = as_map(self.proj(tokens[-1]), grid)
        return RawMaps(F.pixel_shuffle(cells, self._patch), None)


class MatchingHead(nn.Module):
    """MASt3R's: points by a DPT, local features by two layers over a token."""

    def __init__(self, dpt: DptHead, width: int, patch: int) -> None:
        super().__init__()
        self.dpt = dpt
        self.head_local_features = Mlp(width, 4 * width, LOCAL * patch**2)
        self._patch = patch

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> RawMaps:
        """From all of them; the local features from the first and the last."""
        local = self.head_local_features(torch.cat((tokens[0], tokens[-1]), 2))
        local = F.pixel_shuffle(as_map(local, grid), self._patch)
        return RawMaps(self.dpt(tokens, grid), local)


class DptHead(nn.Module):
    """Fuses tokens of four depths, coarse to fine, to the pixels of the image."""

    def __init__(
        self,
        widths: Sequence[int],  # of the tokens
        hooks: Sequence[int],  # which tokens
        reduced: Sequence[int],  # channels of the four levels
        fused: int,
        last: int,
    ) -> None:
        super().__init__()
        ups: list[list[nn.Module]] = [
            [nn.ConvTranspose2d(reduced[0], reduced[0], 4, stride=4)],
            [nn.ConvTranspose2d(reduced[1], reduced[1], 2, stride=2)],
            [],
            [nn.Conv2d(reduced[3], reduced[3], 3, stride=2, padding=1)],
        ]
        self.act_postprocess = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, channels, 1), *up)
            for width, channels, up in zip(widths, reduced, ups, strict=True)
        )
        self.scratch = nn.ModuleDict()
        for level, channels in enumerate(reduced, 1):
            self.scratch[f"layer{level}_rn"] = nn.Conv2d(
                channels, fused, 3, padding=1, bias=False
            )
            self.scratch[f"refinenet{level}"] = _Fusion(fused)
        self.head = nn.Sequential(
            nn.Conv2d(fused, fused // 2, 3, padding=1),
            _Twice(),
            nn.Conv2d(fused // 2, last, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(last, _POINT, 1),
        )
        self._hooks = tuple(hooks)

    def forward(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> Tensor:
        """Channels [B, 4, H, W] from the tokens [B, N, C] after each block."""
        result: Tensor = self.head(self.fused(self.levels(tokens, grid)))
        return result

    def levels(self, tokens: Sequence[Tensor], grid: tuple[int, int]) -> list[Tensor]:
        """Four maps, of which the first is the finest."""
        return [
            self.scratch[f"layer{level}_rn"](reduce(as_map(tokens[hook], grid)))
            for level, (hook, reduce) in enumerate(
                zip(self._hooks, self.act_postprocess, strict=True), 1
            )
        ]

    def fused(self, levels: Sequence[Tensor]) -> Tensor:
        """One map, twice as fine as the first level."""
        x: Tensor = self.scratch["refinenet4"](levels[3], None)
        for level in (3, 2, 1):
            skip = levels[level - 1]
            # odd sides of the coarsest level were rounded up
            x = x[..., : skip.shape[2], : skip.shape[3]]
            x = self.scratch[f"refinenet{level}"](x, skip)
        return x


class _Twice(nn.Module):
    """Makes a map twice as fine; the corners stay."""

    def forward(self, x: Tensor) -> Tensor:
        return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=True)


class ResidualConv(nn.Module):
    """Two convolutions beside what they change."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """Maps [B, C, H, W]."""
        result: Tensor = x + self.conv2(F.relu(self.conv1(F.relu(x))))
        return result


class _Fusion(nn.Module):
    """Adds a finer level, and makes the sum twice as fine.

    That of the coarsest level has no finer one before it, but its checkpoint has the
    weights for one.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.out_conv = nn.Conv2d(channels, channels, 1)
        self.resConfUnit1 = ResidualConv(channels)
        self.resConfUnit2 = ResidualConv(channels)
        self._twice = _Twice()

    def forward(self, x: Tensor, skip: Tensor | None) -> Tensor:
        if skip is not None:
            x = x + self.resConfUnit1(skip)
        result: Tensor = self.out_conv(self._twice(self.resConfUnit2(x)))
        return result


def as_map(tokens: Tensor, grid: tuple[int, int]) -> Tensor:
    """Tokens [B, N, C] as [B, C, rows, columns]."""
    return tokens.mT.reshape(len(tokens), -1, *grid)
