"""Many models in one frame."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from sfmprep.mapping.placement import Joint, place_all


def similarities(count: int) -> list[pycolmap.Sim3d]:
    """Of each model, world from its own frame."""
    rng = np.random.default_rng(0)
    return [
        pycolmap.Sim3d(
            float(np.exp(rng.normal(0, 0.5))),
            pycolmap.Rotation3d(Rotation.random(random_state=rng).as_matrix()),
            rng.normal(0, 5, 3),
        )
        for _ in range(count)
    ]


def joint(
    frames: list[pycolmap.Sim3d], first: int, second: int, *, turned_deg: float = 0.0
) -> Joint:
    turn = Rotation.from_euler("z", turned_deg, degrees=True).as_matrix()
    off = pycolmap.Sim3d(1.0, pycolmap.Rotation3d(turn), np.zeros(3))
    return Joint(
        first=first,
        second=second,
        first_from_second=off * (frames[first].inverse() * frames[second]),
        num_links=100,
        centre=np.ones(3),
        extent=2.0,
    )


def assert_same_frames(
    found: list[pycolmap.Sim3d], frames: list[pycolmap.Sim3d], deg: float
) -> None:
    """Up to the frame of the first."""
    for own, true in zip(found, frames, strict=True):
        way = found[0].inverse() * own
        true_way = frames[0].inverse() * true
        turn = np.asarray((way.rotation * true_way.rotation.inverse()).matrix())
        assert np.degrees(Rotation.from_matrix(turn).magnitude()) < deg
        assert way.scale == pytest.approx(true_way.scale, rel=np.radians(deg) + 1e-9)


def test_a_ring_of_models_gets_one_frame() -> None:
    frames = similarities(5)
    ring = [joint(frames, k, (k + 1) % 5) for k in range(5)]
    placed = place_all(5, ring)
    assert set(placed.label.tolist()) == {0} and not placed.contradicted
    assert_same_frames(placed.world_from_model, frames, 1e-4)


def test_what_is_left_around_a_cycle_is_shared_out() -> None:
    frames = similarities(4)
    ring = [joint(frames, k, (k + 1) % 4, turned_deg=1.0) for k in range(4)]
    placed = place_all(4, ring)
    assert not placed.contradicted
    assert_same_frames(placed.world_from_model, frames, 3.5)


def test_a_joint_that_two_ways_around_contradict_does_not_count() -> None:
    frames = similarities(4)
    ends = [(0, 1), (1, 2), (2, 3), (0, 2), (1, 3)]
    joints = [joint(frames, *pair) for pair in ends]
    wrong = joint(frames, 0, 3, turned_deg=90)
    placed = place_all(4, [wrong, *joints])
    assert placed.contradicted == [wrong]
    assert_same_frames(placed.world_from_model, frames, 0.05)


def test_models_without_a_joint_keep_their_frames() -> None:
    frames = similarities(3)
    placed = place_all(3, [joint(frames, 0, 2)])
    assert placed.label.tolist() == [0, 1, 0]
    assert placed.world_from_model[1].scale == 1
    assert place_all(2, []).label.tolist() == [0, 1]


def test_a_hundred_models_are_placed_by_all_their_joints() -> None:
    side = 10
    frames = similarities(side**2)
    rng = np.random.default_rng(1)
    joints = [
        joint(frames, k, other, turned_deg=rng.normal(0, 0.3))
        for k in range(side**2)
        for other in (k + 1, k + side)
        if other < side**2 and (other == k + side or other % side)
    ]
    assert len(joints) == 2 * side * (side - 1)
    placed = place_all(side**2, joints)
    assert not placed.contradicted
    # along a tree of as many, errors of 0.3 degrees add up to 1.2 and more
    assert_same_frames(placed.world_from_model, frames, 1.3)
