"""Blocks of vision transformers, keyed as in the public checkpoints of ViT and DINOv2.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6  # of their norms

Turn: TypeAlias = Callable[[Tensor], Tensor]
"""What turns the heads [B, H, N, D] of one image by the places of its tokens."""


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention of heads [B, H, N, D], joined to [B, N, H D]."""
    mixed = F.scaled_dot_product_attention(query, key, value)
    return mixed.transpose(1, 2).flatten(2)


def in_heads(x: Tensor, head_dim: int) -> Tensor:
    """Splits tokens [B, N, H D] into heads [B, H, N, D]."""
    return x.view(*x.shape[:2], -1, head_dim).transpose(1, 2)


class Attention(nn.Module):
    """Self-attention of several heads; queries and keys may be turned first."""

    def __init__(self, width: int, head_dim: int) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self._head_dim = head_dim

    def forward(self, x: Tensor, turn: Turn | None = None) -> Tensor:
        """Mixes tokens [B, N, C]."""
        q, k, v = (in_heads(part, self._head_dim) for part in self.qkv(x).chunk(3, 2))
        if turn is not None:
            q, k = turn(q), turn(k)
        result: Tensor = self.proj(attend(q, k, v))
        return result


class Mlp(nn.Module):
    """Two layers with an exact GELU between them."""

    def __init__(self, width: int, hidden: int, outputs: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(width, hidden)
        self.fc2 = nn.Linear(hidden, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """Maps the last dimension."""
        result: Tensor = self.fc2(F.gelu(self.fc1(x)))
        return result


class PatchEmbed(nn.Module):
    """Patches of the image as tokens, row by row."""

    def __init__(self, width: int, patch: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(3, width, patch, stride=patch)

    def forward(self, pixels: Tensor) -> Tensor:
        """From [B, 3, H, W], multiples of the patch, to [B, N, C]."""
        result: Tensor = self.proj(pixels).flatten(2).mT
        return result
