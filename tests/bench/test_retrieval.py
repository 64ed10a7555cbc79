"""What truly overlaps, and how much of it is found."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from tests.bench.retrieval import overlaps, recall


def entry(angle_deg: float) -> dict[str, Any]:
    """A camera on a circle of 2 around the origin, which it looks at; 60 degrees."""
    rotation = Rotation.from_euler("y", angle_deg, degrees=True).as_matrix()
    focal = 50 / np.tan(np.radians(30))
    return {
        "R": rotation.tolist(),
        "t": [0.0, 0.0, 2.0],
        "K": [[focal, 0, 50], [0, focal, 50], [0, 0, 1]],
        "width": 100,
        "height": 100,
    }


def test_overlap_is_by_poses_alone() -> None:
    away = {**entry(0), "t": [5.0, 0.0, 2.0]}  # looks past it
    cameras = {"a": entry(0), "b": entry(20), "c": entry(60), "d": entry(180)}
    found = overlaps({**cameras, "away": away})
    assert found == {"a": ["b"], "b": ["a", "c"], "c": ["b"], "d": [], "away": []}


@pytest.mark.parametrize(("count", "expected"), [(1, 0.5), (2, 0.75), (9, 1.0)])
def test_recall_is_of_what_can_be_found(count: int, expected: float) -> None:
    overlapping = {"a": ["b", "c"], "b": ["a"], "d": []}
    found = {"a": ["a", "b", "d", "c"], "b": ["b", "d", "a"], "d": ["a"]}
    assert recall(overlapping, found, count) == expected
