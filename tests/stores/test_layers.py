"""Matches of two matchers, read as those of one."""

from __future__ import annotations

import numpy as np
import pytest

from sfmprep.errors import StoreError
from sfmprep.stores.layers import MatchLayers, one_to_one
from sfmprep.stores.tables import MatchStore
from sfmprep.types import Matches, Pair


def matches(*rows: tuple[int, int], score: float = 0.5) -> Matches:
    index = np.array(rows, np.int32).reshape(-1, 2)
    return Matches(index=index, scores=np.full(len(rows), score, np.float32))


def layers(lower: dict[Pair, Matches], upper: dict[Pair, Matches]) -> MatchLayers:
    stores = []
    for content in (lower, upper):
        store = MatchStore(None, {})
        store.append(list(content.items()))
        stores.append(store)
    return MatchLayers(*stores)


def test_the_upper_layer_goes_first_and_the_lower_fills_what_is_free() -> None:
    joined = one_to_one(
        matches((0, 5), (1, 6), score=0.75), matches((0, 0), (2, 6), (3, 7), score=0.25)
    )
    assert joined.index.tolist() == [[0, 5], [1, 6], [3, 7]]
    assert joined.scores.tolist() == [0.75, 0.75, 0.25]
    assert len(one_to_one(Matches.none(), Matches.none())) == 0


def test_all_ways_of_reading_agree() -> None:
    lower = {("a", "b"): matches((0, 0), (1, 1)), ("a", "c"): matches((4, 4))}
    with layers(lower, {("a", "b"): matches((1, 0))}) as both:
        assert both.pairs() == [("a", "b"), ("a", "c")]
        assert len(both) == 2
        assert ("b", "a") in both
        assert ("b", "c") not in both
        items = {pair: found.index.tolist() for pair, found in both.items()}
        assert items == {("a", "b"): [[1, 0]], ("a", "c"): [[4, 4]]}
        assert {p: i.tolist() for p, i in both.indices()} == items
        assert both.get("b", "a").index.tolist() == [[0, 1]]
        assert both.num_matches() == {("a", "b"): 2, ("a", "c"): 1}


def test_pairs_of_either_layer_are_there_and_of_the_upper_only_those_tried() -> None:
    stores = [MatchStore(None, {}), MatchStore(None, {})]
    stores[0].append([(("a", "b"), matches((0, 0)))])
    stores[1].append(
        [(pair, matches((1, 1), (2, 2))) for pair in (("a", "b"), ("a", "c"))]
    )
    stores[1].append([(("b", "c"), matches((3, 3)))])
    with MatchLayers(*stores, tried=[("a", "c"), ("b", "d")]) as both:
        assert both.pairs() == [("a", "b"), ("a", "c")]
        assert len(both) == 2
        assert ("c", "a") in both
        assert ("b", "c") not in both
        assert both.get("a", "b").index.tolist() == [[0, 0]]
        found = {pair: index.tolist() for pair, index in both.indices()}
        assert found == {("a", "b"): [[0, 0]], ("a", "c"): [[1, 1], [2, 2]]}
        assert found == {p: m.index.tolist() for p, m in both.items()}
        assert both.num_matches() == {("a", "b"): 1, ("a", "c"): 2}
        with pytest.raises(StoreError, match="has no matches of"):
            both.get("b", "c")


def test_empty_layers_hold_nothing() -> None:
    with layers({}, {}) as both:
        assert (both.pairs(), len(both), both.num_matches()) == ([], 0, {})
