"""Which weak pairs a dearer matcher is asked for."""

from __future__ import annotations

import itertools

from sfmprep.pairing.pairs import Pairs, exhaustive_pairs
from sfmprep.pairing.weak_pairs import pairs_of_badly_held, weak_pairs
from sfmprep.types import Pair


def ring(num_images: int, reach: int = 3) -> dict[Pair, int]:
    """Images in a circle, strong with those up to `reach` away."""
    strong: dict[Pair, int] = {}
    for k, step in itertools.product(range(num_images), range(1, reach + 1)):
        name0, name1 = sorted((f"{k:03d}", f"{(k + step) % num_images:03d}"))
        strong[name0, name1] = 500
    return strong


def names_in(*inliers: dict[Pair, int]) -> list[str]:
    return sorted({name for part in inliers for pair in part for name in pair})


def tried(
    names: list[str],
    inliers: dict[Pair, int],
    *,
    num_matches: dict[Pair, int] | None = None,
    per_image: int = 10,
) -> list[Pair]:
    found = weak_pairs(
        exhaustive_pairs(names),
        inliers,
        min_num_inliers=30,
        num_matches=num_matches,
        per_image=per_image,
    )
    return list(found)


def test_a_capture_that_matches_well_asks_for_nothing() -> None:
    inliers = ring(40)
    assert tried(names_in(inliers), inliers) == []


def test_two_images_that_match_well_ask_for_nothing() -> None:
    assert tried(["a", "b"], {("a", "b"): 30}) == []


def test_an_image_alone_asks_for_its_likeliest_pairs() -> None:
    inliers = ring(20)
    names = [*names_in(inliers), "lost"]
    assert len(tried(names, inliers)) == 10
    few = tried(names, inliers | {("005", "lost"): 20}, per_image=1)
    assert few == [("005", "lost")]
    few = tried(names, inliers, num_matches={("007", "lost"): 80}, per_image=1)
    assert few == [("007", "lost")]


def test_of_equal_pairs_those_near_in_the_order_of_names_come_first() -> None:
    names = [f"img{k}.jpg" for k in range(20)]
    found = tried(names, {}, per_image=1)
    assert ("img10.jpg", "img9.jpg") in found  # in natural order neighbours
    assert len(found) <= 20


def test_an_image_with_few_partners_asks_where_something_says_that_both_overlap() -> (
    None
):
    inliers = ring(20) | {("000", "held"): 100, ("001", "held"): 100}
    found = tried(names_in(inliers), inliers)
    # those that its two partners are strong with
    assert sorted(found) == [(f"{k:03d}", "held") for k in (2, 3, 4, 17, 18, 19)]


def test_two_pieces_ask_for_what_may_join_them() -> None:
    left = {(f"a{a}", f"a{b}"): n for (a, b), n in ring(12).items()}
    right = {(f"b{a}", f"b{b}"): n for (a, b), n in ring(12).items()}
    names = names_in(left, right)
    found = tried(names, left | right)
    assert len(found) == 10
    assert all({a[0], b[0]} == {"a", "b"} for a, b in found)
    link = {("a003", "b007"): 20}
    assert tried(names, left | right | link, per_image=1) == list(link)


def test_a_pair_of_images_apart_from_the_rest_asks_as_if_alone() -> None:
    inliers = ring(12) | {("x", "y"): 200}
    found = tried(names_in(inliers), inliers, per_image=2)
    assert len(found) == 4
    assert all("x" in pair or "y" in pair for pair in found)


def test_a_pair_with_inliers_that_closes_a_loop_is_asked_for() -> None:
    inliers = ring(60)
    assert tried(names_in(inliers), inliers | {("000", "030"): 20}) == [("000", "030")]
    # near in the graph: nothing is gained
    assert tried(names_in(inliers), inliers | {("000", "005"): 20}) == []


def test_what_is_asked_for_is_bounded_by_the_images_that_are_badly_held() -> None:
    names = [f"{k:03d}" for k in range(200)]
    assert 0 < len(tried(names, {}, per_image=5)) <= 5 * len(names)


def test_no_pairs_give_no_weak_pairs() -> None:
    assert len(weak_pairs(Pairs.of([]), {}, min_num_inliers=60)) == 0


# ------------------------------------------------------------------ for other features
def beside(
    names: list[str], inliers: dict[Pair, int], *, per_image: int = 20
) -> list[Pair]:
    found = pairs_of_badly_held(
        exhaustive_pairs(names), inliers, min_num_inliers=30, per_image=per_image
    )
    return list(found)


def test_where_no_image_is_badly_held_no_other_features_are_asked_for() -> None:
    inliers = ring(40)
    assert beside(names_in(inliers), inliers) == []
    # two strong partners hold an image well enough, and a loop is no image
    held = {("000", "held"): 100, ("001", "held"): 100, ("000", "020"): 20}
    assert beside(names_in(inliers, held), inliers | held) == []


def test_a_badly_held_image_gets_partners_and_what_is_strong_among_them() -> None:
    inliers = ring(20)
    link = {("005", "lost"): 20, ("007", "lost"): 12}
    found = beside(names_in(inliers, link), inliers | link, per_image=2)
    assert sorted(found) == [("005", "007"), ("005", "lost"), ("007", "lost")]


def test_pieces_get_what_may_join_them() -> None:
    left = {(f"a{a}", f"a{b}"): n for (a, b), n in ring(12).items()}
    right = {(f"b{a}", f"b{b}"): n for (a, b), n in ring(12).items()}
    link = {("a003", "b007"): 20, ("a004", "b007"): 10}
    names = names_in(left, right)
    found = beside(names, left | right | link, per_image=2)
    assert sorted(found) == [("a003", "a004"), ("a003", "b007"), ("a004", "b007")]


def test_an_image_whose_only_strong_pair_is_with_another_such_is_badly_held() -> None:
    inliers = ring(12) | {("x", "y"): 200}
    found = beside(names_in(inliers), inliers, per_image=1)
    assert ("x", "y") in found
    assert len([pair for pair in found if pair != ("x", "y")]) == 2


def test_no_pairs_ask_for_no_other_features() -> None:
    assert len(pairs_of_badly_held(Pairs.of([]), {}, min_num_inliers=30)) == 0
