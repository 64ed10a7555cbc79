"""What to do when a batch does not fit into the memory of the device."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from sfmprep.errors import DeviceError

logger = logging.getLogger(__name__)

T = TypeVar("T")
R = TypeVar("R")


def run_halving(run: Callable[[Sequence[T]], list[R]], items: Sequence[T]) -> list[R]:
    """Returns `run(items)`, in parts where all at once is out of device memory.

    After each failure the parts are half as large; what is done already is kept. The
    results are in the order of the items; without items nothing runs. Only
    `torch.OutOfMemoryError` is handled, which CUDA raises: on a CPU the operating
    system ends the process instead.

    Args:
        run: Makes one result an item. It sees items again after it failed with them.
        items: What goes in.

    Raises:
        DeviceError: a single item does not fit.
    """
    results: list[R] = []
    size = len(items)
    while len(results) < len(items):
        part = items[len(results) : len(results) + size]
        try:
            results += run(part)
            continue
        except torch.OutOfMemoryError as error:
            reason = str(error).partition("\n")[0]
        # Only here, after the handler, nothing refers to the traceback any more, whose
        # frames hold the tensors of what failed.
        torch.cuda.empty_cache()
        if len(part) == 1:
            raise DeviceError(
                f"the memory of the device is too small for a single item ({reason})."
                " Set a smaller features.max_keypoints, features.max_size,"
                " dense.matcher.max_size or engine.cache_gb, or use another device."
            )
        size = (len(part) + 1) // 2
        logger.info(
            "%d at once are too many for the device's memory; going on with %d",
            len(part),
            size,
        )
    return results
