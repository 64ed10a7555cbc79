"""Extraction, description, matching in shards, by several processes or machines.

What an executor has done lies as small stores in `NAME.parts` beside the store NAME.
When it is through, these are merged into the store and deleted; `merge_parts` does so
with those that a killed run has left.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar

from sfmprep.capture.batches import MAX_LOAD_THREADS
from sfmprep.capture.elsewhere import files_of, only, placed_below
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import (
    EngineConfig,
    FeaturesConfig,
    MatcherConfig,
    RetrieverConfig,
)
from sfmprep.errors import ConfigError
from sfmprep.executors.protocol import Executor, Job, Link
from sfmprep.files import below, read_table
from sfmprep.frontend.describe import describe_images
from sfmprep.frontend.extract import extract_features
from sfmprep.frontend.match import (
    match_in_order,
    missing_pairs,
    num_cached,
    pairs_per_batch,
)
from sfmprep.frontend.match_order import order_for_cache
from sfmprep.models.build import build_extractor, build_matcher, build_retriever
from sfmprep.models.protocols import Extractor, Matcher, Retriever
from sfmprep.models.shared.precision import Precision
from sfmprep.progress import Progress, silent
from sfmprep.stores.ragged import DamagedError
from sfmprep.stores.tables import FeatureStore, MatchStore, RowStore, Store
from sfmprep.types import Pair

logger = logging.getLogger(__name__)


def match_in_shards(
    pairs: Iterable[Pair],
    features_path: Path,
    config: MatcherConfig,
    store_path: Path,
    provenance: Mapping[str, Any],
    *,
    executor: Executor,
    engine: EngineConfig,
    progress: Progress = silent,
) -> None:
    """Has every pair matched that the store does not hold yet.

    The store has in the end the content that `match_features` leaves, in another
    order. What is matched when something fails is kept.

    Args:
        pairs: What to match, name0 < name1.
        features_path: The store of features.
        config: The matcher.
        store_path: Where matches go.
        provenance: Of that store.
        executor: Has it done.
        engine: Precision, and the bytes that each process caches.
        progress: Wraps the loop over pairs.

    Raises:
        SfmprepError: what was raised where it was done, and where that is; DeviceError
            if a process was killed. See also the executor.
        RuntimeError: a process failed in a way that is not foreseen.
        StoreError: see `MatchStore` and `merge_parts`.
    """
    with (
        MatchStore(store_path, provenance) as store,
        FeatureStore(features_path) as features,
    ):
        merge_parts(store)
        missing = missing_pairs(pairs, features, store)
        job = _Matching(features_path, config, provenance, engine)
        fill(
            *(store, executor, job),
            lambda capacity: order_for_cache(missing, capacity),
            *("match", progress),
        )


def extract_in_shards(
    images: ImageSet,
    config: FeaturesConfig,
    store_path: Path,
    provenance: Mapping[str, Any],
    *,
    executor: Executor,
    engine: EngineConfig,
    progress: Progress = silent,
) -> dict[str, str]:
    """Has the features extracted that the store does not hold yet.

    See `match_in_shards`, also for what is raised.

    Returns:
        The images that could not be decoded, with the reason.
    """
    with FeatureStore(store_path, provenance) as store:
        merge_parts(store)
        missing = [name for name in images.names if name not in store]
        job = _Extraction(images, config, provenance, engine)
        return fill(store, executor, job, lambda _: missing, "extract", progress)


def describe_in_shards(
    images: ImageSet,
    names: Sequence[str],
    config: RetrieverConfig,
    store_path: Path,
    provenance: Mapping[str, Any],
    *,
    executor: Executor,
    engine: EngineConfig,
    progress: Progress = silent,
) -> dict[str, str]:
    """Has the images described that the store does not hold yet.

    See `match_in_shards`, also for what is raised.

    Returns:
        The images that could not be decoded, with the reason.
    """
    with RowStore(store_path, provenance) as store:
        merge_parts(store)
        missing = [name for name in names if name not in store]
        job = _Description(images, config, provenance, engine)
        return fill(store, executor, job, lambda _: missing, "describe", progress)


def merge_parts(store: Store) -> None:
    """Moves what a stopped run in shards has left into the store.

    What can be read of a damaged part is merged, with a warning; then it is deleted.

    Raises:
        StoreError: a part was made in another way, or a process still writes it.
    """
    folder = parts_of(store.path)
    if not folder.is_dir():
        return
    for part in sorted(folder.glob("*.h5")):
        try:
            store.merge(part)
        except DamagedError as error:
            logger.warning("what is lost of a part is made again: %s", error)
        part.unlink()  # one that came meanwhile stays
    for note in folder.glob("share-*.json"):
        if not note.with_suffix(".h5").exists():
            note.unlink(missing_ok=True)
    for file in folder.glob(".*.part"):
        file.unlink(missing_ok=True)
    for token in folder.glob(".seen-*"):  # whoever is still at work for it gives up
        token.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # a user's file stays, and so its folder
        folder.rmdir()


def parts_of(path: Path | None) -> Path:
    """The folder of the parts of a store.

    Raises:
        ConfigError: it lies in memory.
    """
    if path is None:
        raise ConfigError("shards fill a store on disk only. Give it a path.")
    return path.with_name(f"{path.name}.parts")


def contents_of(part: Path) -> Path:
    """Where a share notes the content of the photographs and masks that it is of."""
    return part.with_suffix(".json")


def changed_since(part: Path, contents: Mapping[str, str]) -> list[str]:
    """Images of a share that it notes another content of than is given.

    Raises:
        StoreError: what it notes is damaged.
    """
    noted = read_table(contents_of(part))
    return [n for n, of_now in contents.items() if noted.get(n, of_now) != of_now]


def fill(
    store: Store,
    executor: Executor,
    job: Job,
    order: Callable[[int], Sequence[Any]],
    desc: str,
    progress: Progress,
) -> dict[str, str]:
    """Has what a store lacks done and merged; returns what was noted on the way.

    Raises:
        SfmprepError: see `match_in_shards`.
    """
    if not (total := len(order(0))):
        return {}
    parts = parts_of(store.path)
    parts.mkdir(exist_ok=True)
    outcome = executor.run(job, order, total, parts, desc=desc, progress=progress)
    merge_parts(store)
    outcome.expect_whole(store.path)
    return outcome.notes


@dataclass(frozen=True)
class _Matching:
    chunks_a_device: ClassVar[int] = 16
    suffix: ClassVar[str] = ".h5"
    has_network: ClassVar[bool] = True
    features_path: Path
    config: MatcherConfig
    provenance: Mapping[str, Any]
    engine: EngineConfig

    def run(self, device: str, part: Path, link: Link) -> None:
        matcher = _matcher(self.config, device, self.engine.precision)
        cache_bytes = int(self.engine.cache_gb * 1e9)
        with (
            FeatureStore(self.features_path) as features,
            MatchStore(part, self.provenance) as store,
        ):
            chunks = link.chunks(num_cached(features, matcher, cache_bytes))
            matched = match_in_order(
                (pair for chunk in chunks for pair in chunk),
                features,
                matcher,
                store,
                batch_size=pairs_per_batch(device),
                cache_bytes=cache_bytes,
            )
            with closing(matched):
                for _ in link.progress(matched):
                    pass

    def files(self, items: Sequence[Pair]) -> list[Path]:
        path = self.features_path
        return sorted(path.glob("*.h5")) if path.is_dir() else [path]

    def below(self, folder: Path) -> _Matching:
        return replace(self, features_path=below(folder, self.features_path))


@dataclass(frozen=True)
class _Extraction:
    chunks_a_device: ClassVar[int] = 4  # reading ahead starts anew with each
    suffix: ClassVar[str] = ".h5"
    has_network: ClassVar[bool] = True
    images: ImageSet
    config: FeaturesConfig
    provenance: Mapping[str, Any]
    engine: EngineConfig

    def run(self, device: str, part: Path, link: Link) -> None:
        extractor = _extractor(self.config, device, self.engine.precision)
        with FeatureStore(part, self.provenance) as store:
            for names in link.chunks(0):
                unreadable = extract_features(
                    only(self.images, names),
                    extractor,
                    store,
                    max_size=self.config.max_size,
                    num_workers=num_readers(self.engine, link),
                    progress=link.progress,
                )
                link.note(unreadable)

    def files(self, items: Sequence[str]) -> list[Path]:
        return list(files_of(self.images, items))

    def below(self, folder: Path) -> _Extraction:
        return replace(self, images=placed_below(self.images, folder))


@dataclass(frozen=True)
class _Description:
    chunks_a_device: ClassVar[int] = 4
    suffix: ClassVar[str] = ".h5"
    has_network: ClassVar[bool] = True
    images: ImageSet
    config: RetrieverConfig
    provenance: Mapping[str, Any]
    engine: EngineConfig

    def run(self, device: str, part: Path, link: Link) -> None:
        retriever = _retriever(self.config, device, self.engine.precision)
        with RowStore(part, self.provenance) as store:
            for names in link.chunks(0):
                unreadable = describe_images(
                    *(self.images, names, retriever, store),
                    max_size=self.config.max_size,
                    num_workers=num_readers(self.engine, link),
                    progress=link.progress,
                )
                link.note(unreadable)

    def files(self, items: Sequence[str]) -> list[Path]:
        return list(files_of(self.images, items))

    def below(self, folder: Path) -> _Description:
        return replace(self, images=placed_below(self.images, folder))


def num_readers(engine: EngineConfig, link: Link) -> int:
    """How many threads of a job decode."""
    if engine.num_workers is None:
        return min(link.num_cores, MAX_LOAD_THREADS)
    return max(engine.num_workers // link.num_beside, 1)


# a process that does shard after shard builds its network once
@lru_cache(maxsize=1)
def _matcher(config: MatcherConfig, device: str, precision: Precision) -> Matcher:
    return build_matcher(config, device=device, precision=precision)


@lru_cache(maxsize=1)
def _extractor(config: FeaturesConfig, device: str, precision: Precision) -> Extractor:
    return build_extractor(config, device=device, precision=precision)


@lru_cache(maxsize=1)
def _retriever(config: RetrieverConfig, device: str, precision: Precision) -> Retriever:
    return build_retriever(config, device=device, precision=precision)
