"""Pairs of several ways within one budget."""

from __future__ import annotations

import itertools

from sfmprep.pairing.pairs import Pairs, Partners, later_partners
from sfmprep.pairing.union import WayCount, pairs_within_budget

ALIKE = {"a": ["d", "c", "b"], "b": ["a"], "c": ["a"], "d": ["a"]}
NEAR = {"a": ["e", "f", "b"], "b": [], "e": ["f"]}


def of(per_image: int | None, **ways: Partners) -> set[tuple[str, str]]:
    return set(pairs_within_budget(ways, per_image=per_image)[0])


def count(way: str, num_proposed: int, num_kept: int) -> WayCount:
    return WayCount(way=way, num_proposed=num_proposed, num_kept=num_kept)


def test_without_a_budget_all_stay() -> None:
    pairs, counts = pairs_within_budget({"alike": ALIKE, "near": NEAR}, per_image=None)
    assert pairs == Pairs.of([*Pairs.of_partners(ALIKE), *Pairs.of_partners(NEAR)])
    assert counts == [count("alike", 3, 3), count("near", 4, 4)]


def test_the_best_of_each_way_comes_first_and_then_what_two_propose() -> None:
    alike = {"a": ["d", "c", "b"]}
    near = {"a": ["e", "f"], "b": ["g", "h", "a"]}  # a and b: asked by the other one
    assert of(1, alike=alike, near=near) == {("a", "d"), ("b", "g")}
    assert of(1, near=near, alike=alike) == {("a", "e"), ("b", "g")}
    second = {("a", "d"), ("a", "e"), ("b", "g"), ("a", "b")}
    assert of(2, alike=alike, near=near) == second
    third = second | {("b", "h")}  # by b; a asks for b
    assert of(3, alike=alike, near=near) == third
    assert of(4, alike=alike, near=near) == third | {("a", "c")}
    assert of(4, near=near, alike=alike) == third | {("a", "f")}
    assert of(5, alike=alike, near=near) == third | {("a", "c"), ("a", "f")}


def test_a_small_budget_does_not_part_a_film() -> None:
    names = [f"{k:02}" for k in range(20)]
    far = {n: [*names[k - 10 :], *names[: k - 10]][:8] for k, n in enumerate(names)}
    film = later_partners(names, window=10, quadratic=True)
    found = of(2, alike=far, near=far, sequential=film)  # two ways agree on the far
    assert found >= set(itertools.pairwise(names))


def test_an_image_keeps_what_it_asks_for_from_one_that_many_want() -> None:
    star = {f"{k}": ["hub"] for k in range(9)} | {"hub": ["0", "1"]}
    pairs, counts = pairs_within_budget({"star": star}, per_image=1)
    assert len(pairs) == 9
    assert counts == [count("star", 9, 9)]


def test_counts_are_of_pairs_whoever_proposed_them() -> None:
    # each asks for its first, a for that of the first way
    pairs, counts = pairs_within_budget({"alike": ALIKE, "near": NEAR}, per_image=1)
    assert list(pairs) == [("a", "b"), ("a", "c"), ("a", "d"), ("e", "f")]
    assert counts == [count("alike", 3, 3), count("near", 4, 2)]


def test_the_order_of_images_does_not_matter() -> None:
    def turned(way: Partners) -> Partners:
        return {name: way[name] for name in reversed(list(way))}

    for budget in (1, 2, 3):
        assert of(budget, alike=turned(ALIKE), near=turned(NEAR)) == of(
            budget, alike=ALIKE, near=NEAR
        )


def test_nothing_proposes_nothing() -> None:
    assert pairs_within_budget({}, per_image=3) == (Pairs(()), [])
    empty: Partners = {"a": []}
    found = pairs_within_budget({"alike": empty, "near": {}}, per_image=3)
    assert found == (Pairs(()), [count("alike", 0, 0), count("near", 0, 0)])


def test_a_long_film_stays_within_the_budget() -> None:
    names = [f"{k:05}" for k in range(30_000)]
    film = later_partners(names, window=10, quadratic=True)
    pairs, [counted] = pairs_within_budget({"sequential": film}, per_image=5)
    assert counted.num_kept == len(pairs) == 5 * 30_000 - 15
    assert ("00000", "00005") in set(pairs) and ("00000", "00006") not in set(pairs)
