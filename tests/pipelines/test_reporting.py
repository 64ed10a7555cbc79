"""What the report says of steps that were done in an earlier run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from sfmprep.config.load import load_recipe
from sfmprep.pipelines import ledger as ledger_module
from sfmprep.pipelines.ledger import Ledger
from sfmprep.pipelines.reporting import _STAGES, _seconds
from sfmprep.pipelines.stage_table import STAGES


def test_what_was_done_before_keeps_its_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the run that did it was stopped before there was a report."""
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(
        ledger_module, "time", SimpleNamespace(monotonic=lambda: clock.now)
    )
    (tmp_path / "work").mkdir()

    def ledger() -> Ledger:
        return Ledger(tmp_path, load_recipe("splat"), {"a": "1", "b": "2"})

    def run_of(ledger: Ledger) -> Any:
        return SimpleNamespace(ledger=ledger)

    first = ledger()
    for stage, took in (("extract", 50.0), ("second pairs", 3.0), ("map on", 4.0)):
        first.begin(stage)
        clock.now += took
        first.finish(stage)
    now = {"develop": 0.1, "extract": 0.0, "pairs": 0.3, "second round": 0.2}
    assert _seconds(run_of(first), now) == now
    second = ledger()
    second.finish("extract")  # there was nothing to do
    assert _seconds(run_of(second), now) == {
        **now,
        "extract": 50.0,
        "second round": 7.0,
    }
    second.begin("map on")
    assert _seconds(run_of(second), now) == {**now, "extract": 50.0}


def test_steps_are_made_of_stages() -> None:
    named = [stage for stages in _STAGES.values() for stage in stages]
    assert set(named) <= set(STAGES)
