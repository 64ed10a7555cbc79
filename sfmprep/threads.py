"""Threads whose work may be cut short."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

from sfmprep.devices import num_cores


@contextmanager
def thread_pool(
    num_threads: int | None = None,
    name: str = "",
    begin: Callable[[], object] | None = None,
) -> Iterator[ThreadPoolExecutor]:
    """A pool that drops what waits when it is left, and waits for what has begun.

    So an error or Ctrl-C in the consumer ends at once, where the pool by itself would
    first do all that is queued. Results that count are taken before it is left.

    Args:
        num_threads: At least 1; None for one a core that may be used.
        name: What the names of its threads begin with.
        begin: What each of them does first.

    Raises:
        ValueError: `num_threads` is below 1.
    """
    size = num_cores() if num_threads is None else num_threads
    pool = ThreadPoolExecutor(size, name, begin)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
