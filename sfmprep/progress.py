"""How a stage reports its progress: an iterable wrapper that tqdm fits."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar

T = TypeVar("T")


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


def batched(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yields lists of up to `size` items, as `itertools.batched` of Python 3.12."""
    iterator = iter(items)
    while batch := list(itertools.islice(iterator, size)):
        yield batch
