"""Runs of the command line, forked from this process, with a fault in them."""

from __future__ import annotations

import atexit
import ctypes
import importlib
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HUNG_S = 240.0  # a run of the small scene takes a twentieth
Prepare = Callable[[], object]
Until = float  # by `time.monotonic()`; what goes on longer begins nothing more


def is_over(until: Until) -> bool:
    """Whether the time of a kind of faults is over."""
    return time.monotonic() > until


@dataclass(frozen=True, kw_only=True)
class Ended:
    """How a run ended."""

    code: int  # negative: the signal
    out: str
    err: str

    @property
    def was_killed(self) -> bool:
        return self.code == -signal.SIGKILL

    @property
    def message(self) -> str:
        """What it said at last, without the first words."""
        _, _, said = self.err.rpartition("sfmprep: error: ")
        return said.strip()

    @property
    def fault(self) -> str | None:
        """Why nobody should see this: a stack trace, a crash, or no end."""
        if "Traceback" in self.err or "Traceback" in self.out:
            return "stack trace"
        if self.code == -signal.SIGXCPU:
            return "no end"
        if self.code < 0 and not self.was_killed:
            return f"crash ({signal.Signals(-self.code).name})"
        return None


@dataclass(frozen=True, kw_only=True)
class Running:
    """A run that goes on."""

    pid: int
    out: Path
    err: Path


def import_all() -> None:
    """What a run needs, so that those forked from here begin at once."""
    for name in (
        *("reconstruct", "status", "add", "localise", "refine_poses", "shares"),
    ):
        importlib.import_module(f"sfmprep.pipelines.{name}")
    for name in (
        *("models.extractors.compact", "models.extractors.sift"),
        *("models.matchers.nearest", "models.matchers.lightglue"),
        *("report.page", "refinement.refine", "viewer.scene"),
        *("cli.commands", "cli.summary"),
    ):
        importlib.import_module(f"sfmprep.{name}")
    import pycolmap

    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


def call_here(function: Any, *args: Any, **options: Any) -> Any:
    """In the place of `run_isolated`: so that one kill ends everything."""
    return function(*args, **options)


def start(
    args: list[str], folder: Path, prepare: Prepare = lambda: None, *, name: str = "run"
) -> Running:
    """Forks a run of the command line; `prepare` is called in it before all else."""
    out, err = folder / f"{name}.out", folder / f"{name}.err"
    sys.stdout.flush()
    sys.stderr.flush()
    pid = os.fork()
    if pid:
        return Running(pid=pid, out=out, err=err)
    code = 70
    try:
        for stream, path in ((1, out), (2, err)):
            flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
            os.dup2(os.open(path, flags), stream)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        apart: Any = importlib.import_module("sfmprep.pipelines.apart")
        apart.run_isolated = call_here
        prepare()
        from sfmprep.cli.commands import main

        sys.argv = ["sfmprep", *args]
        try:
            main()
        except SystemExit as exit_:
            code = int(exit_.code or 0)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        atexit._run_exitfuncs()
        os._exit(code)


def finish(run: Running, *, kill_after_s: float | None = None) -> Ended:
    """Waits for the end of a run, or kills it; one that hangs ends by SIGXCPU."""
    begun = time.monotonic()
    number = signal.SIGKILL if kill_after_s is not None else signal.SIGXCPU
    patience = HUNG_S if kill_after_s is None else kill_after_s
    while True:
        pid, status = os.waitpid(run.pid, os.WNOHANG)
        if pid:
            break
        if number and time.monotonic() - begun > patience:
            os.kill(run.pid, number)
            if number == signal.SIGXCPU:
                os.kill(run.pid, signal.SIGCONT)
            number = 0  # type: ignore[assignment]
        time.sleep(0.002 if kill_after_s is not None else 0.02)
    return Ended(
        code=os.waitstatus_to_exitcode(status),
        out=run.out.read_text("utf-8", "replace"),
        err=run.err.read_text("utf-8", "replace"),
    )


def run(args: list[str], folder: Path, prepare: Prepare = lambda: None) -> Ended:
    """A run from its start to its end."""
    return finish(start(args, folder, prepare))


# ------------------------------------------------------------------ the system's calls
def library() -> Any:
    """`faults.c`, if this process was started with it; else None."""
    loaded = os.environ.get("LD_PRELOAD", "")
    if not loaded.endswith("faults.so"):
        return None
    found = ctypes.CDLL(loaded)
    found.torture_arm.argtypes = (
        *(ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_long, ctypes.c_int),
    )
    found.torture_count.restype = ctypes.c_long
    return found


def load_library(folder: Path) -> str | None:
    """Compiles `faults.c` and starts this program anew with it.

    Returns:
        Why that is not possible, where it is not.
    """
    compiled = folder / "faults.so"
    source = Path(__file__).with_name("faults.c")
    command = ["cc", "-shared", "-fPIC", "-O1", "-o", str(compiled), str(source)]
    try:
        subprocess.run([*command, "-ldl"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError) as error:
        return f"no C compiler ({error})"
    os.environ["LD_PRELOAD"] = str(compiled)
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def arm(
    folder: Path,
    *,
    fault: int = 0,
    at: int = -1,
    delay_s: float = 0.0,
    lock_fault: int = 0,
) -> None:
    """From now on, in this process: see `faults.c`."""
    where = os.fsencode(str(folder.resolve()))
    library().torture_arm(where, fault, at, int(1e6 * delay_s), lock_fault)


KILL = -1


def at_stage(name: str, action: Callable[[], object]) -> None:
    """In a run: has something done when a stage has begun."""
    from sfmprep.pipelines.ledger import Ledger

    begun = Ledger.begin

    def watched(self: Ledger, stage: str) -> None:
        begun(self, stage)
        if stage == name:
            action()

    Ledger.begin = watched  # type: ignore[method-assign]
