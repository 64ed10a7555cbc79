"""The stage from pairs of features to matches."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from sfmprep.models.protocols import Matcher
from sfmprep.pairs import Pair, Pairs
from sfmprep.progress import Progress, batched, silent
from sfmprep.stores import FeatureStore, MatchStore
from sfmprep.types import Features


def match_features(
    pairs: Pairs,
    features: FeatureStore,
    matcher: Matcher,
    store: MatchStore,
    *,
    batch_size: int = 16,
    cache_bytes: int = 1 << 30,
    progress: Progress = silent,
) -> None:
    """Matches every pair that the store does not hold yet.

    Pairs are sorted, so neighbours share an image and a bounded cache serves most
    reads. A pair with an image that has no features is left out.

    Args:
        pairs: What to match.
        features: The features of the images.
        matcher: A model.
        store: Where matches go; it is on disk after every batch.
        batch_size: Pairs that the model sees at once.
        cache_bytes: The most bytes of features held in memory.
        progress: Wraps the loop over pairs.
    """
    cache = _FeatureCache(features, cache_bytes)
    missing = [
        pair
        for pair in pairs
        if pair not in store and pair[0] in features and pair[1] in features
    ]

    def matched() -> Iterator[Pair]:
        for batch in batched(missing, batch_size):
            loaded = [(cache.get(name0), cache.get(name1)) for name0, name1 in batch]
            store.append(list(zip(batch, matcher.match(loaded), strict=True)))
            yield from batch

    for _ in progress(matched(), desc="match", total=len(missing)):
        pass


class _FeatureCache:
    """The features used last, up to a number of bytes."""

    def __init__(self, features: FeatureStore, max_bytes: int) -> None:
        self._features = features
        self._free = max_bytes
        self._items: OrderedDict[str, Features] = OrderedDict()

    def get(self, name: str) -> Features:
        if name in self._items:
            self._items.move_to_end(name)
            return self._items[name]
        found = self._items[name] = self._features.get(name)
        self._free -= _num_bytes(found)
        while self._free < 0 and len(self._items) > 1:
            self._free += _num_bytes(self._items.popitem(last=False)[1])
        return found


def _num_bytes(features: Features) -> int:
    columns = (features.xy, features.scores, features.descriptors)
    shape = (features.scale, features.angle)
    return sum(column.nbytes for column in (*columns, *shape) if column is not None)
