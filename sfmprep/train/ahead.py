"""What the next steps of a training need, made while the present one runs."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import TypeVar

from sfmprep.threads import thread_pool

T = TypeVar("T")

_DEPTH = 2  # items that wait, for each thread


def make_ahead(
    make: Callable[[int], T], start: int, stop: int | None, *, threads: int = 2
) -> Iterator[T]:
    """Yields `make(step)` for the steps from `start`, in order, endlessly or to `stop`.

    What waits is dropped when the consumer stops. Threads, not processes: one that is
    forked beside OpenMP's threads may hang.
    """
    step = start
    waiting: deque[Future[T]] = deque()
    with thread_pool(threads) as pool:
        while True:
            while len(waiting) < _DEPTH * threads and (stop is None or step < stop):
                waiting.append(pool.submit(make, step))
                step += 1
            if not waiting:
                return
            yield waiting.popleft().result()
