"""Pairs that a model proposes: who should see the same, and was never matched."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

import numpy as np
import pycolmap

from sfmprep.mapping.second_round import pairs_of_lost, propose_pairs
from sfmprep.mapping.verify import VerifiedPairs
from sfmprep.mapping.view_graph import PairTable
from sfmprep.pairing.pairs import Pairs
from sfmprep.types import Pair
from tests.support.degenerate import capture, cloud_of, facing


def table(
    names: tuple[str, ...], inliers: dict[tuple[str, str], int] | None = None
) -> PairTable:
    inliers = inliers or {}
    rows = [[names.index(a), names.index(b)] for a, b in inliers]
    counts = np.array(list(inliers.values()), np.int64)
    nothing = VerifiedPairs(
        num_pairs=0,
        num_verified=0,
        num_inliers=0,
        num_rotation_only=0,
        images=frozenset(),
    )
    return PairTable(
        names=names,
        index=np.array(rows, np.int64).reshape(-1, 2),
        num_matches=counts + 8,
        num_inliers=counts,
        verified=nothing,
    )


def ring(number: int) -> tuple[pycolmap.Reconstruction, tuple[str, ...]]:
    """Cameras all around some points, at equal steps, that look at the middle."""
    angles = np.arange(number) * 2 * np.pi / number
    eyes = [(5 * np.cos(a), 5 * np.sin(a), 0.0) for a in angles]
    poses = [facing(eye, [-x for x in eye]) for eye in eyes]
    model, images = capture(poses, cloud_of("volume"))
    return model, images.names


def steps(pairs: Iterable[Pair], names: tuple[str, ...]) -> set[int]:
    """How far the images of the pairs are from each other around the ring."""
    far = [abs(names.index(a) - names.index(b)) for a, b in pairs]
    return {min(step, len(names) - step) for step in far}


def test_views_of_the_same_points_from_similar_sides_are_proposed() -> None:
    model, names = ring(24)
    found = propose_pairs([model], table(names), ())
    # 4 steps are 60 degrees at the middle: some points are seen at less
    assert steps(found, names) == {1, 2, 3, 4}
    assert len(found) >= 3 * 24


def test_what_was_tried_is_not_proposed_again() -> None:
    model, names = ring(24)
    everything = propose_pairs([model], table(names), ())
    next_ones = [p for p in everything if steps([p], names) == {1}]
    found = propose_pairs([model], table(names), next_ones)
    assert steps(found, names) == {2, 3, 4}
    assert not len(propose_pairs([model], table(names), everything))


def test_the_best_come_first_within_the_limits() -> None:
    model, names = ring(24)
    few = propose_pairs([model], table(names), (), max_pairs=24)
    assert len(few) == 24
    assert max(steps(few, names)) < 4
    assert len(propose_pairs([model], table(names), (), max_pairs=0)) == 0
    one = propose_pairs([model], table(names), (), per_image=1)
    assert 12 <= len(one) <= 24


def test_image_that_stayed_out_asks_what_its_partners_see() -> None:
    model, names = ring(24)
    # only every second point is seen from each side, so that views share some
    for point_id in list(model.point3D_ids()):
        for image_id in range(1, 25):
            step = abs(image_id - 1 - int(point_id) % 24)
            if min(step, 24 - step) > 3:
                for element in model.points3D[point_id].track.elements:
                    if element.image_id == image_id:
                        model.delete_observation(image_id, element.point2D_idx)
                        break
    names = (*names, "out.png")
    inliers = {("005.png", "out.png"): 40, ("006.png", "out.png"): 30}
    tried = Pairs.of([*itertools.combinations(names[:-1], 2), *inliers])
    found = propose_pairs([model], table(names, inliers), tried.items, per_image=2)
    assert sorted(found) == [("004.png", "out.png"), ("007.png", "out.png")]


def test_image_without_any_partner_asks_for_nothing() -> None:
    model, names = ring(6)
    tried = Pairs.of(itertools.combinations(names, 2))
    assert not len(propose_pairs([model], table((*names, "out.png")), tried.items))


def test_models_that_nothing_joins_ask_by_their_busiest_views() -> None:
    model, names = ring(6)
    other, _ = capture(
        [facing((0.1 * k, -5, 0), (0, 1, 0)) for k in range(3)], cloud_of("volume")
    )
    for image in other.images.values():
        image.name = f"other-{image.name}"
    both = (*names, *(image.name for image in other.images.values()))
    tried = Pairs.of(
        [*itertools.combinations(names, 2), *itertools.combinations(both[6:], 2)]
    )
    found = propose_pairs([model, other], table(both), tried.items, per_image=2)
    assert len(found) == 4
    assert all(b.startswith("other-") for _, b in found)
    joined = table(both, {(names[0], both[6]): 20})
    # now the images of the other model ask for themselves instead
    asked = propose_pairs([model, other], joined, tried.items, per_image=2)
    assert {b for _, b in asked} == {both[6]}


def test_without_models_or_points_nothing_is_proposed() -> None:
    assert not len(propose_pairs([], table(()), ()))
    model, images = capture([facing((0, -5, 0), (0, 1, 0))] * 2, cloud_of("none"))
    assert not len(propose_pairs([model], table(images.names), ()))


def test_a_lost_image_is_paired_with_what_its_partners_see() -> None:
    model, names = ring(24)
    every = (*names, "lost")
    inliers = {
        (names[6], "lost"): 20,
        (names[6], names[7]): 90,
        (names[5], names[6]): 80,
    }
    pairs = table(every, inliers)
    found = pairs_of_lost([model], pairs, per_image=5)
    own = [pair for pair in found if "lost" in pair]
    assert own[0] == (names[6], "lost")
    partners = {name for pair in own for name in pair} - {"lost"}
    assert len(partners) == 5
    # views that verified pairs join are matched again, to locate new keypoints
    whole = pairs_of_lost([model], pairs, per_image=24)
    assert set(whole) - {p for p in whole if "lost" in p} == set(inliers) - {own[0]}
    assert pairs_of_lost([model], pairs, per_image=5, max_pairs=2) == found[:2]


def test_a_lost_image_without_partners_is_paired_with_its_neighbours_by_name() -> None:
    model, names = ring(24)
    every = (*names[:12], f"{names[11]}a", *names[12:])
    found = pairs_of_lost([model], table(every), per_image=4)
    assert {name for pair in found for name in pair} == {*names[10:14], every[12]}
    # of two as far away, the one before: the same in every run
    found = pairs_of_lost([model], table(every), per_image=5)
    assert {name for pair in found for name in pair} == {*names[9:14], every[12]}
    never = {(min(name, every[12]), max(name, every[12])) for name in names[10:14]}
    found = pairs_of_lost([model], table(every), per_image=2, excluded=never)
    assert {name for pair in found for name in pair} == {names[9], names[14], every[12]}
    assert not pairs_of_lost([model], table(names))
    assert not pairs_of_lost([], table(every))


def test_a_lost_image_goes_to_the_model_of_its_partners() -> None:
    model, names = ring(24)
    other, others = ring(20)
    for image in other.images.values():
        image.name = f"other{image.name}"
    others = tuple(f"other{name}" for name in others)
    inliers = {("lost", others[3]): 25, ("lost", names[3]): 16}
    found = pairs_of_lost([model, other], table((*names, *others, "lost"), inliers))
    assert {name for pair in found for name in pair} - {"lost"} <= set(others)
