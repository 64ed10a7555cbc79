"""An executor that pickles every shard and does it in this process."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sfmprep import __version__
from sfmprep.executors.protocol import Job, Outcome, chunk_size
from sfmprep.executors.shard import Answer, Order, Stamp, do_shard
from sfmprep.progress import Progress


def order_for(job: Job, items: Sequence[Any], parts: Path, name: str) -> Order:
    """What a shard is told, on a machine that sees the same disk."""
    stamps = {path: Stamp.of(path) for path in job.files(items)}
    return Order(
        version=__version__,
        items=items,
        files={path: stamp for path, stamp in stamps.items() if stamp is not None},
        cache="sfmprep-ray-test",
        parts=parts,
        token=".seen-test",
        name=name,
        device="cpu",
        num_cores=1,
        environment={},
    )


@dataclass(frozen=True)
class ShardsHere:
    """Does shards; stops after so many, as when the machine is switched off."""

    stop_after: int = -1

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
        """As `Executor.run`."""
        items, outcome = order(34), Outcome(summary="some shards are done")
        size = chunk_size(total, 4)
        for number, start in enumerate(range(0, len(items), size)):
            if number == self.stop_after:
                raise KeyboardInterrupt
            told = order_for(
                job, items[start : start + size], parts, f"{number}{job.suffix}"
            )
            answer = do_again(job, told, {})
            if answer.error is not None:
                outcome.failed.append((f"shard {number}", answer.error))
                continue
            assert answer.content is not None
            (parts / told.name).write_bytes(answer.content)
            outcome.notes.update(answer.notes)
        return outcome


def do_again(job: Job, order: Order, sent: Mapping[Path, Sequence[bytes]]) -> Answer:
    """Does a shard as another process does: all comes and goes pickled."""
    answer = do_shard(*pickle.loads(pickle.dumps((job, order, sent))))
    again: Answer = pickle.loads(pickle.dumps(answer))
    return again


def elsewhere(order: Order) -> Order:
    """The same order on a machine that sees none of the files."""
    files = {path: replace_stamp(stamp) for path, stamp in order.files.items()}
    return replace(order, files=files)


def replace_stamp(stamp: Stamp) -> Stamp:
    """That of another file."""
    return Stamp(stamp.num_bytes, stamp.time_ns + 1)
