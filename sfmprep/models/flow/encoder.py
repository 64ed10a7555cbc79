"""Encoders of pictures at an eighth of their size.

Paper: Teed, Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", ECCV
2020; DROID-SLAM (NeurIPS 2021) has the basic one with fewer channels.
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor, nn

CELL = 8  # pixels of the picture, a side, of one cell of the flow
_MIN_SIDE = 64  # pixels; below it the coarsest correlation would be empty

Norm = Literal["instance", "batch", "none"]


def padding_of(size: tuple[int, int]) -> tuple[int, int, int, int]:
    """What makes both sides (W, H) multiples of a cell: left, right, top, bottom."""
    found: list[int] = []
    for side in size:
        missing = max(-side % CELL, _MIN_SIDE - side)
        found += [missing // 2, missing - missing // 2]
    left, right, top, bottom = found
    return left, right, top, bottom


class Encoder(nn.Module):
    """Convolutions to an eighth of the size, in six blocks.

    Args:
        block: Of which it is made.
        widths: Channels of the stem and of the three layers.
        outputs: Channels of the result.
        norm: Which one follows each convolution.
    """

    def __init__(
        self,
        block: type[Block] | type[Bottleneck],
        widths: tuple[int, int, int, int],
        outputs: int,
        norm: Norm,
    ) -> None:
        super().__init__()
        stem, *rest = widths
        self.conv1 = nn.Conv2d(3, stem, 7, stride=2, padding=3)
        self.norm1 = _norm(norm, stem)
        before = stem
        for number, width in enumerate(rest, 1):
            stride = 1 if number == 1 else 2
            layer = nn.Sequential(
                block(before, width, stride, norm), block(width, width, 1, norm)
            )
            self.add_module(f"layer{number}", layer)
            before = width
        self.conv2 = nn.Conv2d(before, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        """[B, 3, H, W] becomes [B, outputs, H/8, W/8]."""
        x = self.norm1(self.conv1(x)).relu()
        for number in (1, 2, 3):
            x = self.get_submodule(f"layer{number}")(x)
        result: Tensor = self.conv2(x)
        return result


class Block(nn.Module):
    """Two convolutions beside a shortcut; rectified before the sum too."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride=stride, padding=1)
        self.norm1 = _norm(norm, outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1)
        self.norm2 = _norm(norm, outputs)
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride))
            self.norm3 = _norm(norm, outputs)
        self._has_shortcut = stride > 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] becomes [B, outputs, h/stride, w/stride]."""
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        past = self.norm3(self.downsample(x)) if self._has_shortcut else x
        result: Tensor = (past + y).relu()
        return result


class Bottleneck(nn.Module):
    """The same with three convolutions, the middle one a quarter as wide."""

    def __init__(self, inputs: int, outputs: int, stride: int, norm: Norm) -> None:
        super().__init__()
        width = outputs // 4
        self.conv1 = nn.Conv2d(inputs, width, 1)
        self.norm1 = _norm(norm, width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=1)
        self.norm2 = _norm(norm, width)
        self.conv3 = nn.Conv2d(width, outputs, 1)
        self.norm3 = _norm(norm, outputs)
        if stride > 1:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride))
            self.norm4 = _norm(norm, outputs)
        self._has_shortcut = stride > 1

    def forward(self, x: Tensor) -> Tensor:
        """[B, inputs, h, w] becomes [B, outputs, h/stride, w/stride]."""
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        y = self.norm3(self.conv3(y)).relu()
        past = self.norm4(self.downsample(x)) if self._has_shortcut else x
        result: Tensor = (past + y).relu()
        return result


def _norm(kind: Norm, width: int) -> nn.Module:
    match kind:
        case "instance":
            return nn.InstanceNorm2d(width)
        case "batch":
            return nn.BatchNorm2d(width)
        case "none":
            return nn.Identity()
