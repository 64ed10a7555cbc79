"""Shards of work on the nodes of a Ray cluster. The only file that imports Ray.

    here                                            a task, on any node (see `shard.py`)
    cuts the work into shards, twice as many of
    them under way as the cluster has room for ──►  reads its files where they are, or
                                                    in the cache of its node
    sends the files that it names, again       ◄──  names those that it does not see
                                               ──►  writes its part on a local disk
    the parts, in one folder                   ◄──  moves it there, or sends its bytes
                                                    where it does not see the folder

A node sees a file if there is one of the same path, size and time. So nodes that share
a disk with this machine read and write there, and others need nothing but Ray and
sfmprep. What they were sent is deleted when the job ends.

A shard whose node, worker or result is lost is done again, elsewhere if need be, up to
`_MAX_TRIES` times: some shards kill whoever does them. A node whose network is cut is
lost too, after a minute and a half at most. An error of the job itself ends the handing
out, as it would come again. A cluster without room is waited for, as nodes may come.
Where the head is lost, what was done until then is here, and the job ends with an
error; run again, the caller merges the parts and asks for the rest. Ray itself would
end this process after a minute without a head, so nothing stays connected between two
jobs.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import threading
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sfmprep import __version__
from sfmprep.errors import ConfigError, DeviceError
from sfmprep.executors.protocol import Job, Outcome, chunk_size
from sfmprep.executors.shard import (
    Answer,
    Order,
    Stamp,
    clear_cache,
    do_shard,
    write_whole,
)
from sfmprep.progress import Progress

logger = logging.getLogger(__name__)

_MAX_TRIES = 5
_FINER = 4  # than chunks of processes here: what dies with a node is done again
_IMAGES_A_SHARD = 34  # pairs are ordered so that a shard needs about so many
_WAIT_S = 1.0  # between two looks at the cluster
_HEAD_PATIENCE_S = 10.0
_SAY_S = 30.0  # without an answer, until it is said
_BLOCK_BYTES = 32 << 20  # of a file that is sent
_SENT_ENVIRONMENT = ("SFMPREP_", "XDG_CACHE_HOME")

# Ray, which reads these when it is imported, would ask every five minutes whether the
# network of a node still answers, and wait two more for that. Nodes hang up on who asks
# more often than once a minute.
os.environ.setdefault("RAY_grpc_client_keepalive_time_ms", "65000")
os.environ.setdefault("RAY_grpc_client_keepalive_timeout_ms", "20000")


@dataclass(frozen=True, kw_only=True)
class RayCluster:
    """An executor of which this machine is a node.

    Args:
        address: Of the head, HOST:PORT; `auto` finds that of this machine.
        device: `cpu`, `cuda`, or `auto` for GPUs if the cluster has any.
        num_cores: Cores that a shard takes; on a GPU it takes that beside them.

    Raises:
        ConfigError: Ray is not installed.
    """

    address: str = "auto"
    device: str = "auto"
    num_cores: int = 1

    def __post_init__(self) -> None:
        try:
            import ray  # noqa: F401
        except ImportError as error:
            raise ConfigError(
                f"`--executor ray` needs Ray, which is not here ({error}). Install it"
                ' on every node: `pip install ".[cluster]"` in the clone of sfmprep.'
            ) from error

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
        """As `Executor.run`; each shard leaves one part.

        Raises:
            ConfigError: there is no such cluster, or it lacks what `device` asks for.
        """
        with _joined(self.address) as head:
            shards = _Shards(job, parts.absolute(), _needs(job, self), head)
            items = order(_IMAGES_A_SHARD)
            num_chunks = shards.room() * job.chunks_a_device * _FINER
            size = chunk_size(total, num_chunks)
            starts = range(0, len(items), size)
            chunks = (items[start : start + size] for start in starts)
            try:
                with shards.parts_shown(), closing(shards.results(chunks)) as done:
                    for _ in progress(done, desc=desc, total=total):
                        pass
            finally:
                shards.clear_caches()
            shards.outcome.summary = (
                f"{shards.num_done} of {len(starts)} shards are done"
            )
            return shards.outcome


@contextmanager
def _joined(address: str) -> Iterator[tuple[str, int]]:
    """Joins a cluster; yields host and port of its head."""
    import ray

    is_main = threading.current_thread() is threading.main_thread()
    handler = signal.getsignal(signal.SIGTERM) if is_main else None
    try:
        if address != "auto":  # Ray would try for minutes
            host, _, port = address.rpartition(":")
            socket.create_connection((host.strip("[]"), int(port)), 5.0).close()
        ray.init(
            address=address,
            configure_logging=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
    except (OSError, RuntimeError, ValueError, AssertionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(". ")
        raise ConfigError(
            f"--address {address}: no Ray cluster can be joined there ({reason})."
            " Start one with `ray start --head` on one machine and `ray start"
            " --address=HOST:6379` on the others; this machine has to be one of them."
        ) from error
    try:
        if handler is not None:  # Ray brings one of its own
            signal.signal(signal.SIGTERM, handler)
        host, _, port = ray.get_runtime_context().gcs_address.rpartition(":")
        yield host.strip("[]"), int(port)
    finally:
        ray.shutdown()


def _needs(job: Job, cluster: RayCluster) -> dict[str, int]:
    """What a shard takes of its node.

    Raises:
        ConfigError: there is no GPU, but one is asked for.
    """
    import ray

    has_gpu = ray.cluster_resources().get("GPU", 0) >= 1
    if job.has_network and cluster.device == "cuda" and not has_gpu:
        raise ConfigError(
            f"--device cuda: no node of the Ray cluster at {cluster.address} has a GPU."
            " Give --device cpu, or add nodes that have one."
        )
    on_gpu = job.has_network and has_gpu and cluster.device != "cpu"
    return {"CPU": cluster.num_cores, **({"GPU": 1} if on_gpu else {})}


@dataclass(eq=False)
class _Shard:
    """A piece of the work, and how often it was tried."""

    number: int
    items: Sequence[Any]
    files: Mapping[Path, Stamp]
    sent: dict[Path, list[Any]] = field(default_factory=dict)  # references to blocks
    num_tries: int = 0


class _Shards:
    """The shards of one job, and what has become of them."""

    def __init__(
        self, job: Job, parts: Path, needs: Mapping[str, int], head: tuple[str, int]
    ) -> None:
        import ray

        self.outcome = Outcome()
        self.num_done = 0
        # workers start in a folder of their own
        job = job.below(Path(Path.cwd().anchor))
        self._job, self._sent_job = job, ray.put(job)
        self._parts, self._needs, self._head = parts, needs, head
        self._id = uuid.uuid4().hex
        self._token = f".seen-{self._id}"
        self._cache = f"sfmprep-ray-{self._id}"
        self._blocks: dict[Path, list[Any]] = {}
        self._files_were_sent = False
        self._task = ray.remote(_do).options(
            num_cpus=needs["CPU"],
            num_gpus=needs.get("GPU", 0),
            max_retries=0,  # is done here, and counted
            scheduling_strategy="SPREAD",
        )
        self._head_seen = self._answered = time.monotonic()

    def room(self) -> int:
        """How many shards the cluster can do at once; 1 where it can do none."""
        return max(self._room(), 1)

    def _room(self) -> int:
        import ray

        there = ray.cluster_resources()
        return min(int(there.get(key, 0) // num) for key, num in self._needs.items())

    @contextmanager
    def parts_shown(self) -> Iterator[None]:
        """Puts a file into the folder of parts by which nodes know it."""
        token = self._parts / self._token
        token.touch()
        try:
            yield
        finally:
            token.unlink(missing_ok=True)

    def results(self, chunks: Iterable[Sequence[Any]]) -> Generator[None]:
        """Has all chunks done; yields once for each item that is."""
        import ray

        waiting = (self._shard(k, items) for k, items in enumerate(chunks))
        flying: dict[Any, _Shard] = {}
        limit = 2 * self.room()
        looked = time.monotonic()
        while True:
            while len(flying) < limit and not self.outcome.failed:
                if (new := next(waiting, None)) is None:
                    break
                flying[self._start(new)] = new
            if not flying:
                break
            done, _ = ray.wait(list(flying), num_returns=1, timeout=_WAIT_S)
            for reference in done:
                shard = flying.pop(reference)
                if self._take(shard, reference):
                    yield from (None for _ in shard.items)
                elif not self.outcome.failed:
                    flying[self._start(shard)] = shard
                self._forget_blocks(shard, flying.values())
            if (now := time.monotonic()) - looked > _WAIT_S:
                looked = now
                if self._head_answers():
                    self._head_seen = now
                    limit = 2 * self.room()
                    self._say_what_is_waited_for(now)
                elif now - self._head_seen > _HEAD_PATIENCE_S:
                    self._give_up_head()
                    return

    def _shard(self, number: int, items: Sequence[Any]) -> _Shard:
        stamps = {p.absolute(): Stamp.of(p) for p in self._job.files(items)}
        # what is not here is missing there too, and the job says so
        return _Shard(number, items, {p: s for p, s in stamps.items() if s is not None})

    def _name(self, shard: _Shard) -> str:
        # not that of an earlier run, a task of which may still be at work
        return f"{shard.number:06d}-{self._id[:8]}{self._job.suffix}"

    def _start(self, shard: _Shard) -> Any:
        """Hands a shard out; returns the reference to its answer."""
        shard.num_tries += 1
        order = Order(
            version=__version__,
            items=shard.items,
            files=shard.files,
            cache=self._cache,
            parts=self._parts,
            token=self._token,
            name=self._name(shard),
            device="cuda" if "GPU" in self._needs else "cpu",
            num_cores=self._needs["CPU"],
            environment={
                key: value
                for key, value in os.environ.items()
                if key.startswith(_SENT_ENVIRONMENT)
            },
        )
        return self._task.remote(self._sent_job, order, dict(shard.sent))

    def _take(self, shard: _Shard, reference: Any) -> bool:
        """Takes what a task left; False if the shard is not done."""
        import ray

        try:
            answer: Answer = ray.get(reference)
        except ray.exceptions.RayTaskError as error:  # before the job began
            cause = error.cause or error
            reason = (str(cause).strip().splitlines() or [type(cause).__name__])[-1]
            self._fail(
                "a node",
                DeviceError(f"it cannot do shards ({reason}). Is sfmprep there?"),
            )
            return False
        except ray.exceptions.RayError as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            if not self._head_answers():  # which is told once it stays away
                shard.num_tries -= 1
                time.sleep(_WAIT_S)
            elif shard.num_tries < _MAX_TRIES:
                logger.warning("shard %d is done again: %s", shard.number, reason)
            else:
                lost = f"it was lost {shard.num_tries} times, at last so: {reason}"
                self._fail(f"shard {shard.number}", DeviceError(lost))
            return False
        self._answered = time.monotonic()
        for record in answer.records:
            own = logging.getLogger(record.name)
            if own.isEnabledFor(record.levelno):
                own.handle(record)
        if answer.error is not None:
            self._fail(answer.node, answer.error)
            return False
        if answer.missing:
            shard.num_tries -= 1
            shard.sent.update((path, self._blocks_of(path)) for path in answer.missing)
            return False
        if answer.content is not None:
            write_whole(self._parts / self._name(shard), [answer.content])
        self.outcome.notes.update(answer.notes)
        self.num_done += 1
        return True

    def _fail(self, where: str, error: Exception) -> None:
        self.outcome.failed.append((where, error))

    def _blocks_of(self, path: Path) -> list[Any]:
        """References to the content of a file, which nodes get from each other."""
        import ray

        self._files_were_sent = True
        if path not in self._blocks:
            with path.open("rb") as file:
                blocks = iter(lambda: file.read(_BLOCK_BYTES), b"")
                self._blocks[path] = [ray.put(block) for block in blocks]
        return self._blocks[path]

    def _forget_blocks(self, shard: _Shard, others: Iterable[_Shard]) -> None:
        """Drops what was sent for a shard alone, such as its photographs."""
        needed = {path for other in others for path in other.sent}
        for path in shard.sent.keys() - needed:
            self._blocks.pop(path, None)

    def clear_caches(self) -> None:
        """Has every node delete what it was sent; one that does not answer keeps it."""
        if not (self._files_were_sent and self._head_answers()):
            return
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        clear = ray.remote(clear_cache)
        nodes = [node["NodeID"] for node in ray.nodes() if node["Alive"]]
        tasks = [
            clear.options(
                num_cpus=0,
                max_retries=0,
                scheduling_strategy=NodeAffinitySchedulingStrategy(node, soft=False),
            ).remote(self._cache)
            for node in nodes
        ]
        ray.wait(tasks, num_returns=len(tasks), timeout=_HEAD_PATIENCE_S)

    def _head_answers(self) -> bool:
        """Whether the head is there: without it, calls of Ray wait, then end us."""
        with suppress(OSError):
            socket.create_connection(self._head, timeout=_WAIT_S).close()
            return True
        return False

    def _give_up_head(self) -> None:
        host, port = self._head
        text = (
            "the head of the Ray cluster has not answered for"
            f" {_HEAD_PATIENCE_S:.0f} s. Start the cluster anew."
        )
        self._fail(f"{host}:{port}", DeviceError(text))

    def _say_what_is_waited_for(self, now: float) -> None:
        if now - self._answered > _SAY_S and self._room() < 1:
            self._answered = now
            logger.warning("no node of the Ray cluster has room; waiting for one")


def _do(job: Job, order: Order, sent: Mapping[Path, list[Any]]) -> Answer:
    """What a task runs."""
    import ray

    blocks = {path: map(ray.get, some) for path, some in sent.items()}
    return do_shard(job, order, blocks)
