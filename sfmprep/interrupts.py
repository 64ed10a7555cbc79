"""Ctrl-C and SIGTERM end a command within two seconds, whatever it is doing.

Python looks at signals between two of its own instructions, so it hears of none while
COLMAP computes. So the first signal is raised as KeyboardInterrupt, which closes stores
and ends processes, and a thread that the system wakes at once ends the command where
that has not happened in time. Stores survive that, as they survive a kill.
"""

from __future__ import annotations

import importlib.util
import os
import signal
import socket
import sys
import threading
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import FrameType, ModuleType

_PATIENCE_S = 1.5
_STOPPED = "sfmprep: stopped. The same command goes on where this run was."
EXIT_CODE = 130

_watched: list[int] = []
_said = threading.Lock()


def watch_signals() -> None:
    """Installs what this module says, in the main thread of a program."""
    hears, wakes = socket.socketpair()
    wakes.setblocking(False)
    signal.set_wakeup_fd(wakes.fileno(), warn_on_full_buffer=False)
    threading.Thread(target=_watch, args=(hears, wakes), daemon=True).start()
    for number in (signal.SIGINT, signal.SIGTERM):
        if signal.getsignal(number) is not signal.SIG_IGN:  # a job in the background
            _watched.append(number)
    _take()
    sys.meta_path.insert(0, _AfterPycolmap())


def _take() -> None:
    for number in _watched:
        signal.signal(number, _interrupt)


class _AfterPycolmap(MetaPathFinder):
    """Takes the signals back once pycolmap is imported, whenever that is.

    It brings a handler of its own, which prints a stack trace.
    """

    def find_spec(
        self,
        name: str,
        path: Sequence[str] | None,
        target: ModuleType | None = None,
    ) -> ModuleSpec | None:
        if name != "pycolmap":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.loader is not None:
            execute = spec.loader.exec_module

            def execute_and_take(module: ModuleType) -> None:
                execute(module)
                if threading.current_thread() is threading.main_thread():
                    _take()

            spec.loader.exec_module = execute_and_take  # type: ignore[method-assign]
        return spec


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
    say_stopped()
    os._exit(EXIT_CODE)


def say_stopped() -> None:
    """Says, once, that a signal ended the command and what to do."""
    if _said.acquire(blocking=False):  # whoever is the first
        sys.stderr.write(f"{_STOPPED}\n")
        sys.stderr.flush()
