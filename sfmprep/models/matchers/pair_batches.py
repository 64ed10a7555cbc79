"""What the sparse matchers share: unit descriptors, batches of pairs, and results."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence, Sized
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

from sfmprep.errors import ConfigError
from sfmprep.models.protocols import Side
from sfmprep.models.shared.out_of_memory import Memory
from sfmprep.models.shared.side_by_side import num_side_by_side, side_by_side
from sfmprep.types import Features, Float32, Int32, Matches

P = TypeVar("P", bound=Sized)


def unit_descriptors(features: Features) -> Float32:
    """Returns the descriptors as float32 rows [N, D] of length 1.

    uint8 rows (RootSIFT times 512, as COLMAP stores it) and float16 rows, which are of
    length 1 only to 1e-3, come out like float32 ones. A row of zeros stays zero.
    """
    rows: Float32 = features.descriptors.astype(np.float32)
    length = np.linalg.norm(rows, axis=1, keepdims=True)
    np.divide(rows, length, out=rows, where=length > 0)
    return rows


def prepare_pairs(
    pairs: Sequence[tuple[Side, Side]], kind: type[P], prepare: Callable[[Features], P]
) -> list[tuple[P, P]]:
    """Prepares the sides of pairs that are not prepared, each distinct object once.

    Args:
        pairs: Of features or of what `prepare` made of them.
        kind: What `prepare` makes.
        prepare: Puts one image's features on the device.

    Raises:
        ConfigError: a side was prepared by a matcher of another kind.
    """
    known: dict[int, P] = {}

    def ready(side: Side) -> P:
        if isinstance(side, kind):
            return side
        if not isinstance(side, Features):
            raise ConfigError(
                f"a side of a pair is {type(side).__name__}, but this matcher takes"
                f" Features or {kind.__name__}. Prepare it with the matcher that"
                " matches it."
            )
        if id(side) not in known:
            known[id(side)] = prepare(side)
        return known[id(side)]

    return [(ready(first), ready(second)) for first, second in pairs]


def group_by_size(
    sizes: Sequence[tuple[int, int]],
    cost: Callable[[int, int], int],
    budget: int,
    most: int | None = None,
) -> Iterator[list[int]]:
    """Yields the numbers of the pairs that go into one batch, each pair once.

    Pairs are sorted by their keypoint counts, so that little is padded. A batch of B
    pairs costs B times `cost` of its largest counts, at most `budget`; a pair that
    costs more is a batch of its own.

    Args:
        sizes: Keypoint counts (M, N) of each pair; empty: nothing is yielded.
        cost: What a pair padded to (M, N) costs.
        budget: The most that a batch may cost.
        most: Pairs that a batch may have; None for any number.
    """
    group: list[int] = []
    largest = (0, 0)
    for k in sorted(range(len(sizes)), key=lambda k: sizes[k]):
        grown = (max(largest[0], sizes[k][0]), max(largest[1], sizes[k][1]))
        is_full = len(group) == most or (len(group) + 1) * cost(*grown) > budget
        if group and is_full:
            yield group
            group, grown = [], sizes[k]
        group.append(k)
        largest = grown
    if group:
        yield group


def match_in_groups(
    pairs: Sequence[tuple[P, P]],
    run: Callable[[Sequence[tuple[P, P]]], list[Matches]],
    *,
    cost: Callable[[int, int], int],
    budget: int,
    memory: Memory,
    device: str,
) -> list[Matches]:
    """Matches pairs in groups of similar size; a pair with an empty side has none.

    On a CPU groups are side by side, each on its own cores, and of no more pairs than
    leave some to every core.

    Args:
        pairs: What was prepared.
        run: Matches a group whose sides are not empty.
        cost: What a pair padded to (M, N) costs.
        budget: The most that a group may cost.
        memory: What fitted into the device's memory.
        device: Its type, such as `cpu`.

    Raises:
        DeviceError: a single pair does not fit.
    """
    results = [Matches.none()] * len(pairs)
    filled = [k for k, (a, b) in enumerate(pairs) if len(a) and len(b)]
    sizes = [(len(pairs[k][0]), len(pairs[k][1])) for k in filled]

    def match(group: list[int]) -> list[Matches]:
        largest = cost(*(max(sizes[g][side] for g in group) for side in (0, 1)))
        return memory.run(run, [pairs[filled[g]] for g in group], largest)

    most = -(-len(filled) // num_side_by_side()) if device == "cpu" else None
    groups = list(group_by_size(sizes, cost, budget, most))
    found = side_by_side(match, groups, None if device == "cpu" else 1)
    for group, matched in zip(groups, found, strict=True):
        for g, matches in zip(group, matched, strict=True):
            results[filled[g]] = matches
    return results


def bucket(counts: Sequence[int]) -> int:
    """The length that rows of these counts are padded to, so that few lengths occur.

    Equal counts are not padded at all, since attention is faster without a mask.
    Others go up to an eighth of a power of two, at least to a multiple of 64, which
    the tiles of matrix units divide.
    """
    longest = max(counts)
    if min(counts) == longest:
        return longest
    step = max(64, (1 << longest.bit_length()) // 16)
    return -(-longest // step) * step


def pad_rows(tensors: Sequence[Tensor], length: int) -> Tensor:
    """Stacks [N_b, D] tensors to [B, length, D]; rows of padding are zero."""
    if all(len(tensor) == length for tensor in tensors):
        return torch.stack(list(tensors))
    batch = tensors[0].new_zeros((len(tensors), length, tensors[0].shape[1]))
    for item, tensor in zip(batch, tensors, strict=True):
        item[: len(tensor)] = tensor
    return batch


def to_device(values: Sequence[int] | Sequence[bool], device: torch.device) -> Tensor:
    """Puts integers [B] on the device, without waiting for what runs there."""
    return torch.tensor(values).to(device, non_blocking=True)


def is_row(counts: Sequence[int], length: int, device: torch.device) -> Tensor | None:
    """Which of `length` rows are no padding [B, length], or None where all are."""
    if min(counts) == length:
        return None
    return torch.arange(length, device=device) < to_device(counts, device)[:, None]


class Candidates(NamedTuple):
    """What may be the matches of B pairs, on the device; padded to K rows."""

    rows0: Tensor  # [B, K] int64, ascending
    rows1: Tensor  # [B, K] int64
    scores: Tensor  # [B, K] float32, negative where it is no match or padding


def collect_matches(found: Sequence[Candidates]) -> list[Matches]:
    """Makes `Matches` of each pair in turn, with one transfer from the device.

    They are sorted by falling score, of equals by rising row. Of candidates with the
    same row of the second image, which then are as good, the first is taken.
    """
    if not found:
        return []
    packed = [
        torch.stack([rows0.int(), rows1.int(), scores.view(torch.int32)])
        for rows0, rows1, scores in found
    ]
    table = torch.cat([part.flatten(1) for part in packed], 1).cpu().numpy()
    ends = np.cumsum([part[0].numel() for part in packed])[:-1]
    return [
        _matches(pair)
        for part, flat in zip(packed, np.split(table, ends, axis=1), strict=True)
        for pair in flat.reshape(part.shape).swapaxes(0, 1)
    ]


def _matches(table: Int32) -> Matches:
    """Makes `Matches` of rows and scores, [3, K]."""
    scores = table[2].view(np.float32)
    kept = np.flatnonzero(scores >= 0)
    rows1, order = table[1, kept], np.arange(len(kept))
    owner = np.empty(rows1.max(initial=0) + 1, np.intp)
    owner[rows1[::-1]] = order[::-1]  # of several, what is written last stays
    kept = kept[owner[rows1] == order]
    kept = kept[np.argsort(-scores[kept], kind="stable")]
    return Matches(index=np.ascontiguousarray(table[:2, kept].T), scores=scores[kept])
