"""A pool of threads that is left early does nothing more."""

from __future__ import annotations

import threading

import pytest

from sfmprep.threads import thread_pool


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
