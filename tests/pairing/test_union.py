"""Pairs of several ways within one budget."""

from __future__ import annotations

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


def test_what_two_ways_propose_comes_first_and_then_the_ways_take_turns() -> None:
    alike = {"a": ["d", "c", "b"]}
    near = {"a": ["e", "f"], "b": ["a"]}  # asked by the other one there
    assert of(1, alike=alike, near=near) == {("a", "b")}
    assert of(2, alike=alike, near=near) == {("a", "b"), ("a", "d")}
    assert of(2, near=near, alike=alike) == {("a", "b"), ("a", "e")}
    third = {("a", "b"), ("a", "d"), ("a", "e")}
    assert of(3, alike=alike, near=near) == third
    assert of(4, alike=alike, near=near) == third | {("a", "c")}
    assert of(5, alike=alike, near=near) == third | {("a", "c"), ("a", "f")}


def test_an_image_keeps_what_it_asks_for_from_one_that_many_want() -> None:
    star = {f"{k}": ["hub"] for k in range(9)} | {"hub": ["0", "1"]}
    pairs, counts = pairs_within_budget({"star": star}, per_image=1)
    assert len(pairs) == 9
    assert counts == [count("star", 9, 9)]


def test_counts_are_of_pairs_whoever_proposed_them() -> None:
    # a asks for b, which both propose; b, c, d and e for their first
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
