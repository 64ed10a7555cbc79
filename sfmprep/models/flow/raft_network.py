"""RAFT: recurrent updates of optical flow by look-ups in a pyramid of correlations.

Paper: Teed, Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", ECCV
2020. Written from it and from the shapes of the official checkpoints
(princeton-vl/RAFT, BSD-3-Clause), whose keys are kept.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.models.flow.correlation import NUM_LEVELS, Correlation
from sfmprep.models.flow.encoder import CELL, Block, Bottleneck, Encoder, Norm

_SHARPNESS = 0.25  # of the weights of upsampling; makes its gradients as large


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


class _BasicEncoder(Encoder):
    def __init__(self, outputs: int, norm: Norm) -> None:
        super().__init__(Block, (64, 64, 96, 128), outputs, norm)


class _SmallEncoder(Encoder):
    def __init__(self, outputs: int, norm: Norm) -> None:
        super().__init__(Bottleneck, (32, 32, 64, 96), outputs, norm)


class _BasicMotion(nn.Module):
    """What the correlation and the flow say."""

    def __init__(self) -> None:
        super().__init__()
        self.convc1 = nn.Conv2d(NUM_LEVELS * 81, 256, 1)
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
        self.convc1 = nn.Conv2d(NUM_LEVELS * 49, 96, 1)
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


def convex_upsampled(
    values: Tensor,  # [B, C, h, w]
    logits: Tensor,  # [B, 9 * 64, h, w]: by neighbour, then pixel of the cell
) -> Tensor:
    """Each pixel [B, C, 8h, 8w] a mean of the nine cells around it, weighted."""
    batch, channels, height, width = values.shape
    weights = logits.view(batch, 1, 9, CELL, CELL, height, width).softmax(2)
    near = F.unfold(values, 3, padding=1)
    near = near.view(batch, channels, 9, 1, 1, height, width)
    full: Tensor = (weights * near).sum(2).permute(0, 1, 4, 2, 5, 3)
    return full.reshape(batch, channels, CELL * height, CELL * width)


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
        return convex_upsampled(CELL * flow, _SHARPNESS * self.mask(hidden))


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
