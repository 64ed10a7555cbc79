"""Blocks of vision transformers, keyed as in the public checkpoints of ViT and DINOv2.

Dosovitskiy et al., "An Image is Worth 16x16 Words", ICLR 2021.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

EPS = 1e-6  # of their norms
GRID = 37  # of the positions that DINOv2 learned, each way
_ROPE_BASE = 100.0

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


class LayerScale(nn.Module):
    """A factor of every channel, which its block multiplies by."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.ones(width))


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


def learned_positions(learned: Tensor, grid: tuple[int, int]) -> Tensor:
    """The positions [1, N, C] of DINOv2's patches on a grid (rows, columns).

    As the backbone was trained: the scale is that of a grid a tenth larger.

    Args:
        learned: [1, 37 * 37, C].
        grid: Another one.
    """
    if grid == (GRID, GRID):
        return learned
    learned = learned.float().mT.reshape(1, -1, GRID, GRID)
    scale = [(side + 0.1) / GRID for side in grid]
    return F.interpolate(learned, scale_factor=scale, mode="bicubic").flatten(2).mT


def rotary(places: Tensor, head_dim: int) -> Turn:
    """Turns half of a head by the rows of its tokens, half by the columns.

    Su et al., "RoFormer", 2021, in its form that pairs element k with k + D/4.

    Args:
        places: [N, 2] row and column of each token.
        head_dim: D, a multiple of 4.
    """
    quarter = head_dim // 4
    steps = torch.arange(quarter, device=places.device) / quarter
    angle = places[..., None] * _ROPE_BASE**-steps
    cos, sin = angle.cos(), angle.sin()  # [N, 2, quarter]

    def turn(heads: Tensor) -> Tensor:
        a, b = heads.view(*heads.shape[:3], 2, 2, quarter).unbind(4)
        turned = torch.stack((a * cos - b * sin, b * cos + a * sin), 4)
        return turned.flatten(3).to(heads.dtype)

    return turn


def grid_places(grid: tuple[int, int], device: torch.device) -> Tensor:
    """Row and column [N, 2] of the cells of a grid (rows, columns), row by row."""
    rows, columns = (torch.arange(side, device=device) for side in grid)
    return torch.cartesian_prod(rows, columns)
