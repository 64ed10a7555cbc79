"""What the sparse matchers share: unit descriptors, and pairs grouped into batches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sfmprep.types import Features, Float32, Matches


def unit_descriptors(features: Features) -> Float32:
    """Returns the descriptors as float32 rows [N, D] of length 1.

    uint8 rows (RootSIFT times 512, as COLMAP stores it) and float16 rows, which are of
    length 1 only to 1e-3, come out like float32 ones. A row of zeros stays zero.
    """
    rows: Float32 = features.descriptors.astype(np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    np.divide(rows, length, out=rows, where=length > 0)
    return rows


def group_by_size(
    sizes: Sequence[tuple[int, int]], cost: Callable[[int, int], int], budget: int
) -> Iterator[list[int]]:
    """Yields the numbers of the pairs that go into one batch, each pair once.

    Pairs are sorted by their keypoint counts, so that little is padded. A batch of B
    pairs costs B times `cost` of its largest counts, at most `budget`; a pair that
    costs more is a batch of its own.

    Args:
        sizes: Keypoint counts (M, N) of each pair; empty: nothing is yielded.
        cost: What a pair padded to (M, N) costs.
        budget: The most that a batch may cost.
    """
    group: list[int] = []
    largest = (0, 0)
    for k in sorted(range(len(sizes)), key=lambda k: sizes[k]):
        grown = (max(largest[0], sizes[k][0]), max(largest[1], sizes[k][1]))
        if group and (len(group) + 1) * cost(*grown) > budget:
            yield group
            group, grown = [], sizes[k]
        group.append(k)
        largest = grown
    if group:
        yield group


def pad_rows(arrays: Sequence[NDArray[np.float32]], device: str) -> torch.Tensor:
    """Stacks [N_b, D] arrays to [B, max N, D]; rows of padding are zero."""
    batch = np.zeros(
        (len(arrays), max(map(len, arrays)), arrays[0].shape[1]), np.float32
    )
    for item, array in zip(batch, arrays, strict=True):
        item[: len(array)] = array
    return torch.from_numpy(batch).to(device)


def is_row(counts: torch.Tensor, rows: int) -> torch.Tensor:
    """Which of `rows` padded rows are real [B, rows]: the first `counts` [B] are."""
    return torch.arange(rows, device=counts.device) < counts[:, None]


def sorted_matches(
    rows0: torch.Tensor, rows1: torch.Tensor, scores: torch.Tensor
) -> Matches:
    """Makes `Matches` of [M] rows and scores, best first; of equals the lowest row."""
    scores, order = scores.sort(descending=True, stable=True)
    index = torch.stack([rows0[order], rows1[order]], 1)
    return Matches(index=index.int().cpu().numpy(), scores=scores.float().cpu().numpy())
