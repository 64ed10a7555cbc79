"""SIGKILL at writes of every stage, and at any time: what goes on gives the same."""

from __future__ import annotations

import random
import shutil
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from tests.torture import runs, scene
from tests.torture.reference import Reference, go_on

_LEGS = 8  # kills of one folder, ever later, before it may come to its end
_LONGEST_LEG = 0.3  # of the seconds of a whole run


@dataclass(kw_only=True)
class Kills:
    """What the kills left."""

    num_kills: int = 0
    num_folders: int = 0
    stages: Counter[str] = field(default_factory=Counter)  # killed at a write of
    faults: list[str] = field(default_factory=list)


def kill_at_writes(
    reference: Reference, folder: Path, num_kills: int, seed: int, until: runs.Until
) -> Kills:
    """Kills at writes of stages, all in turn, each at any of its writes."""
    rng = random.Random(seed)
    found = Kills()
    waiting: list[str] = []
    while not found.num_folders or (
        found.num_kills < num_kills and not runs.is_over(until)
    ):
        if len(waiting) < _LEGS:  # every stage before any comes again
            waiting += rng.sample([*reference.writes], len(reference.writes))
        legs, waiting = waiting[:_LEGS], waiting[_LEGS:]
        legs.sort(key=[*reference.writes].index)
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        for stage in legs[: num_kills - found.num_kills]:
            at = rng.randrange(reference.writes[stage])

            def prepare(stage: str = stage, at: int = at, out: Path = out) -> None:
                runs.at_stage(stage, lambda: runs.arm(out, fault=runs.KILL, at=at))

            ended = runs.run(scene.command(reference.images, out), folder, prepare)
            _note(found, ended, f"{stage}, write {at} (seed {seed})", stage)
        found.num_folders += 1
        found.faults += go_on(
            reference, out, folder, f"kills at writes {legs} (seed {seed})"
        )
    return found


def kill_at_times(
    reference: Reference, folder: Path, num_kills: int, seed: int, until: runs.Until
) -> Kills:
    """Kills at random moments, again and again in one folder."""
    rng = random.Random(seed)
    found = Kills()
    while not found.num_folders or (
        found.num_kills < num_kills and not runs.is_over(until)
    ):
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        before = found.num_kills
        for _ in range(min(_LEGS, num_kills - before)):
            seconds = rng.uniform(0, _LONGEST_LEG * reference.seconds)
            running = runs.start(scene.command(reference.images, out), folder)
            ended = runs.finish(running, kill_after_s=seconds)
            if ended.code == 0:
                break  # it was faster
            _note(found, ended, f"after {seconds:.3f} s (seed {seed})", "")
        found.num_folders += 1
        found.faults += go_on(reference, out, folder, f"kills at times (seed {seed})")
    return found


def _note(found: Kills, ended: runs.Ended, where: str, stage: str) -> None:
    if not ended.was_killed:
        if ended.code:
            found.faults.append(f"{where}: ended by {ended.code}: {ended.err[-300:]}")
        return
    found.num_kills += 1
    if stage:
        found.stages[stage] += 1
