"""The one loop of all trainings: steps, log, checkpoints, and an end by the clock."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

from torch import Tensor

from sfmprep.progress import Progress, silent
from sfmprep.threads import thread_pool
from sfmprep.train import checkpoints

logger = logging.getLogger(__name__)

T = TypeVar("T")

_SAVE_EVERY_S = 60.0
_MEASURE_EVERY_S = 180.0
_AHEAD = 2  # batches that wait, for each thread


class Batch(Protocol):
    """What one step learns from, a dataclass that `on_device` moves."""

    @property
    def num_pairs(self) -> int:
        """How many pairs of images it holds."""
        ...


class Training(Protocol):
    """A network and all that its checkpoint holds."""

    step: int
    """How many steps were taken."""

    def advance(self, batch: Any) -> Mapping[str, Tensor | float]:
        """Takes one step; returns its losses, scalars."""
        ...

    def state(self) -> dict[str, Any]:
        """All that `restore` needs."""
        ...

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state` returned."""
        ...


def run_training(
    training: Training,
    make_batch: Callable[[int], Batch],
    *,
    checkpoint: Path,
    log: checkpoints.RunLog,
    device: str,
    end: float,
    max_steps: int | None = None,
    log_every: int = 50,
    num_threads: int = 1,
    also_saved: Mapping[str, Any] | None = None,
    measure: Callable[[], object] | None = None,
    progress: Progress = silent,
    desc: str = "train",
) -> int:
    """Takes steps until the time is over, and leaves a checkpoint to go on from.

    A training that was cut loses a minute at most.

    Args:
        training: As restored from the checkpoint, where there is one.
        make_batch: Makes the batch of a step, in threads that run ahead.
        checkpoint: The file that is written now and then, and at the end.
        log: Gets the means of the losses, and the speed.
        device: Where batches go.
        end: When to stop, of `time.monotonic`; one step is taken in any case.
        max_steps: The step to stop at, if it comes before.
        log_every: Steps between two rows of the log.
        num_threads: That make batches.
        also_saved: Goes into the checkpoint beside the state.
        measure: Called every three minutes and at the end.
        progress: Shows the steps.
        desc: What the progress bar is called.

    Returns:
        The steps taken so far, also by earlier calls.
    """
    meter = _Meter()
    saved = measured = time.monotonic()
    batches = _made_ahead(make_batch, training.step, max_steps, threads=num_threads)
    for batch in progress(batches, desc=desc, total=max_steps):
        meter.add(training.advance(on_device(batch, device)), pairs=batch.num_pairs)
        now = time.monotonic()
        is_last = now >= end or training.step == max_steps
        if is_last or training.step % log_every == 0:
            values = meter.read()
            log.write(training.step, values)
            logger.info("step %d: %s", training.step, values)
        if measure is not None and (is_last or now - measured > _MEASURE_EVERY_S):
            measure()
            measured = time.monotonic()
        if is_last or now - saved > _SAVE_EVERY_S:
            checkpoints.save(checkpoint, training.state() | dict(also_saved or {}))
            saved = time.monotonic()
        if is_last:
            break
    return training.step


def _made_ahead(
    make: Callable[[int], T], start: int, stop: int | None, *, threads: int
) -> Iterator[T]:
    """Yields `make(step)` for the steps from `start`, in order, endlessly or to `stop`.

    What waits is dropped when the consumer stops. Threads, not processes: one that is
    forked beside OpenMP's threads may hang.
    """
    step = start
    waiting: deque[Future[T]] = deque()
    with thread_pool(threads) as pool:
        while True:
            while len(waiting) < _AHEAD * threads and (stop is None or step < stop):
                waiting.append(pool.submit(make, step))
                step += 1
            if not waiting:
                return
            yield waiting.popleft().result()


def on_device(value: T, device: str) -> T:
    """The same on a device: a tensor, or dataclasses and tuples with tensors in them.

    What else is in them, such as None, is left as it is.
    """
    moved: Any = value
    if isinstance(value, Tensor):
        moved = value.to(device, non_blocking=True)
    elif isinstance(value, tuple):
        moved = tuple(on_device(each, device) for each in value)
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        moved = dataclasses.replace(
            value,
            **{
                field.name: on_device(getattr(value, field.name), device)
                for field in dataclasses.fields(value)
            },
        )
    return cast(T, moved)


class _Meter:
    """Means of the losses, and speed, since they were last read."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor | float] = {}
        self._steps = self._pairs = 0
        self._start = time.monotonic()

    def add(self, losses: Mapping[str, Tensor | float], *, pairs: int) -> None:
        """Counts one step; the device is not waited for."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0) + loss
        self._steps += 1
        self._pairs += pairs

    def read(self) -> dict[str, float]:
        """Returns what was counted, one step at least, and starts anew."""
        values = {
            name: float(total) / self._steps for name, total in self._sums.items()
        }
        seconds = time.monotonic() - self._start
        values["steps_per_s"] = self._steps / seconds
        values["pairs_per_s"] = self._pairs / seconds
        self._clear()
        return {name: round(value, 5) for name, value in values.items()}
