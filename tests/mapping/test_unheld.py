"""Groups of views that hang against their own pairs: part of a walk turned round."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.mapping.unheld import Unheld, find_unheld, part
from tests.support.ring import HALF_TURN, NUM_VIEWS, asked, folded, row, write

MISPLACED = 8  # and the views after it are turned by half a turn
VIEWS = folded([np.eye(3)] * MISPLACED + [HALF_TURN] * (NUM_VIEWS - MISPLACED))
LAST = frozenset(f"{k}.jpg" for k in range(MISPLACED, NUM_VIEWS))
NOTHING = np.zeros(100, bool)


def unheld(
    database: Path,
    pairs: dict[tuple[int, int], float],
    num_inliers: dict[tuple[int, int], int] | None = None,
) -> list[Unheld]:
    told = asked(pairs, num_inliers)
    return find_unheld(database, VIEWS, told, NOTHING[: len(pairs)])


@pytest.fixture
def database(tmp_path: Path) -> Path:
    write(tmp_path / "database.db", row(MISPLACED))
    return tmp_path / "database.db"


def test_a_group_that_hangs_by_few_of_its_pairs_is_found(database: Path) -> None:
    # a true row that the model breaks, and a weak pair by which the end hangs
    weak = {(1, 9): 0.9}
    (found,) = unheld(database, row(MISPLACED) | weak, {(1, 9): 60})
    assert found.names == LAST
    (wrong,) = found.wrong
    assert (wrong.name0, wrong.name1, wrong.num_inliers) == ("1.jpg", "9.jpg", 60)
    assert wrong.loop_deg == pytest.approx(180, abs=1)
    assert wrong.absent is None
    assert wrong.certainty == pytest.approx(855 / 900, abs=1e-3)


def test_a_group_that_agrees_with_half_as_much_is_held(database: Path) -> None:
    strong = {(1, 9): 1.0, (2, 10): 1.0}
    assert unheld(database, row(MISPLACED) | strong) == []


def test_pairs_that_say_different_things_do_not_move_a_group(tmp_path: Path) -> None:
    # one pair that speaks against the pose is one pair
    pairs = row(0) | {(2, 9): 0.0}
    write(tmp_path / "one.db", [(2, 9)])
    assert unheld(tmp_path / "one.db", pairs) == []


def test_what_look_alikes_explain_says_nothing(database: Path) -> None:
    pairs = row(MISPLACED)
    told = asked(pairs)
    every = np.array([fitting < 1 for fitting in pairs.values()])
    assert find_unheld(database, VIEWS, told, every) == []


def test_groups_are_asked_for_their_pairs_to_where_others_should_be(
    tmp_path: Path,
) -> None:
    # two groups in the wrong place, whose pairs to each other the model breaks, too
    pairs = row(6) | {(7, 8): 0.0, (6, 8): 0.0, (7, 9): 0.0, (2, 9): 0.8}
    pairs[5, 6] = pairs[4, 6] = pairs[5, 7] = 0.0
    write(tmp_path / "groups.db", [pair for pair, fit in pairs.items() if fit < 1])
    views = folded([np.eye(3)] * 6 + [HALF_TURN] * 2 + [np.eye(3)] * 4)
    told = asked(pairs, {(2, 9): 40})
    found = find_unheld(tmp_path / "groups.db", views, told, NOTHING[: len(pairs)])
    # the second one stands where it should: nothing moves it
    assert [sorted(group.names) for group in found] == [["6.jpg", "7.jpg"]]


def test_without_pairs_nothing_is_found(database: Path) -> None:
    told = asked({(0, 1): 1.0})
    assert find_unheld(database, VIEWS, told, NOTHING[:1]) == []


def test_each_group_becomes_a_model() -> None:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig = 1, 8
    options.num_cameras_per_rig = 1
    model = pycolmap.synthesize_dataset(options)
    names = sorted(image.name for image in model.images.values())
    groups = [
        Unheld(names=frozenset(names[:3]), wrong=()),
        Unheld(names=frozenset(names[3:4]), wrong=()),
    ]
    found = part([model], [groups], 2)
    assert [part.num_reg_images() for part in found] == [4, 3]
    assert model.num_reg_images() == 8
    assert part([model], [[]], 2) == [model]
    assert part([model], [groups], 5) == [model]  # no part would be one
