"""Grouping and padding of pairs, and what becomes of their matches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sfmprep.models.matchers import pair_batches
from sfmprep.models.matchers.pair_batches import (
    Candidates,
    bucket,
    collect_matches,
    group_by_size,
    is_row,
    match_in_groups,
    pad_rows,
)
from sfmprep.models.shared.out_of_memory import Memory
from sfmprep.types import Matches

CPU = torch.device("cpu")
counts = st.integers(1, 50)


@given(sizes=st.lists(st.tuples(counts, counts)), budget=st.integers(1, 400))
def test_each_pair_is_in_one_batch_and_no_batch_costs_too_much(sizes, budget):
    groups = list(group_by_size(sizes, lambda m, n: m + n, budget))
    assert sorted(k for group in groups for k in group) == list(range(len(sizes)))
    for group in groups:
        padded = max(sizes[k][0] for k in group) + max(sizes[k][1] for k in group)
        assert len(group) == 1 or len(group) * padded <= budget


def test_pairs_of_one_size_fill_the_budget():
    groups = group_by_size([(10, 10)] * 7, lambda m, n: m + n, 60)
    assert [len(group) for group in groups] == [3, 3, 1]


def test_padding_is_zero_and_not_a_row():
    padded = pad_rows([torch.ones(2, 3), torch.ones(4, 3)], 5)
    real = is_row([2, 4], 5, CPU)
    assert padded.shape == (2, 5, 3)
    np.testing.assert_array_equal(padded[..., 0].numpy(), real.numpy())


def test_without_padding_there_is_no_mask():
    assert is_row([3, 3], 3, CPU) is None
    assert is_row([3, 3], 4, CPU).tolist() == [[True, True, True, False]] * 2


@given(st.lists(st.integers(1, 10_000), min_size=1))
def test_lengths_are_few_and_little_is_padded(numbers):
    length = bucket(numbers)
    assert max(numbers) <= length <= max(max(numbers) * 1.125, max(numbers) + 63)
    if len(set(numbers)) > 1:
        assert length % 64 == 0


def test_lengths_below_8192_keypoints_are_at_most_40():
    assert len({bucket([1, longest]) for longest in range(2, 8193)}) <= 40


def candidates(rows1: list[list[int]], scores: list[list[float]]) -> Candidates:
    shape = (len(rows1), len(rows1[0]))
    return Candidates(
        torch.arange(shape[1]).expand(shape), torch.tensor(rows1), torch.tensor(scores)
    )


def test_matches_are_sorted_and_those_with_negative_scores_left_out():
    first = candidates([[4, 5, 6], [0, 1, 2]], [[0.5, -1, 0.75], [-1, -1, -1]])
    found = collect_matches([first, candidates([[7, 8]], [[0.25, 0.25]])])
    assert [m.index.tolist() for m in found] == [
        [[2, 6], [0, 4]],
        [],
        [[0, 7], [1, 8]],
    ]
    assert [m.scores.tolist() for m in found] == [[0.75, 0.5], [], [0.25, 0.25]]
    assert found[1].index.shape == (0, 2)


def test_of_candidates_for_one_row_the_first_is_taken():
    (found,) = collect_matches([candidates([[3, 3, 1]], [[0.5, 0.5, 0.25]])])
    assert found.index.tolist() == [[0, 3], [2, 1]]


def test_nothing_found_is_no_matches():
    assert collect_matches([]) == []


@pytest.mark.gpu
def test_matches_come_from_the_device():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    on_device = Candidates(*(t.cuda() for t in candidates([[1, 0]], [[0.5, 0.75]])))
    assert collect_matches([on_device])[0].index.tolist() == [[1, 0], [0, 1]]


@pytest.mark.parametrize(("device", "counts"), [("cpu", [2, 2]), ("cuda", [4])])
def test_every_core_has_pairs(
    device: str, counts: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pair_batches, "num_side_by_side", lambda: 2)
    groups: list[int] = []

    def run(pairs: Sequence[tuple[list[int], list[int]]]) -> list[Matches]:
        groups.append(len(pairs))
        return [Matches.none()] * len(pairs)

    found = match_in_groups(
        [([0] * size, [0]) for size in (3, 1, 9, 1)],
        run,
        cost=lambda m, n: m * n,
        budget=1000,
        memory=Memory(),
        device=device,
    )
    assert len(found) == 4
    assert sorted(groups) == counts
