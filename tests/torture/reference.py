"""The run that nothing happened to, which all others are compared with."""

from __future__ import annotations

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.torture import runs, scene
from tests.torture.content import content, differences


@dataclass(frozen=True, kw_only=True)
class Reference:
    """An uninterrupted run."""

    images: Path
    out: Path
    content: dict[str, str]
    writes: dict[str, int]  # calls that write, of each stage, in their order
    num_writes: int
    seconds: float
    code: int  # 3 where the result is small, as it is here


def make_reference(folder: Path) -> Reference:
    """Runs twice, the first with its writes counted.

    Raises:
        RuntimeError: a run fails, or the two differ: then nothing can be compared.
    """
    images = scene.render(folder / "scene")
    out, again = folder / "reference", folder / "again"
    counts = folder / "counts.txt"
    ended = runs.run(
        scene.command(images, out), folder, lambda: _count_writes(out, counts)
    )
    begun = time.monotonic()
    second = runs.run(scene.command(images, again), folder)
    seconds = time.monotonic() - begun
    for each in (ended, second):
        if each.code not in (0, 3) or each.fault:
            raise RuntimeError(f"the plain run fails: {each.err}")
    found = content(out)
    if other := differences(found, content(again)):
        raise RuntimeError(f"two plain runs differ: {other}")
    writes: dict[str, int] = {}
    rows = [line.split("\t") for line in counts.read_text().splitlines()]
    for (stage, start), (_, end) in zip(rows, rows[1:], strict=False):
        if stage != "end":
            writes[stage] = writes.get(stage, 0) + int(end) - int(start)
    return Reference(
        images=images,
        out=out,
        content=found,
        writes={stage: n for stage, n in writes.items() if n},
        num_writes=int(rows[-1][1]),
        seconds=seconds,
        code=second.code,
    )


def go_on(reference: Reference, out: Path, folder: Path, what: str) -> list[str]:
    """Goes on in a folder to the end; returns what is wrong or other there."""
    ended = runs.run(scene.command(reference.images, out), folder)
    if ended.code != reference.code or ended.fault:
        said = f"exit code {ended.code}; {ended.out[-300:]}{ended.err[-300:]}"
        return [f"{what}: it does not go on: {said}"]
    if other := differences(reference.content, content(out)):
        return [f"{what}: other than uninterrupted: {', '.join(other)}"]
    return []


def _count_writes(out: Path, counts: Path) -> None:
    """Notes at each stage's begin, and at the end, how many calls wrote so far."""
    import atexit

    from sfmprep.pipelines.ledger import Ledger

    if runs.library() is None:
        raise RuntimeError("faults.c is not loaded")
    runs.arm(out)
    begun: Any = Ledger.begin
    file = counts.open("w")

    def note(name: str) -> None:
        print(name, runs.library().torture_count(), sep="\t", file=file, flush=True)

    def begin(self: Ledger, name: str) -> None:
        begun(self, name)
        note(name)

    Ledger.begin = begin  # type: ignore[method-assign]
    atexit.register(note, "end")
