"""Runs of the command line that stop themselves at a chosen item of a chosen loop.

`python -m tests.support.stopped_run interrupt LOOP ITEM ARGS...` is the program, which
gets Ctrl-C there. With `kill LOOP ITEM,LOOP ITEM,... ARGS...` this process imports what
is needed once and forks, for each place, a run that is killed there; it prints by which
signal each was ended.
"""

from __future__ import annotations

import importlib
import os
import signal
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from sfmprep.cli.commands import main, run
from sfmprep.terminal import StageProgress


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


def kill_at_each(places: str, args: list[str]) -> None:
    """Runs the same command once for each place."""
    importlib.import_module("sfmprep.pipelines.reconstruct")
    apart = importlib.import_module("sfmprep.pipelines.apart")
    apart.run_isolated = call_here
    for place in places.split(","):
        loop, item = place.split()
        if os.fork() == 0:
            stop_at(loop, int(item), signal.SIGKILL)
            os._exit(run(args))
        ended = os.waitstatus_to_exitcode(os.wait()[1])
        print(place, "was not reached" if ended >= 0 else signal.Signals(-ended).name)


if __name__ == "__main__":
    how, *rest = sys.argv[1:]
    if how == "kill":
        kill_at_each(rest[0], rest[1:])
    else:
        # a shell's background jobs ignore Ctrl-C, and so do their children
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop_at(rest[0], int(rest[1]), signal.SIGINT)
        sys.argv[1:] = rest[2:]
        main()
