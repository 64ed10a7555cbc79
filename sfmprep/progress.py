"""How a stage reports its progress: an iterable wrapper that tqdm fits."""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")

_STEPS_TO_FORETELL = 8
_SECONDS_WORTH_TELLING = 60.0


class Progress(Protocol):
    """Wraps an iterable and shows how far it has come."""

    def __call__(
        self, items: Iterable[T], *, desc: str, total: int | None = None
    ) -> Iterable[T]:
        """Yields the items of `items`; `total` where it has no length."""
        ...


def silent(
    items: Iterable[T], *, desc: str = "", total: int | None = None
) -> Iterable[T]:
    """Shows nothing."""
    return items


def renamed(progress: Progress, pattern: str) -> Progress:
    """Shows loops under another name, `pattern` with the name in place of {}."""

    def shown(
        items: Iterable[T], *, desc: str, total: int | None = None
    ) -> Iterable[T]:
        return progress(items, desc=pattern.format(desc), total=total)

    return shown


def foretold(progress: Progress, say: Callable[[float], None]) -> Progress:
    """Says once, after a few steps, how many seconds a long loop will take in all.

    Args:
        progress: What shows the loop.
        say: Called for loops of a minute or more.
    """

    def timed(items: Iterable[T], total: int | None) -> Iterator[T]:
        start = time.monotonic()
        for count, item in enumerate(items, 1):
            yield item
            if count == _STEPS_TO_FORETELL and total is not None:
                seconds = (time.monotonic() - start) / count * total
                if seconds >= _SECONDS_WORTH_TELLING:
                    say(seconds)

    def shown(
        items: Iterable[T], *, desc: str, total: int | None = None
    ) -> Iterable[T]:
        return progress(timed(items, total), desc=desc, total=total)

    return shown


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yields lists of up to `size` items, as `itertools.batched` of Python 3.12."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
