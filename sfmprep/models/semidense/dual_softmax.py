"""Mutual best matches under a dual softmax, without the matrix of all confidences.

The confidence of a pair of tokens is the product of two softmaxes over their
similarities, one along its row, one along its column (Sun et al., "LoFTR", CVPR 2021).
Written anew: the matrix is streamed in blocks of rows, and only the few entries that
can still pass the threshold are kept.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

_BLOCK_ROWS = 256  # of 16384 columns, the most of 1024 x 1024 pixels: 17 MB
LEAST_CONFIDENCE = 0.01
"""The smallest threshold: a row has at most so many candidates as it goes into 1."""
BORDER = 2
"""Cells at each side of a grid of tokens that `without_border` leaves out."""


class MutualMatches(NamedTuple):
    """Matched tokens of a batch, sorted by item of the batch, then by `first`."""

    batch: torch.Tensor  # [M] int64
    first: torch.Tensor  # [M] int64 rows of `tokens0[batch]`, each at most once
    second: torch.Tensor  # [M] int64 rows of `tokens1[batch]`, each at most once
    confidence: torch.Tensor  # [M] float32 in 0..1


@torch.no_grad()
def mutual_matches(
    tokens0: torch.Tensor,  # [N, L, D]
    tokens1: torch.Tensor,  # [N, S, D]
    *,
    temperature: float = 0.1,
    min_confidence: float = 0.2,
    block_rows: int = _BLOCK_ROWS,
) -> MutualMatches:
    """Finds the confidences that are the largest of their row and of their column.

    Without gradient, and the same for every block size. Of equal largest ones in a row
    or column the first is taken. Without tokens on a side there are no matches.

    Args:
        tokens0: Descriptors, of any norm.
        tokens1: Descriptors, of any norm.
        temperature: What the product of tokens divided by D is divided by.
        min_confidence: Matches are more confident than this.
        block_rows: How many rows of the matrix there are at once.

    Raises:
        ValueError: `min_confidence` is less than `LEAST_CONFIDENCE`.
    """
    if min_confidence < LEAST_CONFIDENCE:
        raise ValueError(f"{min_confidence=} but expected at least {LEAST_CONFIDENCE}")
    parts = [
        _matches_of_one(
            item,
            tokens0[item],
            tokens1[item],
            temperature=temperature,
            min_confidence=min_confidence,
            block_rows=block_rows,
        )
        for item in range(len(tokens0))
    ]
    return MutualMatches(*(torch.cat(column) for column in zip(*parts, strict=True)))


def without_border(
    matches: MutualMatches, grid0: tuple[int, int], grid1: tuple[int, int]
) -> MutualMatches:
    """The matches of tokens of two grids (h, w) that are inner ones in both."""
    is_kept = is_inner(matches.first, grid0) & is_inner(matches.second, grid1)
    return MutualMatches(*(column[is_kept] for column in matches))


def is_inner(cells: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """Which of the cells [M], counted row by row, are not at the border of the grid."""
    height, width = grid
    row, column = cells // width, cells % width
    return (
        (row >= BORDER)
        & (row < height - BORDER)
        & (column >= BORDER)
        & (column < width - BORDER)
    )


def _matches_of_one(
    item: int,
    tokens0: torch.Tensor,  # [L, D]
    tokens1: torch.Tensor,  # [S, D]
    *,
    temperature: float,
    min_confidence: float,
    block_rows: int,
) -> MutualMatches:
    """Matches the tokens of one pair of images.

    A confidence above the threshold needs both of its factors above it. So whatever is
    larger than a match in its row or column is a candidate too: the maxima over the
    candidates are those over the matrix.
    """
    least = math.log(min_confidence)
    row_total = tokens0.new_full((len(tokens0),), -math.inf, dtype=torch.float32)
    column_total = tokens0.new_full((len(tokens1),), -math.inf, dtype=torch.float32)
    candidates = [tokens0.new_empty((0, 2), dtype=torch.int64)]
    similarities = [row_total[:0]]
    for start in range(0, len(tokens0) if len(tokens1) else 0, block_rows):
        rows = slice(start, start + block_rows)
        block = _similarity(tokens0[rows], tokens1, temperature)
        row_total[rows] = block.logsumexp(1)
        # Of the blocks so far, so not above the final one: nothing is lost.
        column_total = torch.logaddexp(column_total, block.logsumexp(0))
        kept = block > (row_total[rows, None] + least)
        kept &= block > (column_total + least)
        found = kept.nonzero()
        similarities.append(block[found[:, 0], found[:, 1]])
        found[:, 0] += start
        candidates.append(found)
    first, second = torch.cat(candidates).unbind(1)
    twice = 2 * torch.cat(similarities)
    confidence = (twice - row_total[first] - column_total[second]).exp()
    best = (
        (confidence > min_confidence)
        & _is_first_largest(confidence, first, len(tokens0))
        & _is_first_largest(confidence, second, len(tokens1))
    )
    first, second = first[best], second[best]
    return MutualMatches(torch.full_like(first, item), first, second, confidence[best])


def _is_first_largest(
    values: torch.Tensor, group: torch.Tensor, num_groups: int
) -> torch.Tensor:
    """Which values are the largest of their group, the first of equal ones."""
    largest = values.new_zeros(num_groups).scatter_reduce(0, group, values, "amax")
    place = torch.arange(len(values), device=values.device)
    place = torch.where(values == largest[group], place, len(values))
    first = place.new_full((num_groups,), len(values))
    return place == first.scatter_reduce(0, group, place, "amin")[group]


def _similarity(
    tokens0: torch.Tensor, tokens1: torch.Tensor, temperature: float
) -> torch.Tensor:
    """The products of all tokens in float32, divided by D and by the temperature."""
    scale = 1 / (tokens0.shape[-1] * temperature)
    return (tokens0.float() * scale) @ tokens1.float().mT
