"""Two kinds of features of the same images, read as one."""

from __future__ import annotations

import numpy as np
import pytest

from sfmprep.errors import StoreError
from sfmprep.stores.beside import join_keypoints
from sfmprep.stores.layers import MatchLayers
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Features, Matches


def features(*rows: tuple[float, float], scale: float | None = None) -> Features:
    xy = np.array(rows, np.float32).reshape(-1, 2)
    shape = None if scale is None else np.full(len(xy), scale, np.float32)
    return Features(
        xy=xy,
        scores=np.arange(len(xy), dtype=np.float32),
        descriptors=np.ones((len(xy), 4), np.float16),
        image_size=(40, 30),
        orientation=6,
        scale=shape,
        angle=shape,
    )


def feature_store(**items: Features) -> FeatureStore:
    store = FeatureStore(None, {})
    store.append(list(items.items()))
    return store


def matches(*rows: tuple[int, int], score: float = 0.5) -> Matches:
    index = np.array(rows, np.int32).reshape(-1, 2)
    return Matches(index=index, scores=np.full(len(rows), score, np.float32))


def test_the_rows_of_the_second_kind_come_behind_those_of_the_first() -> None:
    first = feature_store(a=features((1, 2), (3, 4)), b=features((5, 6)))
    second = feature_store(
        a=features((7, 8), scale=2),
        b=features((9, 9), scale=2),
        c=features((0, 0), scale=2),
    )
    joined = FeatureStore(None, {})
    join_keypoints(first, second, joined, images={"a", "c"})
    assert joined.names() == ["a", "b"]  # b was not asked for, c is only in the second
    found = joined.get("a")
    assert found.xy.tolist() == [[1, 2], [3, 4], [7, 8]]
    assert found.scores.tolist() == [0, 1, 0]
    assert found.descriptors.shape == (3, 0)
    assert (found.image_size, found.orientation) == ((40, 30), 6)
    assert found.scale is None
    assert found.angle is None
    assert joined.get("b").xy.tolist() == [[5, 6]]


def test_matches_of_the_second_kind_are_moved_behind_those_of_the_first() -> None:
    first, second = MatchStore(None, {"of": 1}), MatchStore(None, {"of": 2})
    first.append([(("a", "b"), matches((0, 0), (1, 4))), (("b", "c"), matches((2, 2)))])
    second.append(
        [
            (("a", "b"), matches((0, 1), score=0.25)),
            (("a", "c"), matches((3, 5))),
            (("b", "c"), matches((9, 9))),  # not one of those tried
        ]
    )
    starts = {"a": 10, "b": 20, "c": 30}
    with MatchLayers(first, second, [("a", "b"), ("a", "c")], starts) as both:
        assert both.provenance == {"lower": {"of": 1}, "upper": {"of": 2}}
        assert both.pairs() == [("a", "b"), ("b", "c"), ("a", "c")]
        assert len(both) == 3
        assert ("c", "a") in both
        assert ("a", "d") not in both
        expected = {
            ("a", "b"): [[10, 21], [0, 0], [1, 4]],
            ("b", "c"): [[2, 2]],
            ("a", "c"): [[13, 35]],
        }
        assert {p: m.index.tolist() for p, m in both.items()} == expected
        assert {p: i.tolist() for p, i in both.indices()} == expected
        assert both.get("a", "b").scores.tolist() == [0.25, 0.5, 0.5]
        assert both.get("b", "a").index.tolist() == [[21, 10], [0, 0], [4, 1]]
        assert both.num_matches() == {("a", "b"): 2, ("b", "c"): 1, ("a", "c"): 1}
        with pytest.raises(StoreError, match="has no matches of 'a' and 'd'"):
            both.get("a", "d")


def test_nothing_beside_nothing_is_nothing() -> None:
    joined = FeatureStore(None, {})
    join_keypoints(feature_store(), feature_store(), joined, images=())
    assert joined.names() == []
