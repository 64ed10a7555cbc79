"""One shard of a job, done by a process that may be on another machine.

It finds the files of the shard where they are, or in the cache of its node; writes its
part on a local disk, and moves it to the others, if it sees their folder.
"""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
import traceback
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from sfmprep import __version__
from sfmprep.errors import DeviceError, SfmprepError, StoreError
from sfmprep.executors.protocol import Job
from sfmprep.files import below, in_words

T = TypeVar("T")


class Stamp(NamedTuple):
    """By what a file is known to be the same on two machines."""

    num_bytes: int
    time_ns: int

    @staticmethod
    def of(path: Path) -> Stamp | None:
        """That of a file; None where there is none."""
        try:
            found = path.stat()
        except OSError:
            return None
        return Stamp(found.st_size, found.st_mtime_ns)


@dataclass(frozen=True, kw_only=True)
class Order:
    """What is to be done, and how."""

    version: str  # of sfmprep
    items: Sequence[Any]
    files: Mapping[Path, Stamp]  # as the sender sees them
    cache: str  # name of the folder, among temporary files, for what is sent
    parts: Path  # the folder of parts, as the sender sees it
    token: str  # a file in it, by which a node sees that it is the same
    name: str  # of the part
    device: str
    num_cores: int
    environment: Mapping[str, str]


@dataclass(kw_only=True)
class Answer:
    """What came of it."""

    node: str = field(default_factory=socket.gethostname)
    missing: list[Path] = field(default_factory=list)  # not seen: nothing was done
    content: bytes | None = None  # of the part, where it is not among the others
    notes: dict[str, str] = field(default_factory=dict)
    records: list[logging.LogRecord] = field(default_factory=list)
    error: Exception | None = None


def do_shard(job: Job, order: Order, sent: Mapping[Path, Iterable[bytes]]) -> Answer:
    """Does a shard, or names the files that are missing for it.

    Args:
        job: What to do.
        order: See there.
        sent: The content of files that this node said were missing.
    """
    answer = Answer()
    if order.version != __version__:
        answer.error = DeviceError(
            f"it has sfmprep {__version__}, but expected {order.version}, as where the"
            " run was started. Install the same on every node."
        )
        return answer
    os.environ.update(order.environment)
    handler = _Kept(answer.records)
    logging.getLogger("sfmprep").addHandler(handler)
    logging.getLogger("sfmprep").setLevel(logging.INFO)
    try:
        cache = Path(tempfile.gettempdir()) / order.cache
        for path, blocks in sent.items():
            _keep(below(cache, path), blocks)
        placed = _find(job, order, cache, answer.missing)
        if not answer.missing:
            _run(placed, order, answer)
    except SfmprepError as error:
        answer.error = error
    except OSError as error:
        answer.error = StoreError(in_words(error))
    except Exception:
        answer.error = RuntimeError(traceback.format_exc())
    finally:
        logging.getLogger("sfmprep").removeHandler(handler)
    return answer


def write_whole(path: Path, blocks: Iterable[bytes]) -> None:
    """Writes a file of which nobody sees a part."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            for block in blocks:
                file.write(block)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def clear_cache(cache: str) -> None:
    """Deletes what this node was sent."""
    shutil.rmtree(Path(tempfile.gettempdir()) / cache, ignore_errors=True)


def _keep(path: Path, blocks: Iterable[bytes]) -> None:
    """Puts a file that was sent into the cache, of this run alone."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path, blocks)


def _find(job: Job, order: Order, cache: Path, missing: list[Path]) -> Job:
    """The job with its files where this node has them; adds those that it has not."""
    here = {path for path, stamp in order.files.items() if Stamp.of(path) == stamp}
    if len(here) == len(order.files):
        return job
    for path in order.files:
        placed = below(cache, path)
        if path in here:
            placed.parent.mkdir(parents=True, exist_ok=True)
            if not placed.exists():
                linked = placed.with_name(f".{placed.name}.{os.getpid()}.link")
                linked.symlink_to(path)
                linked.replace(placed)
        elif not placed.is_file():
            missing.append(path)
    return job.below(cache)


def _run(job: Job, order: Order, answer: Answer) -> None:
    link = _Whole(order.items, order.num_cores, answer.notes)
    if job.has_network:
        import torch

        torch.set_num_threads(order.num_cores)
    with tempfile.TemporaryDirectory(prefix="sfmprep-shard-") as folder:
        part = Path(folder) / order.name
        job.run(order.device, part, link)
        if not part.is_file():
            raise StoreError(f"a job left no {part.name}, but expected its part there")
        if not (order.parts / order.token).is_file():
            answer.content = part.read_bytes()
            return
        with part.open("rb") as file:
            write_whole(order.parts / order.name, iter(lambda: file.read(1 << 24), b""))


class _Whole:
    """The link of a shard: all that is to be done, in one chunk."""

    num_beside = 1

    def __init__(
        self, items: Sequence[Any], num_cores: int, notes: dict[str, str]
    ) -> None:
        self.num_cores = num_cores
        self._items = items
        self._notes = notes

    def chunks(self, capacity: int) -> Iterator[list[Any]]:
        """As `Link.chunks`."""
        yield list(self._items)

    def note(self, notes: dict[str, str]) -> None:
        """As `Link.note`."""
        self._notes.update(notes)

    def progress(
        self, items: Iterable[T], *, desc: str = "", total: int | None = None
    ) -> Iterator[T]:
        """As `Link.progress`; a shard is told of when it is through."""
        yield from items


class _Kept(logging.Handler):
    """Keeps what is logged, ready to be pickled."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__(logging.INFO)
        self._records = records

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self._records.append(record)
