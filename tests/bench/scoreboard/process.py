"""A program in a process of its own: seconds, and the peak memory of all it starts."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

_INTERVAL_S = 0.2  # between two looks at the memory, or more:
_SHARE = 0.02  # of a core that looking takes at most; at gigabytes a look is long


@dataclass(frozen=True)
class Finished:
    """What became of a program."""

    exit_code: int | None  # None: it was stopped since its time was up
    seconds: float  # from its start to its end, imports included
    peak_bytes: int | None  # of the whole tree; None where there is no /proc
    error: str  # the end of what it wrote on stderr


def run_measured(
    command: Sequence[str | Path], environment: Mapping[str, str], limit_s: float | None
) -> Finished:
    """Runs a program to its end, or to the limit; its output on stdout is dropped."""
    start = time.monotonic()
    process = subprocess.Popen(
        [str(word) for word in command],
        env=dict(environment),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,  # by which its tree is known
    )
    peak, ended = 0, threading.Event()

    def watch() -> None:
        nonlocal peak
        pause = _INTERVAL_S
        while not ended.wait(pause):
            began = time.thread_time()
            peak = max(peak, session_bytes(process.pid))
            pause = max(_INTERVAL_S, (time.thread_time() - began) / _SHARE)

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        error = process.communicate(timeout=limit_s)[1]
        code: int | None = process.returncode
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        error, code = process.communicate()[1], None
    except BaseException:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    finally:
        ended.set()
        watcher.join()
    seconds = time.monotonic() - start
    return Finished(code, seconds, peak or None, error.strip()[-2000:])


def session_bytes(session: int) -> int:
    """Memory of all processes of a session; what they share counts once.

    The proportional set size of Linux; 0 where there is none.
    """
    total = 0
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            # behind the name in brackets: state, parent, group, session
            fields = (folder / "stat").read_text().rpartition(")")[2].split()
            if int(fields[3]) == session:
                total += _proportional_bytes(folder)
        except (OSError, IndexError):  # it has ended
            continue
    return total


def _proportional_bytes(folder: Path) -> int:
    for line in (folder / "smaps_rollup").read_text().splitlines():
        if line.startswith("Pss:"):
            return 1024 * int(line.split()[1])
    return 0
