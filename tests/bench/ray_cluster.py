"""How the rate of matching grows with the workers of a Ray cluster on this machine.

    python -m tests.bench.ray_cluster [--sleep 0.25]        (or: make bench-ray)

Writes the table of examples/cluster.md. The matcher sleeps, so that cores which workers
share do not hide what the executor itself costs: all else is the real way of a run,
from the pairs to the merged store. Each worker is a node of its own.
"""

from __future__ import annotations

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from datetime import date
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np

from sfmprep.executors.protocol import Job, Link
from sfmprep.executors.ray import RayCluster
from sfmprep.files import below, write_text
from sfmprep.frontend.in_shards import fill
from sfmprep.frontend.match import match_in_order
from sfmprep.pairing.pairs import exhaustive_pairs
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Features, Matches, Pair
from tests.support.ray_nodes import ray_nodes
from tests.support.records import features

T = TypeVar("T")

PAGE = Path(__file__).resolve().parents[2] / "examples" / "cluster.md"
BEGIN, END = "<!-- speed: begin -->", "<!-- speed: end -->"
WORKERS = (1, 2, 4, 8)
_PAIRS_A_WORKER = 192  # 24 shards
_IMAGES = 60


@dataclass
class _Seen:
    """An image that a matcher which sleeps has prepared."""

    features: Features
    num_bytes: int = 1 << 20


@dataclass(frozen=True)
class _Sleeper:
    """A matcher that takes its time and finds ten matches."""

    seconds: float

    def prepare(self, found: Features) -> _Seen:
        return _Seen(found)

    def match(self, pairs: Sequence[tuple[_Seen, _Seen]]) -> list[Matches]:
        time.sleep(self.seconds * len(pairs))
        index = np.repeat(np.arange(10, dtype=np.int32)[:, None], 2, axis=1)
        return [Matches(index=index, scores=np.ones(10, np.float32)) for _ in pairs]


@dataclass(frozen=True)
class Sleeping:
    """The job of matching with that matcher; says which processes are at work."""

    chunks_a_device: ClassVar[int] = 16
    suffix: ClassVar[str] = ".h5"
    has_network: ClassVar[bool] = False
    features_path: Path
    workers: Path
    seconds: float

    def run(self, device: str, part: Path, link: Link) -> None:
        with FeatureStore(self.features_path) as found, MatchStore(part, {}) as store:
            pairs = (pair for chunk in link.chunks(0) for pair in chunk)
            matched = match_in_order(
                *(pairs, found, _Sleeper(self.seconds), store),  # type: ignore[arg-type]
                batch_size=4,
                cache_bytes=1 << 30,
            )
            with closing(matched):
                for _ in link.progress(matched):
                    pass
        (self.workers / str(os.getpid())).touch()

    def files(self, items: Sequence[Pair]) -> list[Path]:
        return [self.features_path]

    def below(self, folder: Path) -> Job:
        return replace(self, features_path=below(folder, self.features_path))


@dataclass
class Clock:
    """A progress bar that notes when all workers have done a shard, and the end."""

    workers: Path
    num_workers: int
    began: float = 0.0  # when all are at work
    done_then: int = 0
    ended: float = 0.0
    done: int = 0

    def __call__(
        self, items: Iterable[T], *, desc: str, total: int | None = None
    ) -> Iterator[T]:
        for item in items:
            yield item
            self.done += 1
            self.ended = time.monotonic()
            if not self.began and len([*self.workers.iterdir()]) >= self.num_workers:
                self.began, self.done_then = self.ended, self.done

    def rate(self) -> float:
        """Pairs a second while all were at work."""
        return (self.done - self.done_then) / (self.ended - self.began)


def measure(num_workers: int, seconds: float, folder: Path) -> tuple[float, float]:
    """Pairs a second of so many workers, and the seconds with all starts."""
    names = [f"{k:03d}" for k in range(_IMAGES)]
    with FeatureStore(folder / "features.h5", {}) as found:
        found.append([(name, features(k, 500)) for k, name in enumerate(names)])
    workers = folder / "workers"
    workers.mkdir()
    pairs = exhaustive_pairs(names).items[: num_workers * _PAIRS_A_WORKER]
    job = Sleeping(folder / "features.h5", workers, seconds)
    clock = Clock(workers, num_workers)
    with ray_nodes() as nodes, MatchStore(folder / "matches.h5", {}) as store:
        for _ in range(num_workers):
            nodes.add()
        start = time.monotonic()
        cluster = RayCluster(address=nodes.address)
        fill(store, cluster, job, lambda _: pairs, "match", clock)
        whole = time.monotonic() - start
        assert len(store) == len(pairs)
    return clock.rate(), whole


def main() -> None:
    """Measures, and writes the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sleep", type=float, default=0.25)
    seconds = parser.parse_args().sleep
    rows = []
    first = 0.0
    for number in WORKERS:
        with tempfile.TemporaryDirectory() as folder:
            rate, whole = measure(number, seconds, Path(folder))
        first = first or rate
        pairs = number * _PAIRS_A_WORKER
        rows.append(
            f"| {number} | {pairs} | {rate:.2f} | {rate / first:.2f} |"
            f" {rate / first / number:.2f} | {rate * seconds / number:.2f} |"
            f" {whole:.0f} |"
        )
        print(rows[-1], flush=True)
    load = os.getloadavg()[2]
    table = "\n".join(
        [
            BEGIN,
            "| workers | pairs | pairs a second | speed-up | of linear | of the sleep"
            " | seconds with all starts |",
            "|--:|--:|--:|--:|--:|--:|--:|",
            *rows,
            "",
            f"`make bench-ray`, {date.today()}: {platform.machine()},"
            f" {os.cpu_count()} cores, load {load:.0f}; the matcher sleeps"
            f" {seconds} s a pair; shards of 8 pairs.",
            END,
        ]
    )
    text = PAGE.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    write_text(PAGE, before + table + rest.partition(END)[2])


if __name__ == "__main__":
    main()
