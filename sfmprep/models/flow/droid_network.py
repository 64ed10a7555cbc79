"""DROID's update operator: where pixels are in other frames, and how sure that is.

Paper: Teed, Deng, "DROID-SLAM: Deep Visual SLAM for Monocular, Stereo, and RGB-D
Cameras", NeurIPS 2021. Written from it and from the shapes of the official checkpoint
(princeton-vl/DROID-SLAM, BSD-3-Clause), whose keys are kept. Everything is at an eighth
of the picture's size.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.models.flow.correlation import NUM_LEVELS, Correlation
from sfmprep.models.flow.encoder import CELL, Block, Encoder, Norm

HIDDEN = 128
_WIDTHS = (32, 32, 64, 128)
_FEATURES, _CONTEXT = 128, 128
_RADIUS = 3
_DIVISOR = 16.0  # of products of features
_FARTHEST = 64.0  # cells; motion is told up to that
_MEAN, _DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
_DAMPING = 0.01


class Updated(NamedTuple):
    """What one update finds for E edges, and for the S frames that they come from."""

    hidden: Tensor  # [E, 128, h, w]
    delta: Tensor  # [E, 2, h, w] (x, y), cells
    weight: Tensor  # [E, 2, h, w] 0..1, of x and of y
    damping: Tensor  # [S, h, w] of inverse depths
    mask: Tensor  # [S, 576, h, w] logits, see `convex_upsampled`


class DroidNetwork(nn.Module):
    """Two encoders and the update operator; keys as in the official checkpoint."""

    mean: Tensor
    deviation: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.fnet = _encoder(_FEATURES, "instance")
        self.cnet = _encoder(HIDDEN + _CONTEXT, "none")
        self.update = _Update()
        for name, values in (("mean", _MEAN), ("deviation", _DEVIATION)):
            plane = torch.tensor(values).view(3, 1, 1)
            self.register_buffer(name, plane, persistent=False)

    def encode(
        self,
        rgb: Tensor,  # [B, 3, H, W] in 0..1, H and W multiples of 8
    ) -> tuple[Tensor, Tensor, Tensor]:
        """What depends on one picture alone.

        Returns:
            Features to correlate, the state to begin with, and the context; each
            [B, 128, H/8, W/8].
        """
        scaled = (rgb - self.mean) / self.deviation
        state, context = self.cnet(scaled).split((HIDDEN, _CONTEXT), 1)
        return self.fnet(scaled), state.tanh(), context.relu()

    @staticmethod
    def correlation(features: Tensor, others: Tensor) -> Correlation:
        """Of the features [E, 128, h, w] of both ends of edges."""
        return Correlation(features, others, _RADIUS, divisor=_DIVISOR)

    def forward(
        self,
        hidden: Tensor,  # [E, 128, h, w]
        context: Tensor,  # [E, 128, h, w] of the frames that edges come from
        seen: Tensor,  # [E, 196, h, w] correlations at the places now
        flow: Tensor,  # [E, 2, h, w] to the places now
        missing: Tensor,  # [E, 2, h, w] from there to the last targets
        source: Tensor,  # [E] 0..S-1, of the frames that edges come from
    ) -> Updated:
        """One step: where the targets are from the places now."""
        motion = torch.cat((flow, missing), 1).clamp(-_FARTHEST, _FARTHEST)
        updated: Updated = self.update(hidden, context, seen, motion, source)
        return updated


def _encoder(outputs: int, norm: Norm) -> Encoder:
    return Encoder(Block, _WIDTHS, outputs, norm)


def _two(inputs: int, between: int, outputs: int, kernel: int) -> nn.Sequential:
    """Two convolutions, the second of 3x3, with a rectifier between them."""
    return nn.Sequential(
        nn.Conv2d(inputs, between, kernel, padding=kernel // 2),
        nn.ReLU(),
        nn.Conv2d(between, outputs, 3, padding=1),
    )


class _Update(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.corr_encoder = _two(NUM_LEVELS * (2 * _RADIUS + 1) ** 2, 128, 128, 1)
        self.flow_encoder = _two(4, 128, 64, 7)
        self.gru = _Gru(HIDDEN, _CONTEXT + 128 + 64)
        self.delta = _two(HIDDEN, 128, 2, 3)
        self.weight = _two(HIDDEN, 128, 2, 3)
        self.agg = _Aggregation()

    def forward(
        self,
        hidden: Tensor,
        context: Tensor,
        seen: Tensor,
        motion: Tensor,
        source: Tensor,
    ) -> Updated:
        encoded = self.corr_encoder(seen).relu(), self.flow_encoder(motion).relu()
        hidden = self.gru(hidden, torch.cat((context, *encoded), 1))
        damping, mask = self.agg(hidden, source)
        weight = self.weight(hidden).sigmoid()
        return Updated(hidden, self.delta(hidden), weight, damping, mask)


class _Gru(nn.Module):
    """A gated recurrent unit whose gates also see the mean over the picture."""

    def __init__(self, hidden: int, inputs: int) -> None:
        super().__init__()
        self.w = nn.Conv2d(hidden, hidden, 1)
        for gate in "zrq":
            conv = nn.Conv2d(hidden + inputs, hidden, 3, padding=1)
            self.add_module(f"conv{gate}", conv)
            self.add_module(f"conv{gate}_glo", nn.Conv2d(hidden, hidden, 1))

    def forward(self, hidden: Tensor, x: Tensor) -> Tensor:
        mean = (self.w(hidden).sigmoid() * hidden).mean((2, 3), keepdim=True)

        def gate(name: str, state: Tensor) -> Tensor:
            here = self.get_submodule(f"conv{name}")(torch.cat((state, x), 1))
            everywhere = self.get_submodule(f"conv{name}_glo")(mean)
            summed: Tensor = here + everywhere
            return summed

        share, kept = gate("z", hidden).sigmoid(), gate("r", hidden).sigmoid()
        return (1 - share) * hidden + share * gate("q", kept * hidden).tanh()


class _Aggregation(nn.Module):
    """What all edges of a frame say about its inverse depths."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(HIDDEN, 128, 3, padding=1)
        self.conv2 = nn.Conv2d(128, 128, 3, padding=1)
        self.eta = nn.Sequential(nn.Conv2d(128, 1, 3, padding=1))
        self.upmask = nn.Sequential(nn.Conv2d(128, 9 * CELL**2, 1))

    def forward(self, hidden: Tensor, source: Tensor) -> tuple[Tensor, Tensor]:
        each = self.conv1(hidden).relu()
        count = torch.bincount(source).to(each)
        total = each.new_zeros(len(count), *each.shape[1:]).index_add(0, source, each)
        frames = self.conv2(total / count[:, None, None, None]).relu()
        damping: Tensor = _DAMPING * F.softplus(self.eta(frames))[:, 0]
        return damping, self.upmask(frames)
