"""Ctrl-C and SIGTERM end a command within two seconds, whatever it is doing.

Python looks at signals between two of its own instructions, so it hears of none while
COLMAP computes. So the first signal is raised as KeyboardInterrupt, which closes stores
and ends processes, and a thread that the system wakes at once ends the command where
that has not happened in time. Stores survive that, as they survive a kill.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from types import FrameType

_PATIENCE_S = 1.5
STOPPED = "sfmprep: stopped. The same command goes on where this run was."
EXIT_CODE = 130

_watched: list[int] = []


def watch_signals() -> None:
    """Installs what this module says, in the main thread of a program."""
    hears, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(hears, wakes), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # a job in the background
            _watched.append(number)
    take_back()


def take_back() -> None:
    """Replaces the handler that pycolmap brings, which prints a stack trace.

    Does nothing where no signals are watched.
    """
    for number in _watched:
        signal.signal(number, _interrupt)


def _interrupt(number: int, frame: FrameType | None) -> None:
    for each in _watched:
        signal.signal(each, signal.SIG_IGN)  # no second one into the closing of stores
    raise KeyboardInterrupt


def _watch(hears: socket.socket, wakes: socket.socket) -> None:
    while True:
        heard = hears.recv(1)
        if heard and heard[0] in (signal.SIGINT, signal.SIGTERM):
            break
    threading.Event().wait(_PATIENCE_S)
    sys.stderr.write(f"{STOPPED}\n")
    sys.stderr.flush()
    os._exit(EXIT_CODE)
