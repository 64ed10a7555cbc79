"""Writes while the caller computes: one thread, one writer, a bounded queue."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Sequence
from threading import Condition, Thread
from typing import Generic, Self, TypeVar

T = TypeVar("T")


class WriteBehind(Generic[T]):
    """Hands batches to one thread that appends them, in order, to a store.

    Batches that wait are joined into one append: what a store does once per append
    (two flushes) costs more than a small batch itself.

    Leaving the `with` block waits until everything is written, also after an
    exception in the block. When an append fails, what waits behind it is dropped.

    Args:
        append: Writes items; called in the thread only, never with nothing.
        max_waiting: Batches that may wait before `put` blocks.

    Raises:
        BaseException: what `append` raised, on leaving the block, unless the block
            itself ends with an exception.
    """

    def __init__(
        self, append: Callable[[Sequence[T]], None], *, max_waiting: int = 2
    ) -> None:
        self._append = append
        self._max_waiting = max_waiting
        self._waiting: deque[Sequence[T]] = deque()
        self._changed = Condition()
        self._closed = False
        self._error: BaseException | None = None
        self._thread = Thread(target=self._write, name="sfmprep-write")

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()
        self._thread.join()
        if error is None and self._error is not None:
            raise self._error

    def put(self, items: Sequence[T]) -> None:
        """Hands over a batch; blocks while `max_waiting` batches wait.

        Raises:
            BaseException: what `append` raised for this or an earlier batch.
            RuntimeError: the `with` block was left.
        """
        with self._changed:
            self._changed.wait_for(
                lambda: self._error or len(self._waiting) < self._max_waiting
            )
            if self._error is not None:
                raise self._error
            if self._closed:
                raise RuntimeError("put() after the end of the `with` block")
            if items:
                self._waiting.append(items)
                self._changed.notify_all()

    def _write(self) -> None:
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._closed)
                if not self._waiting:
                    return
                items = list(itertools.chain.from_iterable(self._waiting))
                self._waiting.clear()
                self._changed.notify_all()
            try:
                self._append(items)
            except BaseException as error:
                with self._changed:
                    self._error = error
                    self._waiting.clear()
                    self._changed.notify_all()
                return
