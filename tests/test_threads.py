"""A pool of threads that is left early does nothing more."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from sfmprep.devices import num_cores
from sfmprep.progress import Progress
from sfmprep.threads import thread_pool

_ROOT = Path(__file__).resolve().parents[1]
_ASKED = """
import json, os
from sfmprep.cli.options import limit_threads
limit_threads(1)  # as for --num-threads 1, or a container that leaves one core
from sfmprep.devices import num_cores
from sfmprep.executors.isolated import run_isolated
from sfmprep.models.shared.side_by_side import num_side_by_side, side_by_side
from sfmprep.threads import thread_pool
from tests.test_threads import cores_of_process
import torch
with thread_pool() as pool:
    pools = pool._max_workers
mapper = run_isolated(cores_of_process)
inside = side_by_side(lambda _: torch.get_num_threads(), range(4))
print(json.dumps([num_cores(), pools, mapper, num_side_by_side(), *inside]))
"""


def cores_of_process(*, progress: Progress) -> int:
    """Called in a process of its own, as COLMAP's mapper is."""
    return num_cores()


def test_an_error_in_the_consumer_does_not_wait_for_what_is_queued() -> None:
    begun: list[int] = []
    release = threading.Event()

    def work(k: int) -> int:
        begun.append(k)
        if k == 1:  # still at it when the consumer fails
            assert release.wait(60)
        return k

    with pytest.raises(KeyboardInterrupt), thread_pool(1) as pool:
        jobs = [pool.submit(work, k) for k in range(20)]
        assert jobs[0].result() == 0
        # the shutdown cancels before it waits, which lets the one that has begun end
        jobs[-1].add_done_callback(lambda _: release.set())
        raise KeyboardInterrupt
    assert begun in ([0], [0, 1])
    assert all(job.done() for job in jobs)
    assert jobs[-1].cancelled()


def test_what_has_begun_is_finished() -> None:
    started, finished = threading.Event(), threading.Event()

    def work() -> None:
        started.set()
        threading.Event().wait(0.05)
        finished.set()

    with thread_pool(2, "sfmprep-test") as pool:
        pool.submit(work)
        assert started.wait(60)
    assert finished.is_set()


def test_threads_carry_the_name() -> None:
    with thread_pool(1, "sfmprep-test") as pool:
        name = pool.submit(lambda: threading.current_thread().name).result()
    assert name.startswith("sfmprep-test")


def test_no_threads_are_refused() -> None:
    with pytest.raises(ValueError, match="greater than 0"), thread_pool(0):
        pass


def test_a_limit_is_that_of_torch_and_of_the_process_of_colmap() -> None:
    program = [sys.executable, "-c", _ASKED]
    done = subprocess.run(
        program, cwd=_ROOT, capture_output=True, text=True, check=True
    )
    assert set(json.loads(done.stdout)) == {1}


@pytest.mark.parametrize("cores", [1, 2, 3, 8, 20])
def test_networks_side_by_side_share_the_cores(
    cores: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setattr(torch, "get_num_threads", lambda: cores)
    told: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", told.append)
    from sfmprep.models.shared.side_by_side import num_side_by_side, side_by_side

    at_once = num_side_by_side()
    side_by_side(lambda item: item, range(at_once * 4))
    if at_once > 1:
        assert told.pop() == cores  # as it was
    assert all(at_once * own <= cores for own in told)
