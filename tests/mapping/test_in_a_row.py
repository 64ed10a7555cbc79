"""What the order of photographs says of pairs and poses."""

from __future__ import annotations

import numpy as np

from sfmprep.mapping.in_a_row import (
    breaks,
    follow_in_time,
    next_to_each_other,
    stretches,
)

NAMES = ("1.jpg", "2.jpg", "10.jpg", "11.jpg", "12.jpg")
# each with the next one, and the third with the first and the last
INDEX = np.array([(0, 1), (1, 2), (2, 3), (3, 4), (0, 2), (2, 4)])
STRONG = np.array([90, 80, 90, 80, 50, 50])


def test_numbers_give_the_order() -> None:
    assert next_to_each_other(NAMES, INDEX).tolist() == [True] * 4 + [False] * 2
    assert not len(next_to_each_other((), np.empty((0, 2), np.int64)))


def test_names_without_an_order_say_nothing() -> None:
    names = [f"{k:02d}.jpg" for k in range(20)]
    row = np.array([(k, k + 1) for k in range(19)])
    far = np.array([(k, (k + d) % 20) for k in range(20) for d in (5, 7, 9)])
    index = np.concatenate([row, np.sort(far, axis=1)])
    strong = np.concatenate([np.full(19, 90), np.full(60, 20)])
    assert follow_in_time(names, index, strong).sum() == 19
    assert not follow_in_time(names, index, 110 - strong).any()
    assert not follow_in_time(names, index[19:], strong[19:]).any()


def test_look_alikes_that_are_as_strong_as_the_next_one_hide_no_order() -> None:
    """36 around an object of four equal sides: eight are as much like the next one."""
    names = [f"{k:02d}.jpg" for k in range(36)]
    index = np.array([(i, j) for i in range(36) for j in range(i + 1, 36)])
    gap = np.diff(index, axis=1)[:, 0] % 9
    noise = np.random.default_rng(0).integers(-60, 60, len(index))
    strong = np.choose(np.minimum(gap, 9 - gap), (1400, 1190, 1040, 560, 680)) + noise
    assert follow_in_time(names, index, strong).sum() == 35
    shuffled = np.random.default_rng(1).permutation(36)
    assert not follow_in_time(names, np.sort(shuffled[index], axis=1), strong).any()


def test_neighbours_that_do_not_fit_break_the_row() -> None:
    fitting = np.array([1.0, 0.1, 1.0, 1.0, 1.0, 0.1])
    broken = breaks(NAMES, INDEX, STRONG, fitting)
    assert broken.tolist() == [False, True] + [False] * 4
    assert not breaks(NAMES, INDEX, np.full(6, 29), fitting).any()  # too weak
    fitting[1] = 0.49  # fewer than half of the matches
    assert breaks(NAMES, INDEX, STRONG, fitting).tolist() == broken.tolist()
    fitting[1] = 0.5
    assert not breaks(NAMES, INDEX, STRONG, fitting).any()
    # 1 and 2 are on one side, 10 to 12 on the other
    assert stretches(NAMES, INDEX, broken).tolist() == [0, 0, 1, 1, 1]
    assert not stretches(NAMES, INDEX, np.zeros(6, bool)).any()
