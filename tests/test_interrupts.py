"""Signals end the program within two seconds and without a stack trace."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial

import pytest

PROGRAM = """
import sys, threading, time
from sfmprep.interrupts import say_stopped, watch_signals
{before}
watch_signals()
{after}
try:
    print("begun", flush=True)
    {work}
except KeyboardInterrupt:
    say_stopped()
    sys.exit(130)
"""
# in the second the main thread waits for threads that cannot be interrupted
WORK = {
    "python": "threading.Event().wait()",
    "threads": (
        "from concurrent.futures import ThreadPoolExecutor as P\n"
        "    with P(2) as pool: list(pool.map(time.sleep, [3600] * 4))"
    ),
}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("work", "first"), [("python", True), ("python", False), ("threads", False)]
)
def test_a_signal_ends_the_program(work: str, first: bool, number: int) -> None:
    # pycolmap brings handlers of its own, whenever it is imported
    imports = ["import pycolmap", ""]
    before, after = imports if first else imports[::-1]
    program = PROGRAM.format(work=WORK[work], before=before, after=after)
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background jobs ignore Ctrl-C, and so do their children
        preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None and process.stdout.readline() == "begun\n"
    process.send_signal(number)
    _, error = process.communicate(timeout=600)  # the work itself takes longer
    assert process.returncode == 130
    assert error == "sfmprep: stopped. The same command goes on where this run was.\n"
