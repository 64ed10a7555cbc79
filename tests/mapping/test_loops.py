"""Loops through a row: a folded walk around a thing with two equal sides."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.mapping.loops import find_in_loops
from tests.support.ring import HALF_TURN, NUM_VIEWS, asked, folded, row, write


@pytest.fixture
def database(tmp_path: Path) -> Path:
    write(tmp_path / "database.db", row(6))
    return tmp_path / "database.db"


def test_a_pair_that_the_row_contradicts_is_found(database: Path) -> None:
    # views 6 to 11 were turned by half a turn onto views 0 to 5, which look alike
    views = folded([np.eye(3)] * 6 + [HALF_TURN] * 6)
    across = {(0, 6): 1.0, (1, 7): 1.0, (5, 11): 0.9}
    found = find_in_loops(database, views, asked(row(6) | across))
    names = [(pair.name0, pair.name1) for pair in found]
    assert names == [("0.jpg", "6.jpg"), ("1.jpg", "7.jpg"), ("11.jpg", "5.jpg")]
    for pair in found:
        assert pair.loop_deg == pytest.approx(180, abs=1)
        assert (pair.certainty, pair.absent) == (1.0, None)


def test_a_pair_whose_matches_tell_no_pose_is_not_judged(database: Path) -> None:
    views = folded([np.eye(3)] * 6 + [HALF_TURN] * 6)
    with pycolmap.Database.open(database) as opened:
        geometry = pycolmap.TwoViewGeometry()
        geometry.config = pycolmap.TwoViewGeometryConfiguration.UNCALIBRATED
        geometry.inlier_matches = np.zeros((3, 2), np.uint32)
        opened.write_two_view_geometry(4, 9, geometry)
    found = find_in_loops(database, views, asked(row(6) | {(3, 8): 0.0, (0, 6): 1.0}))
    assert [(pair.name0, pair.name1) for pair in found] == [("0.jpg", "6.jpg")]


def test_after_a_whole_turn_pairs_are_right_again(tmp_path: Path) -> None:
    # three stretches, of which the first and the last are at one place
    pairs = row(4)
    for step in (1, 2):
        pairs |= {(k, k + step): 0.0 for k in range(8 - step, 8)}
    write(tmp_path / "database.db", pairs)
    views = folded([np.eye(3)] * 4 + [HALF_TURN] * 4 + [np.eye(3)] * 4)
    across = {(0, 11): 1.0, (1, 10): 1.0, (0, 6): 1.0, (5, 11): 1.0}
    found = find_in_loops(tmp_path / "database.db", views, asked(pairs | across))
    assert [(p.name0, p.name1) for p in found] == [
        ("0.jpg", "6.jpg"),
        ("11.jpg", "5.jpg"),
    ]


def test_a_stretch_that_is_moved_and_not_turned(database: Path) -> None:
    views = folded([np.eye(3)] * NUM_VIEWS)
    found = find_in_loops(database, views, asked(row(6) | {(0, 6): 1.0}))
    assert [(pair.name0, pair.name1) for pair in found] == [("0.jpg", "6.jpg")]
    assert found[0].loop_deg == pytest.approx(0, abs=1)


def test_a_row_without_a_break_says_nothing(database: Path) -> None:
    views = folded([np.eye(3)] * NUM_VIEWS)
    assert find_in_loops(database, views, asked(row(0) | {(0, 6): 1.0})) == []
    # a single pair against all others across that place of the row is no break
    single = row(0) | {(5, 6): 0.0, (0, 6): 1.0}
    assert find_in_loops(database, views, asked(single)) == []
