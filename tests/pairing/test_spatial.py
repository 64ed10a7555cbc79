"""Pairs by GPS positions."""

from __future__ import annotations

import pytest

from sfmprep.pairing.pairs import Pairs
from sfmprep.pairing.spatial import spatial_partners

_STEP = 1e-4  # degrees of latitude, some 11.1 m


def at(*steps: float, longitude: float = 11.0) -> dict[str, tuple[float, float]]:
    """Photographs so many steps to the north."""
    return {f"{k}.jpg": (48 + step * _STEP, longitude) for k, step in enumerate(steps)}


def spatial_pairs(
    places: dict[str, tuple[float, float]],
    *,
    num_neighbours: int,
    accuracy_m: float = 0.0,
) -> Pairs:
    return Pairs.of_partners(
        spatial_partners(places, num_neighbours=num_neighbours, accuracy_m=accuracy_m)
    )


def test_nearest_are_paired() -> None:
    places = at(0, 1, 2.5, 10, 11, 30)
    assert list(spatial_pairs(places, num_neighbours=1)) == [
        *(("0.jpg", "1.jpg"), ("1.jpg", "2.jpg"), ("3.jpg", "4.jpg")),
        ("4.jpg", "5.jpg"),
    ]
    every = spatial_pairs(places, num_neighbours=99)
    assert len(every) == 15


def test_a_degree_of_longitude_is_shorter_far_north() -> None:
    places = {"a": (60.0, 11.0), "north": (60.0 + _STEP, 11.0), "c": (60.1, 11.0)}
    places["east"] = (60.0, 11.0 + 1.5 * _STEP)  # 8.3 m
    assert ("a", "east") in spatial_pairs(places, num_neighbours=1)
    assert ("a", "north") not in list(spatial_pairs(places, num_neighbours=1))[:1]


def test_the_nearest_is_asked_for_first() -> None:
    partners = spatial_partners(at(0, 1, 2.5), num_neighbours=2)
    assert partners["0.jpg"] == ["1.jpg", "2.jpg"]
    assert partners["2.jpg"] == ["1.jpg", "0.jpg"]


def test_the_earth_is_flattened() -> None:
    """94.30 m to the north and 94.43 m to the east; on a sphere 94.35 and 94.16 m."""
    places = {"a": (45.0, 11.0), "east": (45.0, 11.0 + 0.998 * 1.2e-3)}
    places["north"] = (45.0 + 1.2e-3 / 2**0.5, 11.0)
    assert spatial_partners(places, num_neighbours=1)["a"] == ["north"]


def test_the_date_line_parts_nothing() -> None:
    places = {"west": (0.0, -179.9999), "east": (0.0, 179.9999), "far": (0.0, 179.99)}
    assert ("east", "west") in spatial_pairs(places, num_neighbours=1)


def test_photographs_of_one_position_are_neighbours() -> None:
    places = at(0, 0, 0, 50, 50)
    found = set(spatial_pairs(places, num_neighbours=1))
    assert ("3.jpg", "4.jpg") in found
    assert all(
        {a, b} <= {"0.jpg", "1.jpg", "2.jpg"} for a, b in found - {("3.jpg", "4.jpg")}
    )


@pytest.mark.parametrize(("accuracy_m", "number"), [(5.0, 0), (1.0, 1)])
def test_positions_that_tell_nothing_pair_nothing(
    accuracy_m: float, number: int
) -> None:
    places = at(0, 1)  # 5.6 m from their mean
    found = spatial_pairs(places, num_neighbours=1, accuracy_m=accuracy_m)
    assert len(found) == number


def test_one_photograph_and_one_spot_pair_nothing() -> None:
    assert not len(spatial_pairs({}, num_neighbours=3))
    assert not len(spatial_pairs(at(0), num_neighbours=3))
    assert not len(spatial_pairs(at(0, 0, 0), num_neighbours=3))
