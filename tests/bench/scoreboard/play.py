"""Plays scenes against tools, each in a process of its own, into a file of JSON lines.

A line holds what was found, how long it took and where. What a file holds already, of
the same code, machine and image size, is not played again; so a run can be stopped.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.bench.measure import metadata
from tests.bench.scoreboard.judge import judge
from tests.bench.scoreboard.process import run_measured
from tests.bench.scoreboard.scenes import Prepared, Scene, prepare
from tests.bench.scoreboard.tools import Tool

Row = dict[str, Any]

# a line is done if these agree
_KEY = ("scene", "every", "tool", "max_size", "commit", "device", "cores")


@dataclass(frozen=True)
class Settings:
    """How it is played."""

    results: Path  # JSON lines, added to
    scratch: Path  # scenes, and the output of the run that goes on
    max_size: int | None = None  # longer side in pixels that images are reduced to
    minutes: float | None = None  # then nothing more is started, and a run is stopped
    keep: bool = False  # the output of each run


def play(
    scenes: Sequence[Scene], tools: Sequence[Tool], how: Settings
) -> Iterator[Row]:
    """Yields each new line, smallest scenes first, all tools of a scene in a row."""
    deadline = None if how.minutes is None else time.monotonic() + 60 * how.minutes
    about = metadata("cpu")
    about.pop("torch_threads")
    done = {_key(row) for row in read_rows(how.results)}
    prepared = [
        prepare(scene, how.scratch / "scenes", how.max_size) for scene in scenes
    ]
    for each in sorted(prepared, key=lambda each: len(each.names)):
        for tool in tools:
            row: Row = {
                "scene": each.scene.name,
                "every": each.scene.every,
                "only_turns": each.scene.only_turns,
                "tool": tool.name,
                "max_size": how.max_size,
                **about,
            }
            if _key(row) in done and not each.scene.is_own:
                continue
            left = None if deadline is None else max(0.0, deadline - time.monotonic())
            found = None if left == 0 else _run(each, tool, how, left)
            if found is None:  # not a result of the tool, but of the time there was
                return
            row |= found
            how.results.parent.mkdir(parents=True, exist_ok=True)
            with how.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
            yield row


def read_rows(path: Path) -> list[Row]:
    """The lines of a file; none where there is no file."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def _key(row: Row) -> tuple[Any, ...]:
    return tuple(row[name] for name in _KEY)


def _run(
    prepared: Prepared, tool: Tool, how: Settings, limit_s: float | None
) -> Row | None:
    """One tool on one scene, from nothing; None if it was stopped by the limit."""
    scene = prepared.scene
    out = how.scratch / "runs" / f"{scene.name}-{scene.every}-{tool.name}"
    shutil.rmtree(out, ignore_errors=True)
    out.parent.mkdir(parents=True, exist_ok=True)
    before = _cpu_seconds()
    finished = run_measured(
        tool.command(scene, prepared.images, out),
        tool.environment(how.scratch),
        limit_s,
    )
    if finished.exit_code is None:
        return None
    result = tool.result(scene, prepared.images, out)
    found = judge(prepared, result.database, result.models)
    steps = {step: seconds for step, seconds in result.seconds.items() if seconds}
    row = {
        "what": result.what,
        "doubts": result.doubts,
        **found,
        # a program that failed has taken what it took
        "seconds": round(sum(steps.values()) or finished.seconds, 2),
        "steps": steps,
        "process_seconds": round(finished.seconds, 2),
        "cpu_seconds": round(_cpu_seconds() - before, 1),
        "peak_bytes": finished.peak_bytes,
        "exit_code": finished.exit_code,
        "failure": finished.error[-400:] if not found["registered"] else "",
    }
    if not how.keep:
        shutil.rmtree(out, ignore_errors=True)
    return row


def _cpu_seconds() -> float:
    """Of all processes that this one has started and seen end, and of theirs."""
    used = os.times()
    return used.children_user + used.children_system
