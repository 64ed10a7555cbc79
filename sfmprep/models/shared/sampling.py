"""Sampling feature maps between pixels: a few rows of a table, weighted.

One `embedding_bag` in place of `grid_sample`, which wants planes of channels and takes
as many positions from each image.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kernel = Literal["linear", "cubic"]

_SHARPNESS = -0.75  # of the cubic kernel (Keys 1981), as in torch's and OpenCV's


def sample(
    features: Tensor, image: Tensor, y: Tensor, x: Tensor, *, kernel: Kernel = "linear"
) -> Tensor:
    """Reads features [B, h, w, C] bilinearly or bicubically, zero outside.

    Args:
        features: Of B images; contiguous, or they are copied.
        image: [...] int64, which of them; broadcast against the positions.
        y: [...] float32, row; pixel centres at integers.
        x: [...] float32, column.
        kernel: How far it reads: 2 or 4 pixels each way.

    Returns:
        [..., C] in the dtype of the features.
    """
    _, height, width, channels = features.shape
    index, weight = neighbours(y, x, height, width, kernel=kernel)
    index += (image * (height * width))[..., None]
    return weighted_rows(features.reshape(-1, channels), index, weight)


def neighbours(
    y: Tensor, x: Tensor, height: int, width: int, *, kernel: Kernel = "linear"
) -> tuple[Tensor, Tensor]:
    """Finds the K pixels around each position [...] and their weights.

    Returns:
        Pixels row * width + column [..., K] inside the image, and weights [..., K],
        which are zero for pixels that were outside. K is 4 (linear) or 16 (cubic).
    """
    rows, weight_y = _taps(y, height, kernel)
    columns, weight_x = _taps(x, width, kernel)
    index = (rows * width)[..., :, None] + columns[..., None, :]
    weight = weight_y[..., :, None] * weight_x[..., None, :]
    return index.flatten(-2), weight.flatten(-2)


def weighted_rows(table: Tensor, index: Tensor, weight: Tensor) -> Tensor:
    """Sums weighted rows of table [K, C] over the last axis of index and weight.

    Returns:
        [..., C]
    """
    total = F.embedding_bag(
        index.flatten(0, -2),
        table,
        mode="sum",
        per_sample_weights=weight.flatten(0, -2).to(table.dtype),
    )
    return total.view(*index.shape[:-1], table.shape[1])


def _taps(position: Tensor, size: int, kernel: Kernel) -> tuple[Tensor, Tensor]:
    """Finds the whole positions [..., 2 or 4] around each, and their weights."""
    below = position.floor()
    t = position - below
    if kernel == "linear":
        taps = torch.stack((below, below + 1), dim=-1)
        weight = torch.stack((1 - t, t), dim=-1)
    else:
        taps = below[..., None] + torch.arange(-1, 3, device=position.device)
        weight = torch.stack((_far(1 + t), _near(t), _near(1 - t), _far(2 - t)), dim=-1)
    inside = taps.clamp(0, size - 1)
    return inside.long(), weight * (inside == taps)


def _near(distance: Tensor) -> Tensor:
    """Keys' kernel at distances of 0..1."""
    a = _SHARPNESS
    return ((a + 2) * distance - (a + 3)) * distance**2 + 1


def _far(distance: Tensor) -> Tensor:
    """Keys' kernel at distances of 1..2."""
    return _SHARPNESS * (((distance - 5) * distance + 8) * distance - 4)
