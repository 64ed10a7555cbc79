"""Grouping and padding of pairs."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from sfmprep.models.pair_batches import group_by_size, is_row, pad_rows

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
    arrays = [np.ones((2, 3), np.float32), np.ones((4, 3), np.float32)]
    padded = pad_rows(arrays, "cpu")
    real = is_row(padded.new_tensor([2, 4]).long(), 4)
    assert padded.shape == (2, 4, 3)
    np.testing.assert_array_equal(padded[..., 0].numpy(), real.numpy())
