"""Neighbours of views by their poses, of few views and of thousands."""

from __future__ import annotations

import functools

import numpy as np
from scipy.spatial.transform import Rotation

from sfmprep.pairing.near_views import near_partners
from sfmprep.pairing.pairs import Partners

N = 2_100  # more than are all looked at
WANTED = 12
NEAR = 8  # two thirds of them


def _views() -> tuple[list[str], np.ndarray, np.ndarray]:
    rng = np.random.default_rng(3)
    rotations = Rotation.random(N, random_state=3).as_matrix()
    centres = rng.normal(size=(N, 3)) * (10.0, 10.0, 1.0)
    return [f"{row:04}" for row in range(N)], rotations, centres


@functools.cache
def _partners() -> Partners:
    return near_partners(*_views(), num_neighbours=WANTED)


def test_of_thousands_of_views_the_nearest_are_those_of_all() -> None:
    names, rotations, centres = _views()
    partners = _partners()
    forward = rotations[:, 2]
    spread = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    for row in range(0, N, 70):
        angle = np.degrees(np.arccos((forward @ forward[row]).clip(-1, 1)))
        away = np.linalg.norm(centres - centres[row], axis=1) / np.median(spread)
        away += angle / 45
        away[(angle > 90) | (np.arange(N) == row)] = np.inf
        nearest = [names[other] for other in np.argsort(away)[:NEAR]]
        assert partners[names[row]][:NEAR] == nearest
        assert all(angle[int(name)] <= 90 for name in partners[names[row]])


def test_of_thousands_the_further_ones_are_further_and_further_away() -> None:
    _, _, centres = _views()
    partners = _partners()
    assert {len(asked) for asked in partners.values()} == {WANTED}
    assert all(name not in asked for name, asked in partners.items())
    further = [asked[NEAR:] for asked in partners.values()]
    distances = np.mean(
        [
            [np.linalg.norm(centres[int(name)] - centres[int(other)]) for other in some]
            for name, some in zip(partners, further, strict=True)
        ],
        axis=0,
    )
    assert np.all(np.diff(distances) > 1)


def test_of_thousands_in_one_place_none_is_its_own_partner() -> None:
    names, rotations, centres = _views()
    centres[:1500], rotations[:1500] = centres[0], rotations[0]
    partners = near_partners(names, rotations, centres, num_neighbours=WANTED)
    assert all(name not in asked for name, asked in partners.items())


def test_the_same_views_have_the_same_neighbours_again() -> None:
    assert near_partners(*_views(), num_neighbours=WANTED) == _partners()
