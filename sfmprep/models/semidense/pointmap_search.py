"""Pixels of two pointmaps that belong together: nearest to each other, there and back.

What MASt3R (Leroy, Cabon, Revaud, ECCV 2024, section 3.3) calls fast reciprocal
matching, one round of it from fixed starts: a match is good if the way back ends near
its start, and it is reported from the start itself.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import numpy as np
import torch
from scipy.spatial import KDTree
from torch import Tensor

_BLOCK = 1 << 22  # similarities at once: 16 MB

Search: TypeAlias = Callable[[Tensor], Tensor]
"""For pixels [M] of one image the nearest [M] of the other, both row by row."""


def anchored(
    to_second: Search,
    to_first: Search,
    starts: Tensor,  # [M] pixels of the first image, row by row
    *,
    width: int,  # of the first image
    tolerance: float,  # pixels; ways back end nearer than that
) -> tuple[Tensor, Tensor]:
    """Finds the pixels of the second image for those that come back to their start.

    Returns:
        Which of the starts have a match, rows [K] of `starts` in their order, and the
        pixels [K] of the second image, row by row.
    """
    found = to_second(starts)
    back = to_first(found)
    dx = back % width - starts % width
    dy = back // width - starts // width
    good = (dx.square() + dy.square() < tolerance**2).nonzero()[:, 0]
    return good, found[good]


def by_descriptors(queries: Tensor, targets: Tensor) -> Search:
    """Finds the largest product of rows [N, D], the first of equal ones."""

    def search(pixels: Tensor) -> Tensor:
        rows = queries[pixels]
        best = rows.new_full((len(rows),), -torch.inf)
        index = torch.zeros_like(pixels)
        step = max(1, _BLOCK // max(len(rows), 1))
        for start in range(0, len(targets), step):
            value, at = (rows @ targets[start : start + step].T).max(1)
            is_better = value > best
            best = best.maximum(value)
            index = torch.where(is_better, at + start, index)
        return index

    return search


def by_points(queries: Tensor, targets: Tensor) -> Search:
    """Finds the nearest of points [N, 3]; on the host, in a tree of the targets."""
    tree = KDTree(targets.cpu().numpy())

    def search(pixels: Tensor) -> Tensor:
        _, at = tree.query(queries[pixels].cpu().numpy())
        return torch.from_numpy(at.astype(np.int64)).to(pixels.device)

    return search
