"""Semi-dense matching in shards, by several processes or machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from sfmprep.capture.elsewhere import files_of, only, placed_below
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DenseMatcherConfig, EngineConfig
from sfmprep.executors.protocol import Executor, Job, Link
from sfmprep.frontend.in_shards import fill, merge_parts, num_readers
from sfmprep.frontend.match_order import order_for_cache
from sfmprep.models.build import build_dense_matcher
from sfmprep.models.protocols import DenseMatcher
from sfmprep.models.shared.precision import Precision
from sfmprep.pairing.pairs import Pairs
from sfmprep.progress import Progress, silent
from sfmprep.semidense.match import match_dense
from sfmprep.stores.tables import DenseStore
from sfmprep.types import Pair


def match_dense_in_shards(
    images: ImageSet,
    pairs: Pairs,
    config: DenseMatcherConfig,
    store_path: Path,
    provenance: Mapping[str, Any],
    *,
    executor: Executor,
    engine: EngineConfig,
    progress: Progress = silent,
) -> dict[str, str]:
    """Has both directions matched of every pair that the store does not hold yet.

    The store has in the end the content that `match_dense` leaves, in another order.
    For arguments and errors see `frontend.in_shards.match_in_shards`.

    Returns:
        The images that could not be decoded, with the reason; their pairs are left out.
    """
    with DenseStore(store_path, provenance) as store:
        merge_parts(store)
        missing = [p for p in pairs if p not in store or p[::-1] not in store]
        job = _DenseMatching(images, config, provenance, engine)
        return fill(
            *(store, executor, job),
            lambda capacity: order_for_cache(missing, capacity),
            *("match semi-dense", progress),
        )


@dataclass(frozen=True)
class _DenseMatching:
    chunks_a_device: ClassVar[int] = 16
    suffix: ClassVar[str] = ".h5"
    has_network: ClassVar[bool] = True
    images: ImageSet
    config: DenseMatcherConfig
    provenance: Mapping[str, Any]
    engine: EngineConfig

    def run(self, device: str, part: Path, link: Link) -> None:
        matcher = _matcher(self.config, device, self.engine.precision)
        with DenseStore(part, self.provenance) as store:
            for pairs in link.chunks(0):
                unreadable = match_dense(
                    *(only(self.images, _names(pairs)), Pairs.of(pairs)),
                    *(matcher, store),
                    max_size=self.config.max_size,
                    cache_gb=self.engine.cache_gb,
                    num_workers=num_readers(self.engine, link),
                    progress=link.progress,
                )
                link.note(unreadable)

    def files(self, items: Sequence[Pair]) -> list[Path]:
        return list(files_of(self.images, _names(items)))

    def below(self, folder: Path) -> Job:
        return replace(self, images=placed_below(self.images, folder))


def _names(pairs: Sequence[Pair]) -> list[str]:
    return sorted({name for pair in pairs for name in pair})


# a process that does shard after shard builds its network once
@lru_cache(maxsize=1)
def _matcher(
    config: DenseMatcherConfig, device: str, precision: Precision
) -> DenseMatcher:
    return build_dense_matcher(config, device=device, precision=precision)
