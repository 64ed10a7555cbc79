"""Workers that end, and those that do not."""

from __future__ import annotations

import multiprocessing
import threading

import pytest

from sfmprep.executors import local


def wait_for_ever() -> None:
    threading.Event().wait()


@pytest.mark.parametrize("said_so", [False, True])
def test_a_worker_that_hangs_after_its_last_word_is_ended(
    said_so: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local, "_PATIENCE_S", 0.1)
    context = multiprocessing.get_context("spawn")
    process, connection = context.Process(target=wait_for_ever), context.Pipe()[0]
    process.start()
    worker = local._Worker(0, "cpu", process, connection, ended=said_so)
    local._note_end(worker)
    assert not process.is_alive()
    assert str(worker.error) == (
        "None" if said_so else "its process was ended because it hung"
    )
