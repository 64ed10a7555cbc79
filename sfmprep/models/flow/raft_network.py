"""RAFT: recurrent updates of optical flow by look-ups in a pyramid of correlations.

Paper: Teed, Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", ECCV
2020. Written from it and from the shapes of the official checkpoints
(princeton-vl/RAFT, BSD-3-Clause), whose keys are kept. What is otherwise: a look-up is
one window of whole pixels, blended, and outside the picture there are zeros; so small
pictures have no undefined coordinates.
"""

from __future__ import annotations

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

CELL = 8  # pixels of the picture, a side, of one cell of the flow
_NUM_LEVELS = 4
_MAX_VOLUME_BYTES = 1 << 28  # of the correlations of one pair that are kept
_MAX_WINDOW_BYTES = 1 << 26  # of the features that are gathered at once else
_SHARPNESS = 0.25  # of the weights of upsampling; makes its gradients as large

Norm = Literal["instance", "batch", "none"]


class RaftNetwork(nn.Module):
    """Two encoders and the update of the flow; keys as in the official checkpoints.

    Args:
        is_small: The small network of a million parameters, or the basic one.
    """

    def __init__(self, *, is_small: bool) -> None:
        super().__init__()
        self._radius = 3 if is_small else 4
        self._hidden = 96 if is_small else 128
        dim = 128 if is_small else 256
        context = 64 if is_small else 128
        encoder = _SmallEncoder if is_small else _BasicEncoder
        self.fnet = encoder(dim, "instance")
        self.cnet = encoder(self._hidden + context, "none" if is_small else "batch")
        self.update_block = _SmallUpdate() if is_small else _BasicUpdate()

    def encode(
        self,
        rgb: Tensor,  # [B, 3, H, W] in 0..1, H and W multiples of 8, 64 or more
    ) -> tuple[Tensor, Tensor]:
        """What depends on one picture alone.

        Returns:
            Features [B, D, H/8, W/8] to correlate, and the context of a first picture.
        """
        scaled = 2 * rgb - 1
        return self.fnet(scaled), self.cnet(scaled)

    def forward(
        self,
        features: Tensor,  # [B, D, h, w] of the first pictures
        others: Tensor,  # [B, D, h, w] of the second ones
        context: Tensor,  # [B, C, h, w] of the first
        start: Tensor | None,  # [B, 2, h, w] flow to begin with, in cells
        num_iterations: int,
    ) -> tuple[Tensor, Tensor]:
        """The flow from the first pictures to the second.

        Returns:
            Per cell [B, 2, h, w] in cells, and per pixel [B, 2, H, W] in pixels.
        """
        correlation = Correlation(features, others, self._radius)
        hidden = context[:, : self._hidden].tanh()
        rest = context[:, self._hidden :].relu()
        height, width = features.shape[2:]
        grid = torch.stack(
            torch.meshgrid(
                torch.arange(width, device=features.device),
                torch.arange(height, device=features.device),
                indexing="xy",
            )
        ).to(features)
        flow = torch.zeros_like(grid).repeat(len(features), 1, 1, 1)
        flow = flow if start is None else start.to(flow)
        for _ in range(num_iterations):
            hidden, delta = self.update_block(
                hidden, rest, correlation.at(grid + flow), flow
            )
            flow = flow + delta
        return flow, self.update_block.upsample(hidden, flow)


class Correlation:
    """The products of the features of all pixels of two pictures, on four scales.

    They are computed once where they fit, and else for each look-up anew, so that
    memory grows with the pixels and not with their square. Pooling the products over
    the second picture equals pooling its features.

    Args:
        features: [B, D, h, w] of the first pictures.
        others: [B, D, h, w] of the second ones.
        radius: Of the window of a look-up, in pixels of the level.
        max_bytes: Of the products of one pair that may be kept.
    """

    def __init__(
        self,
        features: Tensor,
        others: Tensor,
        radius: int,
        *,
        max_bytes: int = _MAX_VOLUME_BYTES,
    ) -> None:
        self._radius = radius
        self._features = features.flatten(2) / features.shape[1] ** 0.5
        self._levels = [others]
        for _ in range(_NUM_LEVELS - 1):
            self._levels.append(F.avg_pool2d(self._levels[-1], 2))
        num_products = sum(level[0, 0].numel() for level in self._levels)
        num_bytes = num_products * features[0, 0].numel() * features.element_size()
        self._volumes = (
            [
                self._features.transpose(1, 2) @ level.flatten(2)
                for level in self._levels
            ]
            if num_bytes <= max_bytes
            else None
        )

    def at(
        self,
        target: Tensor,  # [B, 2, h, w] place in the second picture, (x, y), in pixels
    ) -> Tensor:
        """The products around the target of each pixel, zero outside the picture.

        Returns:
            [B, C, h, w]: by level, then x of the window, then y.
        """
        found = []
        for number, level in enumerate(self._levels):
            bounds = torch.tensor(level.shape[:1:-1]).to(target)
            xy = target.flatten(2).transpose(1, 2) / 2**number  # [B, N, 2]
            # beyond this the whole window is outside; and integers do not overflow
            reach = self._radius + 2
            xy = torch.minimum(xy.clamp(min=-reach), bounds + reach)
            corner = xy.floor()
            window = self._window(number, corner.long())  # [B, N, x, y]
            x, y = (xy - corner)[..., None, None].unbind(2)
            window = window[:, :, :-1] * (1 - x) + window[:, :, 1:] * x
            window = window[..., :-1] * (1 - y) + window[..., 1:] * y
            found.append(window.flatten(2).transpose(1, 2))
        around: Tensor = torch.cat(found, 1).view(len(target), -1, *target.shape[2:])
        return around

    def _window(self, number: int, corner: Tensor) -> Tensor:
        """Products at the whole pixels around corners [B, N, 2]: [B, N, x, y]."""
        level = self._levels[number]
        height, width = level.shape[2:]
        steps = torch.arange(-self._radius, self._radius + 2, device=corner.device)
        x = corner[..., 0, None, None] + steps[:, None]
        y = corner[..., 1, None, None] + steps
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        place = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(2)
        if self._volumes is not None:
            values = self._volumes[number].gather(2, place)
        else:
            values = self._products(level.flatten(2), place)
        window: Tensor = values.view(inside.shape) * inside
        return window

    def _products(self, level: Tensor, place: Tensor) -> Tensor:
        """Products of each pixel with the pixels `place` [B, N, K] of a level."""
        batch, count, window = place.shape
        values: Tensor = self._features.new_empty(place.shape)
        step = max(1, _MAX_WINDOW_BYTES // (window * level.shape[1] * 4))
        for item in range(batch):
            for first in range(0, count, step):
                rows = slice(first, first + step)
                near = level[item][:, place[item, rows].flatten()]
                near = near.view(len(near), -1, window)
                here = self._features[item, :, rows]
                values[item, rows] = torch.einsum("dn,dnk->nk", here, near)
        return values


class _Encoder(nn.Module):
    """Convolutions to an eighth of the size, in six blocks."""

    def __init__(
        self,
        block: type[_Block] | type[_Bottleneck],
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
        x = self.norm1(self.conv1(x)).relu()
        for number in (1, 2, 3):
            x = self.get_submodule(f"layer{number}")(x)
        result: Tensor = self.conv2(x)
        return result


class _BasicEncoder(_Encoder):
    def __init__(self, outputs: int, norm: Norm) -> None:
        super().__init__(_Block, (64, 64, 96, 128), outputs, norm)


class _SmallEncoder(_Encoder):
    def __init__(self, outputs: int, norm: Norm) -> None:
        super().__init__(_Bottleneck, (32, 32, 64, 96), outputs, norm)


class _Block(nn.Module):
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
        y = self.norm1(self.conv1(x)).relu()
        y = self.norm2(self.conv2(y)).relu()
        past = self.norm3(self.downsample(x)) if self._has_shortcut else x
        result: Tensor = (past + y).relu()
        return result


class _Bottleneck(nn.Module):
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


class _BasicMotion(nn.Module):
    """What the correlation and the flow say."""

    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(_NUM_LEVELS * 81, 256, 1)
        self.convc2 = nn.Conv2d(256, 192, 3, padding=1)
        self.convf1 = nn.Conv2d(2, 128, 7, padding=3)
        self.convf2 = nn.Conv2d(128, 64, 3, padding=1)
        self.conv = nn.Conv2d(192 + 64, 128 - 2, 3, padding=1)

    def forward(self, correlation: Tensor, flow: Tensor) -> Tensor:
        seen = self.convc2(self.convc1(correlation).relu()).relu()
        moved = self.convf2(self.convf1(flow).relu()).relu()
        both = self.conv(torch.cat((seen, moved), 1)).relu()
        return torch.cat((both, flow), 1)


class _SmallMotion(nn.Module):
    """The same of the small network."""

    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(_NUM_LEVELS * 49, 96, 1)
        self.convf1 = nn.Conv2d(2, 64, 7, padding=3)
        self.convf2 = nn.Conv2d(64, 32, 3, padding=1)
        self.conv = nn.Conv2d(96 + 32, 82 - 2, 3, padding=1)

    def forward(self, correlation: Tensor, flow: Tensor) -> Tensor:
        seen = self.convc1(correlation).relu()
        moved = self.convf2(self.convf1(flow).relu()).relu()
        both = self.conv(torch.cat((seen, moved), 1)).relu()
        return torch.cat((both, flow), 1)


class _Gru(nn.Module):
    """A gated recurrent unit of one or more kernels (height, width), in turn.

    The gates of the n-th are `convz<n>`, and so on; those of a single one have no
    number.
    """

    def __init__(self, hidden: int, inputs: int, *kernels: tuple[int, int]) -> None:
        super().__init__()
        numbers = (
            [""] if len(kernels) == 1 else [str(k + 1) for k in range(len(kernels))]
        )
        self._numbers = numbers
        for number, (high, wide) in zip(numbers, kernels, strict=True):
            for gate in "zrq":
                conv = nn.Conv2d(
                    hidden + inputs,
                    hidden,
                    (high, wide),
                    padding=(high // 2, wide // 2),
                )
                self.add_module(f"conv{gate}{number}", conv)

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        for number in self._numbers:
            update, reset, new = (
                self.get_submodule(f"conv{gate}{number}") for gate in "zrq"
            )
            both = torch.cat((hidden, x), 1)
            share = update(both).sigmoid()
            kept = reset(both).sigmoid() * hidden
            proposed = new(torch.cat((kept, x), 1)).tanh()
            hidden = (1 - share) * hidden + share * proposed
        return hidden


class _FlowHead(nn.Module):
    def __init__(self, hidden: int, width: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(hidden, width, 3, padding=1)
        self.conv2 = nn.Conv2d(width, 2, 3, padding=1)

    def forward(self, hidden: Tensor) -> Tensor:
        result: Tensor = self.conv2(self.conv1(hidden).relu())
        return result


class _Update(nn.Module):
    """One step: from the state and what is seen to the next state and flow."""

    encoder: nn.Module
    gru: nn.Module
    flow_head: nn.Module

    def forward(
        self, hidden: Tensor, context: Tensor, correlation: Tensor, flow: Tensor
    ) -> tuple[Tensor, Tensor]:
        motion = self.encoder(correlation, flow)
        hidden = self.gru(hidden, torch.cat((context, motion), 1))
        return hidden, self.flow_head(hidden)


class _BasicUpdate(_Update):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = _BasicMotion()
        self.gru = _Gru(128, 128 + 128, (1, 5), (5, 1))
        self.flow_head = _FlowHead(128, 256)
        self.mask = nn.Sequential(
            nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(), nn.Conv2d(256, 9 * CELL**2, 1)
        )

    def upsample(self, hidden: Tensor, flow: Tensor) -> Tensor:
        """Each pixel a weighted mean of the flow of the nine cells around it."""
        batch, _, height, width = flow.shape
        weights = _SHARPNESS * self.mask(hidden)
        weights = weights.view(batch, 1, 9, CELL, CELL, height, width).softmax(2)
        near = F.unfold(CELL * flow, 3, padding=1)
        near = near.view(batch, 2, 9, 1, 1, height, width)
        full: Tensor = (weights * near).sum(2).permute(0, 1, 4, 2, 5, 3)
        return full.reshape(batch, 2, CELL * height, CELL * width)


class _SmallUpdate(_Update):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = _SmallMotion()
        self.gru = _Gru(96, 64 + 82, (3, 3))
        self.flow_head = _FlowHead(96, 128)

    def upsample(self, hidden: Tensor, flow: Tensor) -> Tensor:
        """Bilinear, corners on corners."""
        return CELL * F.interpolate(
            flow, scale_factor=CELL, mode="bilinear", align_corners=True
        )
