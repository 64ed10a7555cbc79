"""The network of ALIKED: feature pyramid, score map and sparse descriptors.

Paper: Zhao et al., "ALIKED: A Lighter Keypoint and Descriptor Extraction Network via
Deformable Transformation", IEEE Transactions on Instrumentation and Measurement 2023.
Original: https://github.com/Shiaoming/ALIKED at 683d7c6, BSD-3-Clause, code and weights
(text below). Ported from kornia 0.9 `kornia/feature/aliked`, Copyright 2018 Kornia
Team, Apache-2.0, itself from https://github.com/cvg/LightGlue, Apache-2.0.

Changed: batch normalisation folded into the convolutions; the full
resolution goes through in strips of rows, which stay in the cache; the first layer of
the score head runs on each pyramid level before upsampling, with which it commutes; the
upsampled, normalised feature map never exists: descriptors evaluate it only at the
pixels they read; bilinear sampling is one `embedding_bag`. Outputs are equal up to
rounding. New: the pyramid in half precision.
"""

# BSD 3-Clause License
#
# Copyright (c) 2022, Zhao Xiaoming
# All rights reserved.
#
# Redistribution and use in source and binary forms, with or without
# modification, are permitted provided that the following conditions are met:
#
# 1. Redistributions of source code must retain the above copyright notice,
#    this list of conditions and the following disclaimer.
# 2. Redistributions in binary form must reproduce the above copyright notice,
#    this list of conditions and the following disclaimer in the documentation
#    and/or other materials provided with the distribution.
# 3. Neither the name of the copyright holder nor the names of its contributors
#    may be used to endorse or promote products derived from this software
#    without specific prior written permission.
#
# THIS SOFTWARE IS PROVIDED BY THE COPYRIGHT HOLDERS AND CONTRIBUTORS "AS IS"
# AND ANY EXPRESS OR IMPLIED WARRANTIES, INCLUDING, BUT NOT LIMITED TO, THE
# IMPLIED WARRANTIES OF MERCHANTABILITY AND FITNESS FOR A PARTICULAR PURPOSE
# ARE DISCLAIMED. IN NO EVENT SHALL THE COPYRIGHT HOLDER OR CONTRIBUTORS BE
# LIABLE FOR ANY DIRECT, INDIRECT, INCIDENTAL, SPECIAL, EXEMPLARY, OR
# CONSEQUENTIAL DAMAGES (INCLUDING, BUT NOT LIMITED TO, PROCUREMENT OF
# SUBSTITUTE GOODS OR SERVICES; LOSS OF USE, DATA, OR PROFITS; OR BUSINESS
# INTERRUPTION) HOWEVER CAUSED AND ON ANY THEORY OF LIABILITY, WHETHER IN
# CONTRACT, STRICT LIABILITY, OR TORT (INCLUDING NEGLIGENCE OR OTHERWISE)
# ARISING IN ANY WAY OUT OF THE USE OF THIS SOFTWARE, EVEN IF ADVISED OF THE
# POSSIBILITY OF SUCH DAMAGE.

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sfmprep.models.shared.folding import fold_batch_norms
from sfmprep.models.shared.sampling import neighbours, sample, weighted_rows

_DIVISOR = 32  # the coarsest level has one pixel for this many
_STRIP_PIXELS = 1 << 16  # 32 channels of a strip are 8 MiB, of a last-level cache
_COLUMN_PIXELS = 1 << 13  # output pixels of a deformable convolution at a time
_KEYPOINTS = 1 << 10  # keypoints that are described at a time
_MORE_ON_GPU = 8  # times as many of both, where launching a kernel is what costs

# Channels of the four levels (the last is also the descriptor's) and sampling positions
# of a descriptor.
_SHAPES: dict[str, tuple[tuple[int, int, int, int], int]] = {
    "aliked-t16": ((8, 16, 32, 64), 16),
    "aliked-n16": ((16, 32, 64, 128), 16),
    "aliked-n16rot": ((16, 32, 64, 128), 16),
    "aliked-n32": ((16, 32, 64, 128), 32),
}


@dataclass(frozen=True, kw_only=True)
class Maps:
    """What the network knows of B images before keypoints are chosen."""

    scores: Tensor  # [B, H, W] in 0..1, float32
    levels: tuple[Tensor, ...]  # [B, C, h, w] each, channels last, of the padded images
    top: int  # rows of padding above each image
    left: int  # columns of padding beside it


class DeformableConv(nn.Module):
    """A 3x3 convolution whose nine taps move by predicted offsets, zero outside."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        self.offset_conv = nn.Conv2d(in_channels, 18, 3, padding=1)
        self.regular_conv = nn.Conv2d(
            in_channels, out_channels, 3, padding=1, bias=False
        )

    def forward(self, features: Tensor) -> Tensor:
        """Convolves features [B, C, h, w] to [B, out_channels, h, w]."""
        count, _, height, width = features.shape
        limit = max(height, width) / 4
        # In half precision a position far from the origin is off by 1/8 pixel.
        offset = self.offset_conv(features).float().clamp(-limit, limit)
        offset = offset.permute(0, 2, 3, 1)
        image = torch.arange(count, device=features.device)
        image = image.repeat_interleave(height * width)[:, None]
        tap = torch.arange(9, device=features.device)
        row = torch.arange(height, device=features.device)[:, None, None]
        column = torch.arange(width, device=features.device)[:, None]
        y = (offset[..., 0::2] + (row + tap // 3 - 1)).flatten(0, 2)  # [B * h * w, 9]
        x = (offset[..., 1::2] + (column + tap % 3 - 1)).flatten(0, 2)
        conv = self.regular_conv
        weight = conv.weight.permute(0, 2, 3, 1).flatten(1)  # [out_channels, 9 * C]
        pixels = features.permute(0, 2, 3, 1)
        out = [
            F.linear(sample(pixels, *part).flatten(1), weight, conv.bias)
            for part in _chunks(image, y, x, size=_COLUMN_PIXELS)
        ]
        return torch.cat(out).view(count, height, width, -1).permute(0, 3, 1, 2)


class Block(nn.Module):
    """Two 3x3 convolutions, with or without a residual connection."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        conv: Callable[[int, int], nn.Conv2d | DeformableConv],
        *,
        residual: bool = True,
    ) -> None:
        super().__init__()
        self.conv1 = conv(in_channels, out_channels)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.conv2 = conv(out_channels, out_channels)
        self.bn2 = nn.BatchNorm2d(out_channels)
        self.downsample = nn.Conv2d(in_channels, out_channels, 1) if residual else None

    def forward(self, features: Tensor) -> Tensor:
        """Maps [B, in_channels, h, w] to [B, out_channels, h, w], once folded."""
        out: Tensor = self.conv2(_selu_(self.conv1(features)))
        if self.downsample is not None:
            out += self.downsample(features)
        return _selu_(out)


class DescriptorHead(nn.Module):
    """The sparse deformable descriptor head (SDDH), without the sampling itself."""

    def __init__(self, dim: int, positions: int) -> None:
        super().__init__()
        self.offset_conv = nn.Sequential(
            nn.Conv2d(dim, 2 * positions, 3),
            nn.SELU(),
            nn.Conv2d(2 * positions, 2 * positions, 1),
        )
        self.sf_conv = nn.Conv2d(dim, dim, 1, bias=False)
        self.agg_weights = nn.Parameter(torch.zeros(positions, dim, dim))

    def offsets(self, patches: Tensor) -> Tensor:
        """Predicts [N, M, 2] (x, y) in pixels from 3x3 patches [N, 9, dim]."""
        get = self.offset_conv.get_parameter
        weight = get("0.weight").permute(0, 2, 3, 1).flatten(1)
        hidden = _selu_(F.linear(patches.flatten(1), weight, get("0.bias")))
        offset = F.linear(hidden, get("2.weight").flatten(1), get("2.bias"))
        return offset.view(len(patches), 2, len(self.agg_weights)).transpose(1, 2)

    def aggregate(self, samples: Tensor) -> Tensor:
        """Turns the features at the positions [N, M, dim] into unit rows [N, dim]."""
        hidden = _selu_(F.linear(samples, self.sf_conv.weight.flatten(1)))
        return F.normalize(hidden.flatten(1) @ self.agg_weights.flatten(0, 1), dim=1)


class AlikedNetwork(nn.Module):
    """ALIKED, with the keys of the authors' checkpoints until `prepare` folds them."""

    def __init__(self, model: str) -> None:
        super().__init__()
        (c1, c2, c3, dim), positions = _SHAPES[model]
        self.block1 = Block(3, c1, _conv3x3, residual=False)
        self.block2 = Block(c1, c2, _conv3x3)
        self.block3 = Block(c2, c3, DeformableConv)
        self.block4 = Block(c3, dim, DeformableConv)
        self.conv1 = nn.Conv2d(c1, dim // 4, 1, bias=False)
        self.conv2 = nn.Conv2d(c2, dim // 4, 1, bias=False)
        self.conv3 = nn.Conv2d(c3, dim // 4, 1, bias=False)
        self.conv4 = nn.Conv2d(dim, dim // 4, 1, bias=False)
        self.score_head = nn.Sequential(
            nn.Conv2d(dim, 8, 1, bias=False),
            nn.SELU(inplace=True),
            _conv3x3(8, 4),
            nn.SELU(inplace=True),
            _conv3x3(4, 4),
            nn.SELU(inplace=True),
            _conv3x3(4, 1),
        )
        self.desc_head = DescriptorHead(dim, positions)

    def prepare(self, dtype: torch.dtype) -> None:
        """Makes the network ready to be called, once, after its weights were loaded.

        Args:
            dtype: Of the pyramid: its convolutions and levels. Positions, score map,
                and the descriptors from their normalisation on stay in float32.
        """
        fold_batch_norms(self.eval())
        for name, part in self.named_children():
            if name.startswith(("block", "conv")):
                part.to(dtype)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor) -> Maps:
        """Computes the maps, pixels [B, 3, H, W] RGB in 0..1, any size."""
        height, width = pixels.shape[2:]
        rows, columns = -height % _DIVISOR, -width % _DIVISOR
        top, left = rows // 2, columns // 2
        padding = (left, columns - left, top, rows - top)
        image = F.pad(pixels, padding, mode="replicate").to(self.conv1.weight.dtype)
        # Twice as fast as planes of channels, and rows of pixels need no copy.
        image = image.contiguous(memory_format=torch.channels_last)
        x1 = _in_strips(self.block1, image, self.conv1.in_channels)
        x2 = _in_strips(self.block2, F.avg_pool2d(x1, 2), self.conv2.in_channels)
        x3 = self.block3(F.avg_pool2d(x2, 4))
        x4 = self.block4(F.avg_pool2d(x3, 4))
        # Level 1 stays without its last layer, which would double the largest tensor.
        levels = (
            x1,
            _selu_(self.conv2(x2)),
            _selu_(self.conv3(x3)),
            _selu_(self.conv4(x4)),
        )
        scores = self._scores(levels)[:, top : top + height, left : left + width]
        return Maps(scores=scores, levels=levels, top=top, left=left)

    def describe(self, maps: Maps, image: Tensor, xy: Tensor) -> Tensor:
        """Computes unit descriptors [N, dim] at keypoints, N may be 0.

        Args:
            maps: The result of `forward`.
            image: [N] int64, which of the maps' images a keypoint is of.
            xy: [N, 2] network pixels, pixel centres at integers, inside the image.
        """
        parts = _chunks(image, xy, size=_KEYPOINTS)
        return torch.cat([self._describe(maps, *part) for part in parts])

    def _describe(self, maps: Maps, image: Tensor, xy: Tensor) -> Tensor:
        height, width = maps.scores.shape[1:]
        first = (image * (height * width))[:, None]  # pixel of the keypoint's image
        # The original's bound: the last row and column are in no patch.
        corner = xy.long() - 1
        x = _window(corner[:, 0].clamp(0, max(width - 4, 0)), 3)[:, None, :]
        y = _window(corner[:, 1].clamp(0, max(height - 4, 0)), 3)[:, :, None]
        table, index = self._features(maps, (y * width + x).flatten(1) + first)
        limit = max(height, width) / 4
        offsets = self.desc_head.offsets(table[index]).clamp(-limit, limit)
        position = xy[:, None] + offsets  # [N, M, 2]
        index, weight = neighbours(position[..., 1], position[..., 0], height, width)
        table, index = self._features(maps, index + first[..., None])
        samples = weighted_rows(table, index, weight)
        return self.desc_head.aggregate(samples)

    def _features(self, maps: Maps, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """Evaluates the upsampled, normalised feature map where it is needed.

        Args:
            maps: The result of `forward`.
            pixels: Any shape; (image * height + row) * width + column, repeatedly.

        Returns:
            A table [K, dim] of the distinct pixels, and `pixels` as rows of the table.
        """
        pixels, index = torch.unique(pixels, return_inverse=True)
        height, width = maps.scores.shape[1:]
        x = pixels % width + maps.left
        row = torch.div(pixels, width, rounding_mode="floor")
        y = row % height + maps.top
        image = torch.div(row, height, rounding_mode="floor")
        fine, *coarse = maps.levels
        fine_rows = fine.permute(0, 2, 3, 1)[image, y, x]
        parts = [_selu_(F.linear(fine_rows, self.conv1.weight.flatten(1)))]
        for level in coarse:
            scale_y = (level.shape[2] - 1) / (fine.shape[2] - 1)
            scale_x = (level.shape[3] - 1) / (fine.shape[3] - 1)
            parts.append(
                sample(level.permute(0, 2, 3, 1), image, y * scale_y, x * scale_x)
            )
        table = torch.cat(parts, dim=1).float()
        return F.normalize(table, dim=1, out=table), index

    def _scores(self, levels: tuple[Tensor, ...]) -> Tensor:
        """Computes the score maps [B, H, W] of the padded images."""
        fine, *coarse = levels
        count, _, height, width = fine.shape
        first, *slices = self.score_head.get_parameter("0.weight").chunk(4, dim=1)
        vertical, wide = [], []
        for level, part in zip(coarse, slices, strict=True):
            rows = level.shape[2]
            unit = torch.eye(rows, device=level.device)[None]
            vertical.append(
                F.interpolate(unit, height, mode="linear", align_corners=True)[0].T
            )
            columns = F.interpolate(
                F.conv2d(level.float(), part),
                (rows, width),
                mode="bilinear",
                align_corners=True,
            )
            wide.append(_channels_beside(columns))
        scores = torch.empty(count, height, width, device=fine.device)
        for strip in _strips(fine, halo=3):
            hidden = _selu_(self.conv1(fine[:, :, strip.read])).float()
            out = F.conv2d(hidden, first)
            flat = _channels_beside(out)
            for matrix, columns in zip(vertical, wide, strict=True):
                # Of a strip's rows, only these of the level have a weight.
                ratio = (columns.shape[1] - 1) / (height - 1)
                used = slice(
                    max(int(strip.read.start * ratio) - 1, 0),
                    int((strip.read.stop - 1) * ratio) + 3,
                )
                upward = matrix[strip.read, used].expand(count, -1, -1)
                flat = torch.baddbmm(flat, upward, columns[:, used])
            out = flat.view(*flat.shape[:2], width, -1).permute(0, 3, 1, 2)
            logits = self.score_head[1:](out)
            scores[:, strip.write] = logits[:, 0, strip.keep].sigmoid()
        return scores


@dataclass(frozen=True)
class _Strip:
    """Rows to compute at a time, and those around them that the result depends on."""

    read: slice  # of the input
    keep: slice  # of what is computed from `read`
    write: slice  # of the output


def _strips(features: Tensor, *, halo: int) -> Iterator[_Strip]:
    """Cuts [B, C, h, w] into strips of rows; not on a GPU, where a cut costs time."""
    height, width = features.shape[2:]
    step = max(_STRIP_PIXELS // width, 8) if features.device.type == "cpu" else height
    for start in range(0, height, step):
        stop = min(start + step, height)
        low, high = max(start - halo, 0), min(stop + halo, height)
        yield _Strip(
            slice(low, high), slice(start - low, stop - low), slice(start, stop)
        )


def _in_strips(block: Block, features: Tensor, out_channels: int) -> Tensor:
    """Runs a block of plain convolutions on strips of features [B, C, h, w]."""
    count, _, height, width = features.shape
    out = features.new_empty(count, height, width, out_channels).permute(0, 3, 1, 2)
    for strip in _strips(features, halo=2):
        out[:, :, strip.write] = block(features[:, :, strip.read])[:, :, strip.keep]
    return out


def _chunks(*tensors: Tensor, size: int) -> Iterator[tuple[Tensor, ...]]:
    """Cuts tensors of equally many rows into chunks of as many, at least one."""
    if tensors[0].device.type != "cpu":
        size *= _MORE_ON_GPU
    return zip(*(torch.split(tensor, size) for tensor in tensors), strict=True)


def _channels_beside(features: Tensor) -> Tensor:
    """Views [B, C, h, w] with channels last as [B, h, w * C]."""
    return features.permute(0, 2, 3, 1).flatten(2)


def _window(start: Tensor, size: int) -> Tensor:
    """Counts up from each start [N] to [N, size]."""
    return start[:, None] + torch.arange(size, device=start.device)


def _conv3x3(in_channels: int, out_channels: int) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, padding=1, bias=False)


def _selu_(x: Tensor) -> Tensor:
    return F.selu(x, inplace=True)
