"""One function call in a process of its own, which may die and can be stopped at once.

COLMAP ends its process where one of its checks fails, and no thread of it can be
interrupted from outside. The call goes in by stdin and what it returns comes by stdout,
pickled; the process is a new interpreter, so a caller's script needs no
`if __name__ == "__main__":`.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import logging.handlers
import os
import pickle
import signal
import subprocess
import sys
import threading
import traceback
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sized
from typing import IO, Any, TypeVar

from sfmprep.errors import SfmprepError
from sfmprep.executors.local import HUNG, how_it_ended
from sfmprep.progress import Progress, silent

T = TypeVar("T")
R = TypeVar("R")

_STOP_S = 1.0  # for the last of what it wrote
_PATIENCE_S = 10.0  # for the end of a process that is through
_LINES_KEPT = 200
_CODE = "from sfmprep.executors.isolated import _main; _main({module!r})"
_MAX_SAID = 300


_waiting: list[subprocess.Popen[bytes]] = []  # begun ahead, and not called yet


class DiedError(SfmprepError):
    """The process of a call ended without an answer.

    Attributes:
        how: Such as `by SIGSEGV`.
        said: The last thing of weight that it wrote, such as COLMAP's failed check.
    """

    def __init__(self, how: str, said: str) -> None:
        super().__init__(f"its process was ended {how}" + (f": {said}" if said else ""))
        self.how = how
        self.said = said


def run_isolated(
    function: Callable[..., R], *args: Any, progress: Progress = silent, **options: Any
) -> R:
    """Returns `function(*args, progress=..., **options)`, called in a new process.

    Leaving by an exception, such as KeyboardInterrupt, ends the process. Its log goes
    on in this process.

    Args:
        function: One that can be imported by its name.
        args: As all that goes in and out: small, and can be pickled.
        progress: Is called here for the loops that the function wraps there.
        options: Further arguments.

    Raises:
        DiedError: the process ended without an answer.
        SfmprepError, OSError: what the function raised.
        RuntimeError: it raised something else, whose traceback is the message.
    """
    level = logging.getLogger("sfmprep").getEffectiveLevel()
    native = sys.modules.get("pycolmap")
    quiet = None if native is None else int(native.logging.minloglevel)
    process = _taken() or _begun(function.__module__)
    # what COLMAP says on the way is shown only where the user asked for its log
    said = _Said(process, show=quiet == 0)
    assert process.stdin is not None and process.stdout is not None
    try:
        with _death_told(said):
            pickle.dump((level, quiet, function, args, options), process.stdin)
            process.stdin.flush()
        answer: R = _serve(process.stdout, said, progress)
        return answer
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
        with contextlib.suppress(BrokenPipeError):  # of a call that it never read
            process.stdin.close()


@contextlib.contextmanager
def begun_ahead(module: str) -> Iterator[None]:
    """Begins a process for the first call of `run_isolated` in its block.

    It imports a module, which takes about a second, beside what is done until then. In
    the block of another, whose process waits still, none is begun.

    Args:
        module: That of the function, by its full name.
    """
    if _waiting:
        yield
        return
    process = _begun(module)
    _waiting.append(process)
    try:
        yield
    finally:
        if process in _waiting:  # it was not needed
            _waiting.remove(process)
            _end(process)


def _begun(module: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-c", _CODE.format(module=module)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def _taken() -> subprocess.Popen[bytes] | None:
    """A process that was begun ahead and lives; None if there is none."""
    while _waiting:
        process = _waiting.pop()
        if process.poll() is None:
            return process
        _end(process)
    return None


def _end(process: subprocess.Popen[bytes]) -> None:
    process.kill()
    process.wait()
    for stream in (process.stdin, process.stdout, process.stderr):
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):  # of a call that it never read
            stream.close()


class _Said:
    """Reads what the process writes to stderr, and keeps the end of it."""

    def __init__(self, process: subprocess.Popen[bytes], *, show: bool) -> None:
        self._process = process
        self._show = show
        self._lines: deque[str] = deque(maxlen=_LINES_KEPT)
        self._thread = threading.Thread(target=self._read, daemon=True)
        self._thread.start()

    def _read(self) -> None:
        assert self._process.stderr is not None
        with self._process.stderr as stream:
            for line in stream:
                text = line.decode("utf-8", "replace")
                self._lines.append(text)
                if self._show:
                    sys.stderr.write(text)

    def death(self) -> DiedError:
        """The error of a process that is about to end, or has."""
        try:
            how = how_it_ended(self._process.wait(_PATIENCE_S))
        except subprocess.TimeoutExpired:
            how = HUNG
            self._process.kill()
        self._thread.join(_STOP_S)
        lines = [
            line.strip()
            for line in self._lines
            # of a stack trace nothing is told
            if line.strip() and not line.lstrip().startswith(("@", "PC: @", "***"))
        ]
        fatal = [line for line in lines if line.startswith("F") and "] " in line]
        picked = fatal[-1].partition("] ")[2] if fatal else "".join(lines[-1:])
        return DiedError(how, picked[:_MAX_SAID])


@contextlib.contextmanager
def _death_told(said: _Said) -> Iterator[None]:
    """Turns a pipe whose other end is gone into the error of the process."""
    try:
        yield
    except (EOFError, pickle.UnpicklingError, ConnectionError):
        raise said.death() from None


def _serve(answers: IO[bytes], said: _Said, progress: Progress) -> Any:
    loops: dict[int, Loop] = {}
    while True:
        with _death_told(said):
            kind, value = pickle.load(answers)
        if kind == "log":
            logging.getLogger(value.name).handle(value)
        elif kind == "returned":
            return value
        elif kind == "raised":
            raise value
        elif kind == "loop":
            number, desc, total = value
            loops[number] = Loop(progress, desc, total)
        elif kind == "step":
            loops[value].step()
        else:
            loops.pop(value).end()


class Loop:
    """A progress bar that is moved by messages: `progress` wraps an iterable."""

    def __init__(self, progress: Progress, desc: str, total: int | None) -> None:
        self._going_on = True
        self._items = iter(progress(self._source(), desc=desc, total=total))

    def _source(self) -> Iterator[None]:
        while self._going_on:
            yield None

    def step(self) -> None:
        """Moves on by one."""
        next(self._items, None)

    def end(self) -> None:
        """Ends the loop, as its wrapped one did."""
        self._going_on = False
        for _ in self._items:
            pass


# -------------------------------------------------------------------- in the process
class _Link:
    """The way back to the parent."""

    def __init__(self, answers: IO[bytes]) -> None:
        self._answers = answers
        self._lock = threading.Lock()
        self._number = 0

    def send(self, kind: str, value: object) -> None:
        message = pickle.dumps((kind, value))  # whole, or an error and nothing
        with self._lock:
            self._answers.write(message)
            self._answers.flush()

    def put_nowait(self, record: logging.LogRecord) -> None:
        """Takes the place of a queue in `logging.handlers.QueueHandler`."""
        self.send("log", record)

    def progress(
        self, items: Iterable[T], *, desc: str = "", total: int | None = None
    ) -> Iterator[T]:
        """Tells the parent of each item."""
        self._number += 1
        number = self._number
        if total is None and isinstance(items, Sized):
            total = len(items)
        self.send("loop", (number, desc, total))
        for item in items:
            yield item
            self.send("step", number)
        self.send("end", number)


def _main(module: str) -> None:
    """What the new interpreter runs: imports ahead, then what it is asked."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent ends us
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what is printed here is no answer
    with contextlib.suppress(ImportError):  # told when the function is looked for
        importlib.import_module(module)
    level, quiet, function, args, options = pickle.load(sys.stdin.buffer)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    link = _Link(answers)
    handler = logging.handlers.QueueHandler(link)  # type: ignore[arg-type]
    logging.getLogger("sfmprep").addHandler(handler)
    logging.getLogger("sfmprep").setLevel(level)
    if quiet is not None:
        import pycolmap

        pycolmap.logging.minloglevel = quiet
    try:
        result = function(*args, progress=link.progress, **options)
    except (SfmprepError, OSError) as error:
        link.send("raised", error)
    except Exception:
        link.send("raised", RuntimeError(traceback.format_exc()))
    else:
        link.send("returned", result)


def _end_with_parent() -> None:
    """Ends this process, whatever it does, when the parent's end of stdin is gone."""
    os.read(0, 1)  # no lock of Python's, which it would miss at its end
    os._exit(1)
