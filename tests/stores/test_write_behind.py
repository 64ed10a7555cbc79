"""The writer thread: order, joined appends, blocking, and whose error is raised."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Sequence

import pytest

from sfmprep.stores.write_behind import WriteBehind


class Sink:
    """Collects what is appended; may be held up, and may fail at an item."""

    def __init__(self, fails_at: int | None = None) -> None:
        self.appended: list[list[int]] = []
        self.may_go = threading.Event()
        self.may_go.set()
        self.started = threading.Event()
        self.fails_at = fails_at
        self.error = OSError("the disk is full")

    def append(self, items: Sequence[int]) -> None:
        self.started.set()
        assert self.may_go.wait(10)
        if self.fails_at in items:
            raise self.error
        self.appended.append(list(items))

    @property
    def items(self) -> list[int]:
        return list(itertools.chain.from_iterable(self.appended))


def test_everything_is_written_in_order_when_the_block_is_left() -> None:
    sink = Sink()
    with WriteBehind(sink.append) as writer:
        for k in range(50):
            writer.put([2 * k, 2 * k + 1])
        writer.put([])
    assert sink.items == list(range(100))
    assert [] not in sink.appended


def test_batches_that_wait_are_joined_and_put_blocks_when_enough_wait() -> None:
    sink = Sink()
    sink.may_go.clear()
    with WriteBehind(sink.append, max_waiting=3) as writer:
        writer.put([0])
        assert sink.started.wait(10)
        for k in (1, 2, 3):
            writer.put([k])
        fourth = threading.Thread(target=writer.put, args=([4],))
        fourth.start()
        fourth.join(0.2)
        assert fourth.is_alive()
        sink.may_go.set()
        fourth.join(10)
        assert not fourth.is_alive()
    assert sink.appended[:2] in ([[0], [1, 2, 3]], [[0], [1, 2, 3, 4]])
    assert sink.items == [0, 1, 2, 3, 4]


def test_an_error_of_append_is_raised_by_later_puts_and_on_leaving() -> None:
    sink = Sink(fails_at=1)
    with pytest.raises(OSError) as caught, WriteBehind(sink.append) as writer:
        writer.put([0])
        writer.put([1])
        for _ in range(2):
            with pytest.raises(OSError) as in_put:
                while True:
                    writer.put([2])
            assert in_put.value is sink.error
    assert caught.value is sink.error
    assert 2 not in sink.items


def test_an_error_of_the_last_append_is_raised_on_leaving() -> None:
    sink = Sink(fails_at=0)
    with pytest.raises(OSError) as caught, WriteBehind(sink.append) as writer:
        writer.put([0])
    assert caught.value is sink.error


@pytest.mark.parametrize("kind", [ValueError, KeyboardInterrupt])
def test_an_error_of_the_block_wins_and_what_was_put_is_written(
    kind: type[BaseException],
) -> None:
    sink = Sink()
    with pytest.raises(kind, match="mine"), WriteBehind(sink.append) as writer:
        writer.put([0, 1])
        raise kind("mine")
    assert sink.items == [0, 1]
    failing = Sink(fails_at=0)
    with pytest.raises(kind, match="mine"), WriteBehind(failing.append) as writer:
        writer.put([0])
        raise kind("mine")


def test_put_after_the_block_is_refused() -> None:
    sink = Sink()
    with WriteBehind(sink.append) as writer:
        pass
    with pytest.raises(RuntimeError, match="after the end"):
        writer.put([0])
    assert sink.items == []
