"""The order of pairs: nothing is lost, and few images are loaded twice."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sfmprep.frontend.match_order import count_misses, order_for_cache
from sfmprep.pairing.pairs import sequential_pairs
from sfmprep.types import Pair


def walked_loop(num_images: int, neighbours: int, *, wrong: float) -> list[Pair]:
    """Pairs that retrieval finds in shuffled images of a loop walked three times.

    Each image has so many neighbours, near it on any lap; of each, the share `wrong`
    is anywhere.
    """
    random = np.random.default_rng(0)
    lap = num_images // 3
    found = set()
    for image in range(num_images):
        chosen: set[int] = set()
        while len(chosen) < neighbours:
            near = (image + round(random.normal(0, 8))) % lap + lap * random.integers(3)
            other = random.integers(num_images) if random.random() < wrong else near
            chosen |= {int(other)} - {image}
        found |= {(image, other) for other in chosen}
    names = [f"{k:05d}.jpg" for k in random.permutation(num_images)]
    return sorted({(*sorted((names[a], names[b])),) for a, b in found})  # type: ignore[misc]


@given(
    pairs=st.lists(
        st.tuples(st.integers(0, 12), st.integers(0, 12)).filter(lambda p: p[0] < p[1]),
        unique=True,
    ),
    num_cached=st.integers(0, 14),
)
def test_every_pair_comes_once_and_misses_never_grow(
    pairs: list[tuple[int, int]], num_cached: int
) -> None:
    named = [(f"{a:02d}", f"{b:02d}") for a, b in pairs]
    ordered = order_for_cache(named, num_cached)
    assert sorted(ordered) == sorted(named)
    assert ordered == order_for_cache(named, num_cached)
    if num_cached > 0:
        assert count_misses(ordered, num_cached) <= count_misses(named, num_cached)


def test_misses_are_those_of_a_cache_that_drops_the_least_recently_used() -> None:
    pairs = [("a", "b"), ("a", "c"), ("a", "b"), ("b", "c")]
    assert [count_misses(pairs, size) for size in (1, 2, 3)] == [7, 5, 3]


def test_all_pairs_of_many_images_miss_little() -> None:
    pairs = list(itertools.combinations([f"{k:03d}" for k in range(200)], 2))
    assert count_misses(pairs, 20) > 19_000
    assert count_misses(order_for_cache(pairs, 20), 20) < 1_300


@pytest.mark.parametrize(("wrong", "expected"), [(0.0, 3_300), (0.05, 9_000)])
def test_shuffled_images_of_a_loop_miss_little(wrong: float, expected: int) -> None:
    pairs = walked_loop(3_000, 20, wrong=wrong)
    assert count_misses(pairs, 200) > 45_000
    assert count_misses(order_for_cache(pairs, 200), 200) < expected


def test_a_film_is_read_as_it_was_taken() -> None:
    names = [f"{k:05d}" for k in range(2_000)]
    pairs = list(sequential_pairs(names, quadratic=False))
    assert count_misses(order_for_cache(pairs, 50), 50) < 2_100


def test_pairs_whose_images_all_fit_stay_in_order() -> None:
    pairs = [("b", "c"), ("a", "b")]
    assert order_for_cache(pairs, 3) == pairs
    assert order_for_cache([], 10) == []
