"""One call in a process of its own: answers, errors, deaths, interruption."""

from __future__ import annotations

import ctypes
import logging
import os
import signal
import threading
from pathlib import Path

import pycolmap
import pytest

from sfmprep.errors import ImageError
from sfmprep.executors import isolated
from sfmprep.executors.isolated import DiedError, Loop, begun_ahead, run_isolated
from sfmprep.progress import Progress, silent


def double(value: int, *, plus: int = 0, progress: Progress = silent) -> int:
    logging.getLogger("sfmprep.here").warning("in process %d", os.getpid())
    for _ in progress(range(3), desc="count"):
        pass
    for _ in progress(iter("ab"), desc="letters", total=2):
        pass
    return 2 * value + plus


def speak(*, progress: Progress) -> str:
    print("not an answer", flush=True)
    os.write(1, b"nor this")
    return "the answer"


def fail(*, progress: Progress) -> None:
    raise ImageError("a.jpg is damaged")


def break_off(*, progress: Progress) -> None:
    raise ZeroDivisionError("nothing to divide by")


def segfault(*, progress: Progress) -> None:
    ctypes.string_at(0)


def failed_check(*, progress: Progress) -> None:
    pycolmap.logging.fatal("Check failed: 1 == 2")


def kill(*, progress: Progress) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def wait_for_ever(path: Path, *, progress: Progress) -> None:
    path.write_text(str(os.getpid()))
    threading.Event().wait()


def test_the_answer_the_log_and_the_progress_come_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    seen: list[tuple[str, int | None, int]] = []

    def progress(items, *, desc="", total=None):
        count = 0
        for item in items:
            yield item
            count += 1
        seen.append((desc, total, count))

    assert run_isolated(double, 4, plus=1, progress=progress) == 9
    assert seen == [("count", 3, 3), ("letters", 2, 2)]
    (message,) = caplog.messages
    assert message.startswith("in process ") and not message.endswith(str(os.getpid()))


def test_what_is_printed_is_no_answer() -> None:
    assert run_isolated(speak) == "the answer"


def test_an_error_comes_back_as_it_was() -> None:
    with pytest.raises(ImageError, match=r"^a\.jpg is damaged$"):
        run_isolated(fail)
    with pytest.raises(RuntimeError, match="nothing to divide by"):
        run_isolated(break_off)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (failed_check, "its process was ended by SIGABRT: Check failed: 1 == 2"),
        (segfault, "its process was ended by SIGSEGV"),
        (
            kill,
            "its process was ended by SIGKILL, as the system does when memory runs out",
        ),
    ],
)
def test_a_death_is_an_error(function, message: str) -> None:
    with pytest.raises(DiedError) as caught:
        run_isolated(function)
    assert str(caught.value) == message


@pytest.mark.parametrize("first", ["", "os.read(0, 99)", "os.write(1, bytes(2))"])
def test_a_death_before_the_call_is_read_is_an_error(
    first: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(isolated, "_CODE", f"import os\n{first}\nos._exit(3)")
    with pytest.raises(DiedError) as caught:  # and no BrokenPipeError
        run_isolated(double, bytes(10_000_000))
    assert str(caught.value) == "its process was ended with exit code 3"


def test_a_process_that_hangs_after_its_end_is_ended(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(isolated, "_PATIENCE_S", 0.1)
    hangs = "import os, threading; os.close(1); threading.Event().wait()"
    monkeypatch.setattr(isolated, "_CODE", hangs)
    with pytest.raises(DiedError, match="^its process was ended because it hung$"):
        run_isolated(double, 1)


def test_an_interrupt_ends_the_process(tmp_path: Path) -> None:
    path = tmp_path / "pid"

    def interrupt() -> None:
        while not (path.exists() and path.read_text()):
            threading.Event().wait(0.01)
        os.kill(os.getpid(), signal.SIGINT)

    old = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        thread = threading.Thread(target=interrupt)
        thread.start()
        with pytest.raises(KeyboardInterrupt):
            run_isolated(wait_for_ever, path)
        thread.join()
    finally:
        signal.signal(signal.SIGINT, old)
    with pytest.raises(ProcessLookupError):
        os.kill(int(path.read_text()), 0)


def test_a_loop_that_is_moved_by_messages() -> None:
    seen = []

    def progress(items, *, desc="", total=None):
        for item in items:
            seen.append(desc)
            yield item
        seen.append("end")

    loop = Loop(progress, "map", 2)
    loop.step()
    loop.step()
    loop.end()
    assert seen[:2] == ["map", "map"] and seen[-1] == "end"


def my_pid(*, progress: Progress) -> int:
    return os.getpid()


def test_the_first_call_takes_the_process_that_was_begun_ahead() -> None:
    with begun_ahead(__name__):
        [ahead] = isolated._waiting
        assert run_isolated(my_pid) == ahead.pid
        assert run_isolated(my_pid) != ahead.pid
        assert not isolated._waiting
    assert ahead.poll() is not None


def test_one_process_is_begun_ahead_however_often_it_is_asked_for() -> None:
    with begun_ahead(__name__):
        [ahead] = isolated._waiting
        with begun_ahead("no.such.module"):
            assert isolated._waiting == [ahead]
        assert ahead.poll() is None
        assert run_isolated(my_pid) == ahead.pid
        with begun_ahead(__name__):
            assert isolated._waiting


def test_a_process_that_nobody_called_is_ended() -> None:
    with pytest.raises(ImageError), begun_ahead("no.such.module"):
        [ahead] = isolated._waiting
        raise ImageError("a.jpg is damaged")
    assert ahead.returncode == -signal.SIGKILL
    assert not isolated._waiting


def test_a_process_that_died_before_it_was_called_is_replaced() -> None:
    with begun_ahead(__name__):
        [ahead] = isolated._waiting
        ahead.kill()
        ahead.wait()
        assert run_isolated(my_pid) != ahead.pid


def test_a_module_that_is_not_there_matters_to_who_asks_for_it() -> None:
    with begun_ahead("no.such.module"):
        assert run_isolated(double, 2) == 4
