"""The stage from pairs of features to matches."""

from __future__ import annotations

import itertools
import logging
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Executor, Future
from contextlib import closing, suppress

from sfmprep.devices import num_cores
from sfmprep.errors import DeviceError
from sfmprep.frontend.match_order import order_for_cache
from sfmprep.models.protocols import Matcher, Prepared
from sfmprep.progress import Progress, batched, silent
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.stores.write_behind import WriteBehind
from sfmprep.threads import thread_pool
from sfmprep.types import Features, Matches, Pair

logger = logging.getLogger(__name__)

_MAX_WAITING = 8  # batches; a fast matcher has them joined into one append


def match_features(
    pairs: Iterable[Pair],
    features: FeatureStore,
    matcher: Matcher,
    store: MatchStore,
    *,
    batch_size: int = 16,
    cache_bytes: int = 1 << 30,
    progress: Progress = silent,
) -> None:
    """Matches every pair that the store does not hold yet.

    A pair with an image that has no features is left out. What the store holds in the
    end does not depend on `cache_bytes`, but its order does. A run that is stopped
    keeps what it has matched; one that is killed, all but the last few batches.

    Beside the matcher, a pair costs 0.05 ms on two cores (1,000 images of 2048
    keypoints, 128 float16 each, 20,000 pairs with 400 matches in batches of 16: 0.02 ms
    of reading and 0.03 ms of writing in their threads, 0.01 ms of ordering), of which
    a slow matcher hides all but the handing over. In memory it takes 450 bytes.

    Args:
        pairs: What to match, name0 < name1.
        features: The features of the images.
        matcher: A model.
        store: Where matches go.
        batch_size: Pairs that the model sees at once.
        cache_bytes: The most bytes of prepared features that are kept on the device,
            beside those of the batch at work; fewer where its memory ends.
        progress: Wraps the loop over pairs.

    Raises:
        DeviceError: a single pair does not fit into the memory of the device.
        StoreError: see `FeatureStore.get` and `MatchStore.append`.
    """
    missing = missing_pairs(pairs, features, store)
    if not missing:
        return
    ordered = order_for_cache(missing, num_cached(features, matcher, cache_bytes))
    with closing(
        match_in_order(
            ordered,
            features,
            matcher,
            store,
            batch_size=batch_size,
            cache_bytes=cache_bytes,
        )
    ) as matched:
        for _ in progress(matched, desc="match", total=len(missing)):
            pass


def pairs_per_batch(device: str) -> int:
    """How many pairs a matcher sees best at once on a device."""
    # on a CPU more gain nothing, and a run that is stopped loses them
    return min(max(4, 2 * num_cores()), 16) if device == "cpu" else 32


def missing_pairs(
    pairs: Iterable[Pair], features: FeatureStore, store: MatchStore
) -> list[Pair]:
    """The pairs that the store does not hold, but whose images have features."""
    return [
        pair
        for pair in pairs
        if pair not in store and pair[0] in features and pair[1] in features
    ]


def num_cached(features: FeatureStore, matcher: Matcher, cache_bytes: int) -> int:
    """How many images fit into `cache_bytes`; a tenth is left for uneven sizes."""
    counts = {name: features.num_keypoints(name) for name in features.names()}
    largest = max(counts, key=lambda name: counts[name])
    share = counts[largest] / max(sum(counts.values()), 1)  # of all keypoints
    total_bytes = matcher.prepare(features.get(largest)).num_bytes / max(share, 1e-9)
    return int(0.9 * cache_bytes * len(counts) / max(total_bytes, 1))


def match_in_order(
    pairs: Iterable[Pair],
    features: FeatureStore,
    matcher: Matcher,
    store: MatchStore,
    *,
    batch_size: int,
    cache_bytes: int,
) -> Generator[Pair]:
    """Matches pairs in the order in which they come, yielding each when it is matched.

    A thread reads the features of the next batch, another one writes the matches of
    the last ones. Closing the generator waits for what is to be written.

    Raises:
        StoreError: see `FeatureStore.get` and `MatchStore.append`.
    """
    with (
        thread_pool(1, "sfmprep-read") as reader,
        WriteBehind(store.append, max_waiting=_MAX_WAITING) as writer,
    ):
        cache = _PreparedCache(features, matcher, reader, cache_bytes)
        for batch in _expected(batched(pairs, batch_size), cache):
            found = _matched(batch, cache, matcher)
            writer.put(list(zip(batch, found, strict=True)))
            yield from batch


def _matched(
    batch: list[Pair], cache: _PreparedCache, matcher: Matcher
) -> list[Matches]:
    """Matches pairs; where the device is full, one by one and with nothing kept."""

    def match(pairs: list[Pair]) -> list[Matches]:
        return matcher.match([(cache.get(a), cache.get(b)) for a, b in pairs])

    with suppress(DeviceError):
        return match(batch)
    held = cache.drop()
    found = []
    for pair in batch:
        found += match([pair])
        cache.drop()
    cache.max_bytes = held // 2
    logger.info("the device is full: half as many images are kept on it from now on")
    return found


def _expected(
    batches: Iterator[list[Pair]], cache: _PreparedCache
) -> Iterator[list[Pair]]:
    """Yields each batch after the cache was told of the one behind it."""
    current: list[Pair] = []
    for following in batches:
        cache.expect(following)
        if current:
            yield current
        current = following
    if current:
        yield current


class _PreparedCache:
    """The images used last, prepared, up to a number of bytes; used in one thread."""

    def __init__(
        self,
        features: FeatureStore,
        matcher: Matcher,
        reader: Executor,
        max_bytes: int,
    ) -> None:
        self._features = features
        self._matcher = matcher
        self._reader = reader
        self.max_bytes = max_bytes
        self._held = 0
        self._items: OrderedDict[str, Prepared] = OrderedDict()
        self._coming: dict[str, Future[Features]] = {}

    def expect(self, pairs: list[Pair]) -> None:
        """Has the images of these pairs read, and keeps those that are here."""
        for name in itertools.chain.from_iterable(pairs):
            if name in self._items:
                self._items.move_to_end(name)
            elif name not in self._coming:
                self._coming[name] = self._reader.submit(self._features.get, name)

    def get(self, name: str) -> Prepared:
        if (found := self._items.get(name)) is not None:
            return found
        coming = self._coming.pop(name, None)  # None: dropped after it was expected
        read = coming.result() if coming else self._features.get(name)
        prepared = self._items[name] = self._matcher.prepare(read)
        self._held += prepared.num_bytes
        while self._held > self.max_bytes and len(self._items) > 1:
            self._held -= self._items.popitem(last=False)[1].num_bytes
        return prepared

    def drop(self) -> int:
        """Drops all that is here; returns how many bytes that was."""
        held, self._held = self._held, 0
        self._items.clear()
        return held
