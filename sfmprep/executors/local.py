"""One process a device: who does what, what they say, and what if one dies.

The parent hands out the work in chunks, over a pipe to each process. The list is cut
into one contiguous shard a process, so that each keeps its images in its cache; who is
through with its own takes half of what is left of the longest.
"""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
import multiprocessing
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.context import SpawnProcess
from pathlib import Path
from typing import Any, TypeVar

from sfmprep.devices import num_cores
from sfmprep.errors import ConfigError, DeviceError, SfmprepError, StoreError
from sfmprep.executors.protocol import Job, Outcome, chunk_size
from sfmprep.files import in_words
from sfmprep.progress import Progress

T = TypeVar("T")

_REPORT_S = 0.1  # between two messages on progress
HUNG = "because it hung"  # after "was ended"
_PATIENCE_S = 10.0  # for a process that was asked to stop, or said that it is through


@dataclass(frozen=True)
class Processes:
    """One process on each of some devices of this machine.

    A process that fails does not stop the others. A script that runs a job so needs
    `if __name__ == "__main__":`.

    Args:
        devices: Such as `cuda:0`; one may come twice.
    """

    devices: Sequence[str]

    def run(
        self,
        job: Job,
        order: Callable[[int], Sequence[Any]],
        total: int,
        parts: Path,
        *,
        desc: str,
        progress: Progress,
    ) -> Outcome:
        """As `Executor.run`; process K writes one part, named K.

        Raises:
            ConfigError: no device is named.
        """
        if not self.devices:
            raise ConfigError(
                "no device is named; expected some, such as cuda:0, cuda:1"
            )
        outcome = Outcome()
        workers: list[_Worker] = []
        with _stopped(workers):
            for number, device in enumerate(self.devices):
                part = parts / f"{number}{job.suffix}"
                workers.append(_start(job, number, device, part, len(self.devices)))
            with closing(_serve(workers, job, order, outcome)) as done:
                for _ in progress(done, desc=desc, total=total):
                    pass
        outcome.failed = [(w.device, w.error) for w in workers if w.error is not None]
        outcome.summary = (
            f"{len(outcome.failed)} of {len(self.devices)} processes failed"
        )
        return outcome


# ------------------------------------------------------------------- in each process
class _Pipe:
    """The link of a worker; a parent that is gone ends the worker."""

    def __init__(self, connection: Connection, num_devices: int) -> None:
        self.num_beside = num_devices
        self.num_cores = max(num_cores() // num_devices, 1)
        self._connection = connection
        self._lock = threading.Lock()

    def note(self, notes: dict[str, str]) -> None:
        """Adds to the notes of the outcome."""
        self.send("note", notes)

    def send(self, kind: str, value: object) -> None:
        """Sends a message that `_serve` knows."""
        with self._lock:
            self._connection.send((kind, value))

    def put_nowait(self, record: logging.LogRecord) -> None:
        """Takes the place of a queue in `logging.handlers.QueueHandler`."""
        self.send("log", record)

    def chunks(self, capacity: int) -> Iterator[list[Any]]:
        """Yields what is to be done; `capacity` is how many images are cached."""
        while True:
            self.send("take", capacity)
            if not (chunk := self._connection.recv()):
                return
            yield chunk

    def progress(
        self, items: Iterable[T], *, desc: str = "", total: int | None = None
    ) -> Iterator[T]:
        """Tells the parent how many items are done."""
        done, last = 0, time.monotonic()
        for item in items:
            yield item
            done += 1
            if (now := time.monotonic()) - last > _REPORT_S:
                self.send("done", done)
                done, last = 0, now
        self.send("done", done)


def _work(
    job: Job, device: str, part: Path, connection: Connection, num_devices: int
) -> None:
    """What a process runs."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent stops us
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    import torch

    link = _Pipe(connection, num_devices)
    torch.set_num_threads(link.num_cores)
    handler = logging.handlers.QueueHandler(link)  # type: ignore[arg-type]
    logging.getLogger("sfmprep").addHandler(handler)
    logging.getLogger("sfmprep").setLevel(logging.INFO)
    try:
        job.run(device, part, link)
        link.send("finished", None)
    except (EOFError, ConnectionError):  # the parent is gone
        sys.exit(1)
    except SfmprepError as error:
        link.send("failed", error)
    except OSError as error:
        link.send("failed", StoreError(in_words(error)))
    except Exception:
        link.send("failed", RuntimeError(traceback.format_exc()))


# --------------------------------------------------------------------- in the parent
class _Shards:
    """One contiguous shard of the work for each worker, handed out in chunks."""

    def __init__(
        self, items: Sequence[Any], num_workers: int, chunks_a_worker: int
    ) -> None:
        self._items = items
        cuts = [len(items) * k // num_workers for k in range(num_workers + 1)]
        self._left = [range(a, b) for a, b in zip(cuts, cuts[1:], strict=False)]
        self._chunk = chunk_size(len(items), num_workers * chunks_a_worker)

    def take(self, worker: int) -> list[Any]:
        """The next items of a worker; none when all work is handed out."""
        if not self._left[worker]:
            longest = max(range(len(self._left)), key=lambda k: len(self._left[k]))
            half = len(self._left[longest]) // 2
            self._left[worker] = self._left[longest][half:]
            self._left[longest] = self._left[longest][:half]
        own = self._left[worker]
        self._left[worker] = own[self._chunk :]
        return [self._items[k] for k in own[: self._chunk]]


@dataclass(eq=False)
class _Worker:
    number: int
    device: str
    process: SpawnProcess
    connection: Connection
    ended: bool = False  # it said so
    error: Exception | None = None


def _start(job: Job, number: int, device: str, part: Path, num_devices: int) -> _Worker:
    context = multiprocessing.get_context("spawn")  # CUDA does not survive a fork
    own, others = context.Pipe()
    process = context.Process(
        target=_work,
        args=(job, device, part, others, num_devices),
        name=f"sfmprep-{device}-{number}",
        daemon=True,
    )
    process.start()
    others.close()  # so that its end is seen here
    return _Worker(number, device, process, own)


def _serve(
    workers: list[_Worker],
    job: Job,
    order: Callable[[int], Sequence[Any]],
    outcome: Outcome,
) -> Generator[None]:
    """Answers the workers until the last has ended; yields once for each item done."""
    shards: _Shards | None = None
    talking: dict[Any, _Worker] = {worker.connection: worker for worker in workers}
    while talking:
        for connection in wait(list(talking)):
            worker = talking[connection]
            try:
                kind, value = worker.connection.recv()
                if kind == "take":
                    shards = shards or _Shards(
                        order(value), len(workers), job.chunks_a_device
                    )
                    worker.connection.send(shards.take(worker.number))
            except (EOFError, OSError):
                del talking[connection]
                _note_end(worker)
                continue
            if kind == "done":
                yield from (None for _ in range(value))
            elif kind == "note":
                outcome.notes.update(value)
            elif kind == "log":
                own = logging.getLogger(value.name)
                if own.isEnabledFor(value.levelno):
                    own.handle(value)
            elif kind in ("finished", "failed"):
                worker.ended, worker.error = True, value


def _note_end(worker: _Worker) -> None:
    """Explains why a worker is gone that did not say so; ends one that hangs."""
    worker.process.join(_PATIENCE_S)
    hangs = worker.process.is_alive()
    worker.process.kill()
    worker.process.join()
    if worker.ended:
        return
    how = HUNG if hangs else how_it_ended(worker.process.exitcode or 0)
    worker.error = DeviceError(f"its process was ended {how}")


def how_it_ended(code: int) -> str:
    """In words that follow "was ended", from the exit code of a process."""
    if code >= 0:
        return f"with exit code {code}"
    how = f"by {signal.Signals(-code).name}"
    if -code == signal.SIGKILL:
        how += ", as the system does when memory runs out"
    return how


@contextlib.contextmanager
def _stopped(workers: list[_Worker]) -> Iterator[None]:
    """Ends the processes on leaving; those still at work write what they have."""
    try:
        yield
    finally:
        for worker in workers:
            worker.connection.close()
            if not worker.ended:
                worker.process.terminate()
        for worker in workers:
            worker.process.join(_PATIENCE_S)
            worker.process.kill()
            worker.process.join(_PATIENCE_S)
