"""Items of a model side by side on the cores of a CPU."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch

from sfmprep.threads import thread_pool

T = TypeVar("T")
R = TypeVar("R")

_MOST = 8  # at once: what they hold in memory adds up


def num_side_by_side() -> int:
    """How many items a CPU takes best at once: one a core of torch's, at most 8."""
    return min(torch.get_num_threads(), _MOST)


def side_by_side(
    run: Callable[[T], R], items: Iterable[T], at_once: int | None = None
) -> list[R]:
    """Returns `run(item)` of each, in their order, under `torch.inference_mode`.

    A network of which every layer is cut to all cores waits for the slowest of them
    hundreds of times an item, and what is not cut keeps one busy and the rest idle.
    Each item gets the same number of cores, however many go beside it: so its result
    is the same, bit for bit, whatever does.

    Args:
        run: What is done for an item on a CPU.
        items: Any number.
        at_once: How many run at once; None for `num_side_by_side()`. One runs in the
            thread of the caller.
    """
    at_once = num_side_by_side() if at_once is None else at_once
    alone = torch.inference_mode()(run)
    if at_once == 1:
        return [alone(item) for item in items]
    cores = torch.get_num_threads()

    def begin() -> None:
        torch.set_num_threads(max(1, cores // at_once))  # of this thread alone

    try:
        with thread_pool(at_once, "sfmprep-model", begin) as pool:
            jobs = [pool.submit(alone, item) for item in items]
            return [job.result() for job in jobs]
    finally:
        torch.set_num_threads(cores)  # for threads that begin later
