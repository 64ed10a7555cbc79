"""Jobs, and what has them done: shards of work, each of which leaves a file.

A job is told what to do piece by piece and writes what it makes into one file, a part.
An executor cuts the work into pieces, has them done somewhere, and leaves the parts in
one folder of this machine; the caller merges them. So what is done is a file, whatever
dies: a run that goes on merges the parts that are there and asks for the rest. Work is
idempotent: a piece that is done twice leaves the same items, and the second is dropped.

`local.py` runs one process a device; `ray.py` runs shards on the nodes of a cluster.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

from sfmprep.errors import DeviceError
from sfmprep.progress import Progress

T = TypeVar("T")

_LARGEST_CHUNK = 256
_SMALLEST_CHUNK = 8


class Link(Protocol):
    """What a job knows of whoever has it done."""

    num_cores: int
    """The cores that it may use."""
    num_beside: int
    """How many such jobs share this machine; itself is one."""

    def chunks(self, capacity: int) -> Iterator[list[Any]]:
        """Yields what is to be done; `capacity` is how many images are cached."""
        ...

    def note(self, notes: dict[str, str]) -> None:
        """Adds to the notes of the outcome."""
        ...

    def progress(
        self, items: Iterable[T], *, desc: str = "", total: int | None = None
    ) -> Iterator[T]:
        """Tells how many items are done."""
        ...


class Job(Protocol):
    """What is done in each process; it is pickled."""

    chunks_a_device: ClassVar[int]
    """Into how many parts a shard is cut; many even out what is left at the end."""
    suffix: ClassVar[str]
    """Of the parts that it writes, such as `.h5`."""
    has_network: ClassVar[bool]
    """Whether it runs a network, which a GPU does faster."""

    def run(self, device: str, part: Path, link: Link) -> None:
        """Does the chunks that the link gives, and writes the file `part`."""
        ...

    def files(self, items: Sequence[Any]) -> Iterable[Path]:
        """What it reads for these items: absolute paths of this machine."""
        ...

    def below(self, folder: Path) -> Job:
        """The same job, for which each of its files lies in `folder`.

        See `files.below`.
        """
        ...


@dataclass
class Outcome:
    """What came of a job."""

    notes: dict[str, str] = field(default_factory=dict)
    failed: list[tuple[str, Exception]] = field(default_factory=list)  # where, why
    summary: str = ""  # such as `1 of 2 processes failed`

    def expect_whole(self, place: object) -> None:
        """Makes sure that all was done.

        Args:
            place: Where what is done lies.

        Raises:
            SfmprepError: what was raised, if it is of one kind, and where; else
                DeviceError.
            RuntimeError: something failed in a way that is not foreseen.
        """
        if not self.failed:
            return
        kinds = {type(error) for _, error in self.failed}
        kind = kinds.pop() if len(kinds) == 1 else DeviceError
        reasons = "\n".join(f"{where}: {error}" for where, error in self.failed)
        raise kind(
            f"{reasons}\n{self.summary}; what is done is in {place}. Run the same"
            " command again: it goes on from there."
        )


class Executor(Protocol):
    """Has jobs done."""

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
        """Has a job done; returns when all of it is, or cannot be.

        Args:
            job: What to do.
            order: Gives the work, from how many images a process caches. It is cut into
                chunks of neighbours.
            total: How long the work is; at least 1.
            parts: A folder that is there; gets the files that the job writes.
            desc: What the progress bar is called.
            progress: Wraps the loop over items that are done.
        """
        ...


@dataclass(frozen=True)
class Shards:
    """An executor, and the folder of the parts that it leaves, until they are used."""

    executor: Executor
    parts: Path


def chunk_size(total: int, num_chunks: int) -> int:
    """How many items a chunk has where some `num_chunks` are wanted."""
    return min(max(total // max(num_chunks, 1), _SMALLEST_CHUNK), _LARGEST_CHUNK)
