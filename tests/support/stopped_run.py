"""Runs of the command line that stop themselves at a chosen item of a chosen loop.

`python -m tests.support.stopped_run FOLDER COMMON "kill LOOP ITEM,interrupt LOOP ITEM"
ARG...` imports what a run needs once and forks a run for each place. What the first
writes is in `FOLDER/0.out` and `FOLDER/0.err`, and so on; how each ended is printed.
What is remembered in COMMON is not computed again.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest

from sfmprep.cli.commands import main
from sfmprep.terminal import StageProgress
from tests.support.remembered import remember

SIGNALS = {"kill": signal.SIGKILL, "interrupt": signal.SIGINT}


def stop_at(loop: str, item: int, number: int) -> None:
    """From now on, an item of a loop over the stages' work sends this signal."""
    shown = StageProgress.__call__

    def watched(
        self: StageProgress, items: Iterable[Any], *, desc: str, total: Any = None
    ) -> Iterator[Any]:
        for k, each in enumerate(shown(self, items, desc=desc, total=total)):
            if (desc, k) == (loop, item):
                os.kill(os.getpid(), number)
            yield each

    StageProgress.__call__ = watched  # type: ignore[method-assign, assignment]


def call_here(function: Any, *args: Any, **options: Any) -> Any:
    """In the place of `run_isolated`."""
    return function(*args, **options)


def stop_at_each(folder: Path, places: list[str]) -> None:
    """Runs the command of `sys.argv` once for each place."""
    importlib.import_module("sfmprep.pipelines.reconstruct")
    apart: Any = importlib.import_module("sfmprep.pipelines.apart")
    # a shell's background jobs ignore Ctrl-C, and so do their children
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number, place in enumerate(places):
        how, loop, item = place.split()
        if os.fork() == 0:
            for stream, name in ((1, "out"), (2, "err")):
                path = folder / f"{number}.{name}"
                os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT), stream)
            stop_at(loop, int(item), SIGNALS[how])
            if how == "kill":  # saves an interpreter; an interrupt has to end it
                apart.run_isolated = call_here
            try:
                main()
            except SystemExit as exit_:
                sys.stdout.flush()
                os._exit(int(exit_.code or 0))
        ended = os.waitstatus_to_exitcode(os.wait()[1])
        end = signal.Signals(-ended).name if ended < 0 else ended
        print(f"{place}: {end}", flush=True)  # or the next run would print it again


if __name__ == "__main__":
    folder, places = Path(sys.argv[1]), sys.argv[3].split(",")
    remember(pytest.MonkeyPatch(), Path(sys.argv[2]))
    del sys.argv[1:4]
    stop_at_each(folder, places)
