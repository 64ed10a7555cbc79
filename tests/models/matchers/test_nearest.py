"""Nearest neighbours against a reference that is a few lines of numpy."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sfmprep.config import NearestConfig
from sfmprep.errors import ConfigError
from sfmprep.models.matchers.nearest import Nearest
from sfmprep.types import Features, Matches


def features(descriptors: np.ndarray) -> Features:
    return Features(
        xy=np.zeros((len(descriptors), 2), np.float32),
        scores=np.ones(len(descriptors), np.float32),
        descriptors=descriptors,
        image_size=(64, 64),
    )


def unit_rows(seed: int, num: int, dim: int) -> np.ndarray:
    rows = np.random.default_rng(seed).normal(size=(num, dim))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    return rows.astype(np.float32)


def match(first: np.ndarray, second: np.ndarray, **config) -> Matches:
    matcher = Nearest(NearestConfig(**config), precision="float32")
    return matcher.match([(features(first), features(second))])[0]


def reference(
    first: np.ndarray, second: np.ndarray, *, ratio=None, min_similarity=None
) -> set[tuple[int, int]]:
    """Mutual nearest neighbours by definition."""
    distance = np.linalg.norm(first[:, None] - second[None], axis=2)

    def good(row: np.ndarray) -> int | None:
        order = np.argsort(row, kind="stable")
        best = order[0]
        if min_similarity is not None and 1 - row[best] ** 2 / 2 < min_similarity:
            return None
        if ratio is not None and len(row) > 1 and row[best] > ratio * row[order[1]]:
            return None
        return int(best)

    ahead = [good(row) for row in distance]
    back = [good(column) for column in distance.T]
    return {(i, j) for i, j in enumerate(ahead) if j is not None and back[j] == i}


@settings(max_examples=60)
@given(
    seed=st.integers(0, 10**6),
    num=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    dim=st.integers(2, 6),
    ratio=st.none() | st.floats(0.3, 1),
    min_similarity=st.none() | st.floats(0, 1),
)
def test_matches_are_those_of_the_definition(seed, num, dim, ratio, min_similarity):
    first, second = unit_rows(seed, num[0], dim), unit_rows(seed + 1, num[1], dim)
    config = {"ratio": ratio, "min_similarity": min_similarity}
    found = match(first, second, **config)
    assert set(map(tuple, found.index.tolist())) == reference(first, second, **config)


@pytest.mark.parametrize("budget", [1, 64, 1000, 1 << 22])
def test_blocks_and_batches_do_not_change_the_matches(budget):
    sizes = [(40, 30), (3, 50), (40, 31), (1, 1), (25, 25)]
    arrays = [
        (unit_rows(k, m, 8), unit_rows(k + 50, n, 8)) for k, (m, n) in enumerate(sizes)
    ]
    matcher = Nearest(NearestConfig(ratio=0.95), precision="float32")
    matcher._budget = budget
    found = matcher.match([(features(a), features(b)) for a, b in arrays])
    for matches, (a, b) in zip(found, arrays, strict=True):
        assert set(map(tuple, matches.index.tolist())) == reference(a, b, ratio=0.95)


@pytest.mark.parametrize("budget", [1, 1 << 21])
def test_descriptors_that_are_all_alike_are_searched_in_float32(budget):
    alike = [1 + 0.02 * unit_rows(seed, 60, 8) for seed in range(3)]
    alike = [rows / np.linalg.norm(rows, axis=1, keepdims=True) for rows in alike]
    others = [unit_rows(seed, 80 - seed, 8) for seed in range(2)]
    pairs = [
        (features(first), features(second))
        for first, second in [
            (others[0], others[1]),
            *zip(alike, alike[1:], strict=False),
        ]
    ]
    exact = Nearest(NearestConfig(ratio=0.9), precision="float32").match(pairs)
    matcher = Nearest(NearestConfig(ratio=0.9))
    matcher._rounds, matcher._budget = True, budget
    for found, expected in zip(matcher.match(pairs), exact, strict=True):
        np.testing.assert_array_equal(found.index, expected.index)
    assert sum(map(len, exact[1:])) > 0


@pytest.mark.parametrize("budget", [1, 5000, 1 << 22])
def test_a_search_in_bfloat16_differs_at_the_edge_of_the_ratio_test_alone(budget):
    arrays = []
    for seed, num in enumerate([(300, 150), (1, 1), (70, 1), (90, 200), (300, 151)]):
        first, second = unit_rows(seed, num[0], 32), unit_rows(seed + 50, num[1], 32)
        planted = min(num) // 2  # nearer and nearer to the edge
        noise = np.linspace(0, 0.4, planted)[:, None] * unit_rows(9, planted, 32)
        second[:planted] = first[-planted or len(first) :] + noise
        second /= np.linalg.norm(second, axis=1, keepdims=True)
        arrays.append((first, second))
    matcher = Nearest(NearestConfig(ratio=0.9))
    matcher._rounds, matcher._budget = True, budget
    found = matcher.match([(features(a), features(b)) for a, b in arrays])
    assert sum(map(len, found)) > 100
    for matches, (first, second) in zip(found, arrays, strict=True):
        index = set(map(tuple, matches.index.tolist()))
        assert reference(first, second, ratio=0.89) <= index
        assert index <= reference(first, second, ratio=0.91)
        cosines = (first[matches.index[:, 0]] * second[matches.index[:, 1]]).sum(1)
        np.testing.assert_allclose(matches.scores, cosines.clip(0, 1), atol=1e-6)


def test_the_best_two_of_rows_and_columns_are_found_across_groups_and_blocks():
    # More columns than fit into one group of the search, planted in chosen places.
    first, second = unit_rows(0, 150, 32), unit_rows(1, 200, 32)
    second[[5, 63, 64]] = first[[0, 70, 149]]
    second[[199, 128]] = first[31] + [[0.08], [0.1]] * unit_rows(2, 2, 32)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    for ratio in (None, 0.9, 0.5):
        found = match(first, second, ratio=ratio)
        index = set(map(tuple, found.index.tolist()))
        assert index == reference(first, second, ratio=ratio)
        assert {(0, 5), (70, 63), (149, 64)} <= index
        assert ((31, 199) in index) == (ratio != 0.5)


def test_a_rival_that_prefers_another_counts_in_the_ratio_test_of_the_column():
    # Row 1 is nearer to column 1, but is the second best of column 0.
    first = np.array([[1, 0], [0.96, 0.28]], np.float32)
    second = np.array([[0.9998, 0.02], [0.936, 0.352]], np.float32)
    second /= np.linalg.norm(second, axis=1, keepdims=True)
    assert (0, 0) in reference(first, second, ratio=0.2)
    wide = np.array([[1, 0], [0.9997, 0.0245]], np.float32)
    assert (0, 0) not in reference(wide, second, ratio=0.2)
    for rows in (first, wide):
        found = set(map(tuple, match(rows, second, ratio=0.2).index.tolist()))
        assert found == reference(rows, second, ratio=0.2)


def test_scores_are_cosines():
    first = np.array([[1, 0], [0, 1]], np.float32)
    second = np.array([[0.6, 0.8], [0.8, -0.6]], np.float32)
    found = match(first, second, ratio=None)
    assert found.index.tolist() == [[0, 1], [1, 0]]
    np.testing.assert_allclose(found.scores, [0.8, 0.8], atol=1e-6)


def test_opposite_descriptors_score_zero():
    found = match(np.array([[1, 0]], np.float32), np.array([[-1, 0]], np.float32))
    np.testing.assert_array_equal(found.scores, [0])


def test_of_equal_descriptors_the_lowest_row_is_matched():
    first = np.eye(3, dtype=np.float32)[[2, 0, 0, 2]]
    second = np.eye(3, dtype=np.float32)[[0, 0, 2, 1]]
    found = match(first, second, ratio=None)
    assert found.index.tolist() == [[0, 2], [1, 0]]


def test_a_keypoint_that_was_found_twice_fails_the_ratio_test():
    rows = unit_rows(0, 20, 128)
    found = match(rows, np.concatenate([rows, rows[:5]]), ratio=0.8)
    assert sorted(found.index[:, 0].tolist()) == list(range(5, 20))
    found = match(np.concatenate([rows, rows[:5]]), rows, ratio=0.8)
    assert sorted(found.index[:, 1].tolist()) == list(range(5, 20))


def test_ratio_is_asked_of_both_images():
    # From the first image the match is unrivalled, from the second it is not.
    first = np.array([[1, 0], [0.995, 0.0999]], np.float32)
    second = np.array([[1, 0]], np.float32)
    assert len(match(first, second, ratio=0.8)) == 1
    near = np.array([[0.9999, 0.0141], [0.995, -0.0999]], np.float32)
    near = np.concatenate([near, [[0.9998, -0.02]]]).astype(np.float32)
    assert len(match(near, second, ratio=0.8)) == 1
    assert len(match(near, second, ratio=0.5)) == 0
    assert len(match(second, near, ratio=0.5)) == 0


def test_byte_and_half_descriptors_match_like_their_unit_rows():
    rows = np.abs(unit_rows(3, 60, 128))
    as_bytes = np.round(rows * 512).clip(0, 255).astype(np.uint8)
    shuffled = np.random.default_rng(0).permutation(60)
    for stored in (as_bytes, rows.astype(np.float16)):
        found = match(stored, stored[shuffled])
        np.testing.assert_array_equal(shuffled[found.index[:, 1]], found.index[:, 0])
        assert len(found) == 60
        np.testing.assert_allclose(found.scores, 1, atol=1e-6)


def test_a_descriptor_of_zeros_is_no_error():
    zeros = np.zeros((2, 4), np.float32)
    assert np.isfinite(match(zeros, unit_rows(0, 3, 4), ratio=None).scores).all()


def test_descriptors_of_two_lengths_are_refused():
    with pytest.raises(ConfigError, match=r"\[4, 8\]"):
        match(unit_rows(0, 3, 4), unit_rows(0, 3, 8))
