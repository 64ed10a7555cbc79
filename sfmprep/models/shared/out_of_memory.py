"""What to do when a batch does not fit into the memory of the device."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

import torch

from sfmprep.errors import DeviceError

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")

# What torch says where an allocation failed, but not as `torch.OutOfMemoryError`:
# libraries of CUDA that could not make their handle or workspace, other devices, and
# the host itself where the system does not end the process instead.
_MARKS = (
    "out of memory",
    "STATUS_ALLOC_FAILED",
    "ALLOCATION_FAILED",
    "STATUS_NOT_INITIALIZED",
    "Unable to find a valid cuDNN algorithm",
    "unable to find an engine to execute this computation",
    "can't allocate memory",
)


class Memory:
    """How much of one kind of item goes through a device at once, as was found out.

    At first everything that is asked for; after a failure what fitted then, for good.
    """

    def __init__(self) -> None:
        self._most: int | None = None  # the sum of costs that is not known to fail

    def run(
        self, run: Callable[[Sequence[T]], list[R]], items: Sequence[T], cost: int = 1
    ) -> list[R]:
        """Returns `run(items)`, in parts where all at once is out of memory.

        After each failure the parts are half as large; what is done already is kept.
        The results are in the order of the items; without items nothing runs.

        Args:
            run: Makes one result an item. It sees items again after it failed on them.
            items: What goes in.
            cost: What the largest of them takes, 1 or more, in a unit of the caller's
                that stays the same: items of another size are judged by it later.

        Raises:
            DeviceError: a single item does not fit, even after what is not used any
                more was given back.
        """
        results: list[R] = []
        is_tidy = False
        while len(results) < len(items):
            size = len(items) if self._most is None else max(1, self._most // cost)
            part = items[len(results) : len(results) + size]
            try:
                results += run(part)
                is_tidy = False
                continue
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                reason = str(error).partition("\n")[0]
            # Only here, after the handler, nothing refers to the traceback any more,
            # whose frames hold the tensors of what failed.
            gc.collect()
            torch.cuda.empty_cache()
            if len(part) > 1:
                size = (len(part) + 1) // 2
                self._most = size * cost
                logger.info(
                    "%d at once are too many for the device's memory; going on with %d",
                    len(part),
                    size,
                )
            elif is_tidy:
                raise DeviceError(
                    "the memory of the device is too small for a single item"
                    f" ({reason}). Set a smaller features.max_keypoints,"
                    " features.max_size, dense.matcher.max_size or engine.cache_gb, or"
                    " use another device."
                )
            is_tidy = len(part) == 1
        return results

    def each(self, run: Callable[[T], R], items: Iterable[T]) -> list[R]:
        """Returns `run(item)` of each, one after the other; raises as `run` does."""
        return [
            result
            for item in items
            for result in self.run(lambda part: [run(part[0])], [item])
        ]


def free_bytes(device: torch.device) -> int:
    """How much of a CUDA device's memory new tensors can have.

    What torch keeps of tensors that are gone is free for new ones, but not for the
    driver, which counts the rest.
    """
    free, _ = torch.cuda.mem_get_info(device)
    kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return free + kept


def is_out_of_memory(error: RuntimeError) -> bool:
    """Whether torch, or a library that it calls, could not allocate memory."""
    return isinstance(error, torch.OutOfMemoryError) or any(
        mark in str(error) for mark in _MARKS
    )
