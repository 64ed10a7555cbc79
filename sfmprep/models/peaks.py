"""Peaks of a score map: the suppression that XFeat and DISK share."""

from __future__ import annotations

import torch


def strict_maxima(
    heatmap: torch.Tensor,  # [H, W]
    *,
    radius: int,
    threshold: float,
) -> torch.Tensor:
    """Finds the pixels above `threshold` that exceed all others in their window.

    The window has `2 radius + 1` pixels a side. Pixels whose window leaves the map and
    pixels of a plateau are never maxima, so a constant map has none. The same set as
    kornia 0.9's `nms2d`, which older versions compute otherwise and far slower.

    Args:
        heatmap: The scores.
        radius: Half the side of the window, pixels.
        threshold: A maximum is strictly above it.

    Returns:
        [N, 2] int64 (x, y), in raster order; N may be 0.
    """
    height, width = heatmap.shape
    inner = torch.zeros_like(heatmap, dtype=torch.bool)
    inside = (slice(radius, height - radius), slice(radius, width - radius))
    if height > 2 * radius and width > 2 * radius:
        inner[inside] = heatmap[inside] > threshold
    values = heatmap.flatten()
    index = inner.flatten().nonzero()[:, 0]
    # Nearest neighbours first: they rule out most pixels, so the others cost little.
    side = range(-radius, radius + 1)
    steps = sorted((x * x + y * y, y * width + x) for y in side for x in side)
    for _, step in steps[1:]:
        index = index[values[index] > values[index + step]]
    return torch.stack((index % width, index // width), dim=1)
