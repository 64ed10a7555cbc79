"""The layers of S2LD's network; where they come from is told in `s2ld_network.py`."""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn

MAX_OFFSET = 1.2
"""Half cells: a keypoint may leave its cell by a fifth."""
_HEADS = 8
_EPSILON = 1e-6  # of sums over the keys


def _layer(
    inputs: int, outputs: int, kernel: int = 3, stride: int = 1
) -> nn.Sequential:
    """Convolution, batch normalisation, ReLU."""
    return nn.Sequential(
        nn.Conv2d(
            inputs, outputs, kernel, stride=stride, padding=kernel // 2, bias=False
        ),
        nn.BatchNorm2d(outputs),
        nn.ReLU(inplace=True),
    )


class KeypointDetector(nn.Module):
    """Finds one keypoint in every cell, and how good it is."""

    def __init__(self) -> None:
        super().__init__()
        self.conv_c0 = _layer(256, 256)
        self.conv_c1 = _layer(256, 128)
        self.conv_f0 = _layer(128, 128, kernel=5, stride=2)
        self.conv_f1 = _layer(128, 64, stride=2)
        self.k_regressor = self._regressor(2)
        self.s_regressor = self._regressor(1)

    @staticmethod
    def _regressor(outputs: int) -> nn.Sequential:
        last = nn.Sequential(nn.Conv2d(128, outputs, 3, padding=1, bias=False))
        return nn.Sequential(_layer(192, 256), _layer(256, 128), last)

    def forward(
        self, coarse: torch.Tensor, fine: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns offsets [N, 2, h, w] in half cells and scores [N, 1, h, w]."""
        x = torch.cat(
            (self.conv_c1(self.conv_c0(coarse)), self.conv_f1(self.conv_f0(fine))),
            dim=1,
        )
        return (
            self.k_regressor(x).float().tanh() * MAX_OFFSET,
            self.s_regressor(x).float().sigmoid(),
        )


class FeatureAdjuster(nn.Module):
    """Tells the descriptor of a cell where its keypoint is."""

    def __init__(self) -> None:
        super().__init__()
        self.c_convs = nn.Sequential(_layer(258, 384), _layer(384, 256))

    def forward(self, coarse: torch.Tensor, offsets: torch.Tensor) -> torch.Tensor:
        """Returns what takes the place of the coarse map, [N, 256, h, w]."""
        x = torch.cat((coarse, offsets.to(coarse.dtype)), dim=1)
        return cast(torch.Tensor, self.c_convs(x))


class Transformer(nn.Module):
    """Layers in which images look at themselves and at each other, by turns."""

    def __init__(self, width: int, *, num_layers: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Attention(width) for _ in range(num_layers))

    def forward(
        self,
        x0: torch.Tensor,  # [N, L, D]
        x1: torch.Tensor,  # [N, S, D]
        *,
        first_layer: int = 0,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Returns both as the layers from `first_layer` on leave them.

        The second one sees the updated first one.
        """
        for index, layer in enumerate(self.layers):
            if index < first_layer:
                continue
            if index % 2 == 0:
                x0 = layer(x0, x0)
                x1 = layer(x1, x1)
            else:
                x0 = layer(x0, x1)
                x1 = layer(x1, x0)
        return x0, x1


class _Attention(nn.Module):
    """Linear attention (Katharopoulos et al., ICML 2020) and a perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, width, bias=False)
        self.v_proj = nn.Linear(width, width, bias=False)
        self.merge = nn.Linear(width, width, bias=False)
        self.mlp = nn.Sequential(
            nn.Linear(2 * width, 2 * width, bias=False),
            nn.ReLU(inplace=True),
            nn.Linear(2 * width, width, bias=False),
        )
        self.norm1 = nn.LayerNorm(width)
        self.norm2 = nn.LayerNorm(width)

    def forward(
        self,
        x: torch.Tensor,  # [N, L, D]
        source: torch.Tensor,  # [N, S, D]
    ) -> torch.Tensor:
        """Returns `x` with what it found in `source` added, [N, L, D]."""
        message: torch.Tensor = self.norm1(self._attend(x, source))
        message = self.norm2(self.mlp(torch.cat((x, message), dim=2)))
        return x + message

    def _attend(self, x: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        queries = F.elu(self.q_proj(x)) + 1
        keys = F.elu(self.k_proj(source)) + 1
        count, width = source.shape[1:]
        head = torch.arange(_HEADS, device=x.device).repeat_interleave(width // _HEADS)
        own = F.one_hot(head, _HEADS).to(keys.dtype)  # [D, heads]
        total = (queries @ (keys.mean(1)[:, :, None] * own)).float() + _EPSILON / count
        queries = torch.unflatten(queries, 2, (_HEADS, -1)).float() / total[..., None]
        queries = queries.to(keys.dtype)  # [N, L, heads, D / heads]
        # Means in place of sums, halved between both factors, suit half precision.
        scale = count**-0.5
        keys, source = keys * scale, source * scale
        if count > width:
            # Sums first, projections to values and to the message then: few products.
            split = (_HEADS, -1)
            summary = torch.unflatten(keys.mT @ source, 1, split)  # [N, heads, ., D]
            summary = summary @ torch.unflatten(self.v_proj.weight, 0, split).mT
            summary = summary @ torch.unflatten(self.merge.weight.T, 0, split)
            message: torch.Tensor = queries.flatten(2) @ summary.flatten(1, 2)
            return message
        keys, values = (
            torch.unflatten(each, 2, (_HEADS, -1)).transpose(1, 2)
            for each in (keys, self.v_proj(source))
        )
        message = queries.transpose(1, 2) @ (keys.mT @ values)
        return cast(torch.Tensor, self.merge(message.transpose(1, 2).flatten(2)))


class WindowContext(nn.Module):
    """Adds what the coarse token knows to the fine cells around its keypoint."""

    def __init__(self) -> None:
        super().__init__()
        self.down_proj = nn.Linear(256, 128)
        self.merge_feat = nn.Linear(256, 128)

    def forward(
        self,
        windows: torch.Tensor,  # [M, 25, 128]
        tokens: torch.Tensor,  # [M, 256]
    ) -> torch.Tensor:
        """Returns [M, 25, 128]."""
        context = self.down_proj(tokens)[:, None].expand_as(windows)
        return cast(torch.Tensor, self.merge_feat(torch.cat((windows, context), dim=2)))
