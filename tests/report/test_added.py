"""What is said of the poses of a result that photographs joined."""

from __future__ import annotations

import pytest

from sfmprep.report.added import moved
from sfmprep.report.schema import Added


def added(num_added: int, size: float | None, *, is_adjusted: bool) -> Added:
    return Added(
        num_earlier=100,
        num_added=num_added,
        is_adjusted=is_adjusted,
        median_rotation_deg=size,
        max_rotation_deg=size,
        median_share=size,
        max_share=size,
    )


@pytest.mark.parametrize(("num_added", "is_told"), [(0, False), (9, False), (10, True)])
def test_adjusting_is_proposed_from_a_tenth_more_on(
    num_added: int, is_told: bool
) -> None:
    assert ("--adjust" in moved(added(num_added, 0, is_adjusted=False))) == is_told


def test_what_moved_by_an_unknown_size_is_no_zero() -> None:
    assert moved(added(1, 0.25, is_adjusted=True)) == (
        "the poses of the 100 earlier photographs moved by 0.25° and 25% of the"
        " cameras' extent (median), at most by 0.25° and 25%"
    )
    assert moved(added(1, None, is_adjusted=True)) == (
        "the poses of the 100 earlier photographs moved, and the world with them: they"
        " do not tell by how much"
    )
