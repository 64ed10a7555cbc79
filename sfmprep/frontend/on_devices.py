"""Extraction and matching on several devices: one process each, one store in the end.

Every process writes a store of its own, `NAME.parts/K.h5` beside the store NAME. When
all have ended, the parts are merged into the store and deleted; `merge_parts` does so
with the parts that a killed run has left.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from sfmprep.capture.batches import MAX_LOAD_THREADS
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import EngineConfig, FeaturesConfig, MatcherConfig
from sfmprep.devices import num_cores
from sfmprep.errors import ConfigError, DeviceError
from sfmprep.executors.local import Job, Link, run_on_devices
from sfmprep.frontend.extract import extract_features
from sfmprep.frontend.match import (
    match_in_order,
    missing_pairs,
    num_cached,
    pairs_per_batch,
)
from sfmprep.frontend.match_order import order_for_cache
from sfmprep.models.build import build_extractor, build_matcher
from sfmprep.progress import Progress, silent
from sfmprep.stores.ragged import DamagedError
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Pair

logger = logging.getLogger(__name__)


def match_on_devices(
    pairs: Iterable[Pair],
    features_path: Path,
    config: MatcherConfig,
    store_path: Path,
    provenance: Mapping[str, Any],
    *,
    devices: Sequence[str],
    engine: EngineConfig,
    progress: Progress = silent,
) -> None:
    """Matches every pair that the store does not hold yet, on all devices.

    The store has in the end the content that `match_features` leaves, in another
    order. A process that fails does not stop the others, and what they and it have
    matched is kept. A script that calls this needs `if __name__ == "__main__":`.

    Args:
        pairs: What to match, name0 < name1.
        features_path: The store of features.
        config: The matcher.
        store_path: Where matches go.
        provenance: Of that store.
        devices: One process runs on each, such as `cuda:0`; one may come twice.
        engine: Precision, and the bytes that each process caches.
        progress: Wraps the loop over pairs.

    Raises:
        SfmprepError: what a process raised, with its device; DeviceError if it was
            killed, ConfigError if no device is named.
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
        _run(
            job,
            lambda capacity: order_for_cache(missing, capacity),
            len(missing),
            store,
            devices,
            progress,
        )


def extract_on_devices(
    images: ImageSet,
    config: FeaturesConfig,
    store_path: Path,
    provenance: Mapping[str, Any],
    *,
    devices: Sequence[str],
    engine: EngineConfig,
    progress: Progress = silent,
) -> dict[str, str]:
    """Extracts the features that the store does not hold yet, on all devices.

    See `match_on_devices`, also for what is raised.

    Returns:
        The images that could not be decoded, with the reason.
    """
    with FeatureStore(store_path, provenance) as store:
        merge_parts(store)
        missing = [name for name in images.names if name not in store]
        job = _Extraction(images, config, provenance, engine, len(devices))
        return _run(job, lambda _: missing, len(missing), store, devices, progress)


def merge_parts(store: FeatureStore | MatchStore) -> None:
    """Moves what a stopped run on several devices has left into the store.

    What can be read of a damaged part is merged, with a warning; then it is deleted.

    Raises:
        StoreError: a part was made in another way, or a process still writes it.
    """
    folder = _parts_of(store)
    if not folder.is_dir():
        return
    for part in sorted(folder.glob("*.h5")):
        try:
            store.merge(part)
        except DamagedError as error:
            logger.warning("what is lost of a part is made again: %s", error)
    for file in (*folder.glob("*.h5"), *folder.glob(".*.part")):
        file.unlink()
    with contextlib.suppress(OSError):  # a user's file stays, and so its folder
        folder.rmdir()


def _parts_of(store: FeatureStore | MatchStore) -> Path:
    if store.path is None:
        raise ConfigError("several devices fill a store on disk only. Give it a path.")
    return store.path.with_name(f"{store.path.name}.parts")


def _run(
    job: Job,
    order: Callable[[int], Sequence[Any]],
    total: int,
    store: FeatureStore | MatchStore,
    devices: Sequence[str],
    progress: Progress,
) -> dict[str, str]:
    """Has the work done and merged; returns what the processes noted."""
    if total == 0:
        return {}
    if not devices:
        raise ConfigError("no device is named; expected some, such as cuda:0, cuda:1")
    parts = _parts_of(store)
    parts.mkdir(exist_ok=True)
    what = "match" if isinstance(store, MatchStore) else "extract"
    outcome = run_on_devices(
        job, order, total, parts, devices, desc=what, progress=progress
    )
    merge_parts(store)
    if outcome.failed:
        kinds = {type(error) for _, error in outcome.failed}
        kind = kinds.pop() if len(kinds) == 1 else DeviceError
        reasons = "\n".join(f"{device}: {error}" for device, error in outcome.failed)
        raise kind(
            f"{reasons}\n{len(outcome.failed)} of {len(devices)} processes failed; what"
            f" is done is in {store.path}. Run the same command again: it goes on from"
            " there."
        )
    return outcome.notes


@dataclass(frozen=True)
class _Matching:
    chunks_a_device: ClassVar[int] = 16
    features_path: Path
    config: MatcherConfig
    provenance: Mapping[str, Any]
    engine: EngineConfig

    def run(self, device: str, part: Path, link: Link) -> None:
        matcher = build_matcher(
            self.config, device=device, precision=self.engine.precision
        )
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


@dataclass(frozen=True)
class _Extraction:
    chunks_a_device: ClassVar[int] = 4  # reading ahead starts anew with each
    images: ImageSet
    config: FeaturesConfig
    provenance: Mapping[str, Any]
    engine: EngineConfig
    num_devices: int

    def run(self, device: str, part: Path, link: Link) -> None:
        extractor = build_extractor(
            self.config, device=device, precision=self.engine.precision
        )
        threads = self.engine.num_workers or min(
            num_cores(), MAX_LOAD_THREADS * self.num_devices
        )
        with FeatureStore(part, self.provenance) as store:
            for names in link.chunks(0):
                infos = {name: self.images.infos[name] for name in names}
                unreadable = extract_features(
                    dataclasses.replace(self.images, names=tuple(names), infos=infos),
                    extractor,
                    store,
                    max_size=self.config.max_size,
                    num_workers=max(threads // self.num_devices, 1),
                    progress=link.progress,
                )
                link.note(unreadable)
