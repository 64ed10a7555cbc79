"""Pages that benchmarks write, of made-up rows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from sfmprep.evaluation.reference import CameraPose
from tests.bench import lenses, repeats
from tests.support.orbit import looking


def row(seed: int, **changes: Any) -> dict[str, Any]:
    return {
        "scene": "fourfold",
        "seed": seed,
        "images": 40 + seed,
        "plainly_wrong": 0.5,
        "wrong": 0.0,
        "flagged": False,
        "date": "2026-11-27T10:00:00Z",
        **changes,
    }


def test_repeats_counts_what_is_wrong_and_unsaid() -> None:
    rows = [
        row(0, wrong=0.7),  # an earlier run of the same seed
        row(0),
        row(1, wrong=0.3, flagged=True),
        row(2, wrong=0.3),
        row(3, flagged=True, plainly_wrong=0.0),
    ]
    page = repeats.page(rows)
    assert (
        "| four equal sides, of points | 40 to 43 | 4 | 3 | 2 | 1 | 1 |\n"
        "\n(2026-11-27)\n"
    ) in page
    assert "two equal fronts" not in page.split("|---", 1)[1].split("What can")[0]
    assert "(nothing was run)" in repeats.page([])


def test_a_walk_around_a_thing() -> None:
    angles = np.radians([10, 40, 190, 340])
    centres = 3 * np.column_stack([np.cos(angles), 0 * angles, -np.sin(angles)]) + 5
    poses = [CameraPose(rotation=looking(5 - c), centre=c) for c in centres]
    around = repeats.around_deg(poses)
    assert around[0] == pytest.approx(0, abs=1e-6)
    np.testing.assert_allclose(np.minimum(around, 360 - around)[1:], (30, 180, 30))


def test_lenses_say_how_far_the_default_is_behind() -> None:
    def found(how: str, focal: float, auc: float) -> dict[str, Any]:
        return {
            "lens": "RADIAL",
            "how": how,
            "registered": 20,
            "model": "RADIAL",
            "focal": focal,
            "offset": (0.2, -0.1),
            "auc": [auc, 99.0, 99.5],
        }

    page = lenses.page([found("auto", -0.004, 96.5), found("true", 0.0, 98.0)], "today")
    assert "off by 0.40% at most, AUC@1 is 1.5 points" in page
    assert "20 of 20 images have a pose" in page
    assert (
        "| RADIAL | auto | 20 of 20 | RADIAL | -0.40% | +0.2, -0.1 px"
        " | 96.5 / 99.0 / 99.5 |"
    ) in page
