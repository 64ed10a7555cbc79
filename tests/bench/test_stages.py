"""The bench of stages: what it counts, and the page that it writes."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from tests.bench.stages import _Steps, count_flops, page

ABOUT: dict[str, Any] = {
    "commit": "0123456789abcdef",
    "date": "2026-11-27T12:00:00Z",
    "device": "AMD EPYC",
    "cores": 2,
    "load_average": 0.2,
    "versions": {"python": "3.11.7"},
}


def test_products_are_counted_also_where_there_are_several_cores() -> None:
    a, b = torch.ones(3, 5), torch.ones(5, 7)
    assert count_flops(lambda: a @ b) == 2 * 3 * 5 * 7


def test_steps_keep_the_cpu_seconds_between_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    times = iter((1.0, 3.5, 4.0))
    monkeypatch.setattr("tests.bench.stages._cpu_seconds", lambda: next(times))
    steps = _Steps()
    steps["extract"] = 2.0
    steps["match"] = 0.25
    assert steps == {"extract": 2.0, "match": 0.25}
    assert steps.cpu == {"extract": 2.5, "match": 0.5}


def test_the_page_holds_each_stage_against_its_bound() -> None:
    ours = {
        "scene": "fox",
        "tool": "sfmprep",
        "steps": {"extract": 2.0, "pairs": 0.01, "map": 4.0},
        "cpu": {"extract": 3.0, "pairs": 0.01, "map": 4.0},
        "flops": {"extract": 5e10},
    }
    theirs = {"scene": "fox", "tool": "colmap", "steps": {"map": 9.0}, "cpu": {}}
    text = page([ours, {**theirs, "flops": {}}], ABOUT, rate=1e11)
    assert "Commit 0123456789, 2026-11-27,\nAMD EPYC, 2 cores, load 0.2" in text
    assert [line for line in text.splitlines() if line.startswith("| fox")] == [
        "| fox | sfmprep | extract | 2.00 | 3.00 | 1.5 | 0.50 | 4.0 |",
        "| fox | sfmprep | map | 4.00 | 4.00 | 1.0 | – | – |",
        "| fox | sfmprep | **together** | 6.01 | 7.01 | 1.2 | – | – |",
        "| fox | COLMAP SIFT | map | 9.00 | – | – | – | – |",
        "| fox | COLMAP SIFT | **together** | 9.00 | – | – | – | – |",
    ]


def test_the_page_says_what_gets_to_the_learned_matcher() -> None:
    row = {
        "scene": "fox",
        "tool": "sfmprep",
        "steps": {"match": 2.0, "match weak pairs": 1.0},
        "cpu": {"match": 3.0, "match weak pairs": 1.0},
        "flops": {},
        "pairs": {"match": 1225, "match weak pairs": 7, "second round": 3},
    }
    text = page([row], ABOUT, rate=1e11)
    assert text.splitlines()[-1] == "| fox | sfmprep | 1225 | 7 | 3 | 1.00 | 25.0% |"
    assert "is below" not in text
    theirs = {**row, "tool": "colmap", "pairs": {}}
    assert "## What gets to" not in page([theirs], ABOUT, rate=1e11)


def test_the_page_says_what_would_be_faster() -> None:
    row = {"what": "compact matcher", "how": "int8", "seconds": 0.1234, "ratio": 0.5}
    faster = [{**row, "pairs": 62, "found": 378.5, "auc": [89.64, 94.8, 97.4]}]
    text = page([], ABOUT, rate=1e11, faster=faster)
    assert (
        text.splitlines()[-1]
        == "| compact matcher | int8 | 0.123 | 0.50 | 378 | 89.6/94.8/97.4 |"
    )
    assert " 62 wide pairs of fountain-P11" in text
    assert "## What would be faster" not in page([], ABOUT, rate=1e11)
