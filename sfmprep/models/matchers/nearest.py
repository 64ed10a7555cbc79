"""Mutual nearest neighbours of descriptors, with Lowe's ratio test.

Every similarity is computed once, in blocks that are not kept. Each block gives the
best two of its rows and adds to the best of the columns; argmax, which is six times as
slow as the maximum on a CPU, sees only the maxima of groups of columns.

A CPU that multiplies bfloat16 searches in distances of that format (see
`rounded_distances`), and takes the cosines of what it finds in float32.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from sfmprep.config import NearestConfig
from sfmprep.devices import multiplies_bfloat16
from sfmprep.errors import ConfigError
from sfmprep.models.identity import identity
from sfmprep.models.matchers.pair_batches import (
    Candidates,
    collect_matches,
    is_row,
    match_in_groups,
    pad_rows,
    prepare_pairs,
    unit_descriptors,
)
from sfmprep.models.matchers.rounded_distances import CONFUSED, GROUP, RoundedRows
from sfmprep.models.protocols import Side
from sfmprep.models.shared.adapter import inference
from sfmprep.models.shared.out_of_memory import Memory, free_bytes
from sfmprep.models.shared.precision import Precision
from sfmprep.types import Features, Matches

# Similarities that are in memory at once: 8 MiB keep a block in the caches of a
# CPU, 1 GiB keep a GPU busy, if a quarter of its free memory is as much.
_CPU_BUDGET = 1 << 21
_GPU_BUDGET = 1 << 28

# Of the rows of a pair, that may have two columns which rounding confuses.
_MOST_CONFUSED = 0.01

# Below this squared distance float32 cosines do not tell two descriptors apart, so a
# keypoint that was found twice has the ratio 1 instead of rounding noise. One step of
# one byte of a RootSIFT descriptor is 4e-6.
_MIN_SQUARED_DISTANCE = 1e-6


class Nearest:
    """Matches each descriptor with its nearest, where that holds in both directions.

    The distance is the Euclidean one of unit descriptors, d^2 = 2 - 2 cos. The ratio
    test (Lowe, IJCV 2004) keeps a match if best distance <= `ratio` * second best
    distance and, like COLMAP's cross-check, is asked of both images, so it does not
    matter which image is the first. On SIFT of fountain-P11, images 4 and 7, it left
    701 matches, 96.0 % of them within 3 px of the true epipolar line; asked of the
    first image alone, 765 and 93.3 %; not asked, 1636 and 55.9 %; asked of angles, as
    COLMAP does, 704 and 95.7 %. Where the other image has one keypoint, there is no
    second best and the test passes.

    Scores are cosines, cut to 0..1. Of equal descriptors the one with the lowest row is
    the nearest; with `ratio` below 1 such keypoints are not matched.
    """

    def __init__(
        self,
        config: NearestConfig,
        *,
        device: str = "cpu",
        precision: Precision = "auto",
    ) -> None:
        """There is nothing to load.

        Where there is a ratio test, precision is not float32 and the CPU multiplies
        bfloat16, neighbours are searched with that, but for pairs of which 1 % of the
        rows have two that are nearer than it tells apart; what is told of them is in
        float32 nevertheless. Of 15 pairs of `fox` 2 of 8,864 matches were not found
        then, and 8 others were.

        Raises:
            ConfigError: half precision without a CUDA device.
        """
        self.identity = identity(config, device=device, precision=precision)
        self._config = config
        self._device = device
        self._memory = Memory()
        self._budget = _CPU_BUDGET
        may_round = config.ratio is not None and precision != "float32"
        is_cpu = torch.device(device).type == "cpu"
        self._rounds = may_round and is_cpu and multiplies_bfloat16()
        if torch.device(device).type == "cuda":
            self._budget = min(_GPU_BUDGET, free_bytes(torch.device(device)) // 16)

    @inference
    def prepare(self, features: Features) -> PreparedRows:
        """Puts unit descriptors on the device; see `protocols.Matcher`.

        Raises:
            DeviceError: they do not fit into its memory.
        """
        rows = torch.from_numpy(unit_descriptors(features))
        [prepared] = Memory().each(
            lambda rows: PreparedRows(rows.to(self._device)), [rows]
        )
        return prepared

    @inference
    def match(self, pairs: Sequence[tuple[Side, Side]]) -> list[Matches]:
        """Matches each pair; see `protocols.Matcher`.

        Raises:
            ConfigError: not all descriptors have the same length.
        """
        prepared = prepare_pairs(pairs, PreparedRows, self.prepare)
        dims = {
            side.rows.shape[1]
            for pair in prepared
            if all(map(len, pair))
            for side in pair
        }
        if len(dims) > 1:
            raise ConfigError(
                f"descriptors of lengths {sorted(dims)} cannot be matched with each"
                " other. Extract the features of all images with one recipe."
            )
        return match_in_groups(
            *(prepared, self._match_batch),
            cost=lambda m, n: m * n,
            budget=self._budget,
            memory=self._memory,
            device=torch.device(self._device).type,
        )

    def _match_batch(
        self, pairs: Sequence[tuple[PreparedRows, PreparedRows]]
    ) -> list[Matches]:
        found = self._nearest(pairs, rounds=self._rounds)
        matches = self._chosen(found)
        if self._rounds:
            for place in found.crowded():
                exact = self._nearest(pairs[place : place + 1], rounds=False)
                [matches[place]] = self._chosen(exact)
        return matches

    def _nearest(
        self, pairs: Sequence[tuple[PreparedRows, PreparedRows]], *, rounds: bool
    ) -> _Neighbours:
        return _find_nearest(
            [first.rows for first, _ in pairs],
            [second.rows for _, second in pairs],
            self._budget,
            rounds=rounds,
        )

    def _chosen(self, found: _Neighbours) -> list[Matches]:
        """Those that are mutual and pass the tests."""
        # The mutual best of a column is the best of its row, so `cosine` holds both.
        best = found.cosine
        is_match = best >= found.column_cosine.gather(1, found.column)
        if self._config.min_similarity is not None:
            is_match &= best >= self._config.min_similarity
        if self._config.ratio is not None:
            second = torch.maximum(
                found.second_cosine, found.column_second.gather(1, found.column)
            )
            distance, second_distance = (
                (2 - 2 * cosine).clamp(min=_MIN_SQUARED_DISTANCE)
                for cosine in (best, second)
            )
            is_match &= distance <= self._config.ratio**2 * second_distance
        if found.is_real is not None:
            is_match &= found.is_real
        rows0 = torch.arange(best.shape[1], device=best.device).expand_as(best)
        scores = best.clamp(0, 1).where(is_match, -1)
        return collect_matches([Candidates(rows0, found.column, scores)])


@dataclass(frozen=True, eq=False)
class PreparedRows:
    """The unit descriptors of one image."""

    rows: Tensor  # [N, D] float32

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def num_bytes(self) -> int:
        """How much memory of the device it holds."""
        return self.rows.nbytes


class _Neighbours(NamedTuple):
    """The best two of M rows and of N columns, B times; -inf where there is none."""

    column: Tensor  # [B, M] int64, the best of each row
    cosine: Tensor  # [B, M] of that one
    second_cosine: Tensor  # [B, M]
    column_cosine: Tensor  # [B, N] the best of each column
    column_second: Tensor  # [B, N]
    is_real: Tensor | None  # [B, M] which rows are no padding, or None for all

    def crowded(self) -> list[int]:
        """Those of the B in which many rows have two columns that rounding confuses."""
        close = self.second_cosine > 1 - CONFUSED  # padding has none
        real = close.shape[1] if self.is_real is None else self.is_real.sum(1)
        is_crowded: Tensor = close.sum(1) > _MOST_CONFUSED * real
        return [*map(int, is_crowded.nonzero()[:, 0])]


def _find_nearest(
    first: list[Tensor],  # B times [M_b, D]
    second: list[Tensor],  # B times [N_b, D]
    budget: int,  # similarities in memory at once
    *,
    rounds: bool = False,
) -> _Neighbours:
    counts0, counts1 = [len(rows) for rows in first], [len(rows) for rows in second]
    device = first[0].device
    rows0 = pad_rows(first, max(counts0))
    rows1 = pad_rows(second, -(-max(counts1) // GROUP) * GROUP)
    batch, length = rows1.shape[:2]
    is_real0 = is_row(counts0, max(counts0), device)
    is_real1 = is_row(counts1, max(counts1), device)
    rest = rows1.new_full((batch, length), -torch.inf)
    step = max(1, budget // (batch * length))
    starts = range(0, rows0.shape[1], step)
    blocks = []
    if rounds:
        rounded = RoundedRows.of(rows0, rows1, counts0, counts1, step)
        for start in starts:
            *found, others = rounded.best_two(start)
            blocks.append(tuple(found))
            torch.maximum(rest, others, out=rest)
    else:
        memory = rows1.new_empty(batch * min(step, rows0.shape[1]) * length)
        for start in starts:
            block = rows0[:, start : start + step]
            similarity = memory[: batch * block.shape[1] * length].view(
                batch, -1, length
            )
            torch.bmm(block, rows1.mT, out=similarity)
            similarity[..., max(counts1) :] = -torch.inf
            if is_real1 is not None:
                similarity[..., : max(counts1)].masked_fill_(
                    ~is_real1[:, None], -torch.inf
                )
            if is_real0 is not None:
                padding = ~is_real0[:, start : start + step, None]
                similarity.masked_fill_(padding, -torch.inf)
            blocks.append(_take_best_two(similarity))
            torch.maximum(rest, similarity.amax(1), out=rest)
    column, cosine, second_cosine = (
        torch.cat(part, 1) for part in zip(*blocks, strict=True)
    )
    # What the blocks took from their rows comes back to the columns.
    best = torch.full_like(rest, -torch.inf).scatter_reduce_(1, column, cosine, "amax")
    is_best = cosine == best.gather(1, column)
    others = cosine.masked_fill(is_best, -torch.inf)
    rest.scatter_reduce_(1, column, others, "amax")
    num_best = torch.zeros_like(rest).scatter_add_(1, column, is_best.float())
    return _Neighbours(
        column,
        cosine,
        second_cosine,
        column_cosine=torch.maximum(best, rest),
        column_second=torch.where(num_best > 1, best, torch.minimum(best, rest)),
        is_real=is_real0,
    )


def _take_best_two(similarity: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Finds the best two of each row of [B, M, N], and puts -inf for the best.

    Returns:
        column: [B, M] int64, the best; the lowest of several.
        cosine: [B, M] of the best.
        second: [B, M] of the second best.
    """
    groups = similarity.view(*similarity.shape[:2], -1, GROUP)
    tops = groups.amax(3)
    cosine, group = tops.max(2, keepdim=True)
    inside = groups.gather(2, group[..., None].expand(-1, -1, 1, GROUP)).squeeze(2)
    offset = inside.argmax(2, keepdim=True)
    inside.scatter_(2, offset, -torch.inf)
    tops.scatter_(2, group, inside.amax(2, keepdim=True))
    column = group * GROUP + offset
    similarity.scatter_(2, column, -torch.inf)
    return column.squeeze(2), cosine.squeeze(2), tops.amax(2)
