"""The stage from pairs of images to semi-dense matches.

Each pair is matched in both directions: a match starts at a keypoint that the matcher
itself gives the first image, the same for every partner, and ends anywhere in the
second. What makes tracks of that is `join.py`.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass

from sfmprep.capture.batches import fit_size, load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.errors import DeviceError, ImageError
from sfmprep.frontend.match_order import order_for_cache
from sfmprep.models.protocols import DenseImage, DenseMatcher
from sfmprep.pairing.pairs import Pairs
from sfmprep.progress import Progress, silent
from sfmprep.stores.tables import DenseStore
from sfmprep.stores.write_behind import WriteBehind
from sfmprep.types import Pair

logger = logging.getLogger(__name__)

_MAX_WAITING = 8  # pairs; what a killed run may lose
_FEWEST_KEPT = 2  # images


def match_dense(
    images: ImageSet,
    pairs: Pairs,
    matcher: DenseMatcher,
    store: DenseStore,
    *,
    max_size: int,
    cache_gb: float = 2.0,
    num_workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, str]:
    """Matches both directions of every pair that the store does not hold yet.

    Pairs are ordered so that few images are prepared twice. The order tells which image
    is needed when, so threads decode the next ones while the matcher works. In memory
    are the prepared images, up to `cache_gb`, and `num_workers + 2` decoded ones. What
    the store holds in the end does not depend on `cache_gb`, but its order does. A run
    that is stopped keeps what it has matched; one that is killed, all but the last few
    pairs.

    Args:
        images: The capture.
        pairs: What to match.
        matcher: A model.
        store: Where matches go, two entries a pair.
        max_size: Longer side in pixels that larger images are reduced to.
        cache_gb: Prepared images that stay on the device, 1e9 bytes; at least two do.
            There are fewer where its memory ends.
        num_workers: Threads that decode and resize; None: one a core, at most 8.
        progress: Wraps the loop over pairs.

    Returns:
        The images that could not be decoded, with the reason; their pairs are left out.

    Raises:
        ConfigError: `max_size` or `num_workers` is below 1, or a pair names an image
            that is not among `images`.
        DeviceError: a single pair does not fit into the memory of the device.
        StoreError: see `DenseStore.append`.
    """
    unreadable: dict[str, str] = {}
    missing = [pair for pair in pairs if pair not in store or pair[::-1] not in store]
    num_bytes = _largest_bytes(images, missing, matcher, max_size, unreadable)
    num_cached = max(int(cache_gb * 1e9 / max(num_bytes, 1)), _FEWEST_KEPT)
    prepared: dict[str, DenseImage] = {}

    def matched(pairs: Sequence[Pair], num_kept: int) -> Iterator[Pair]:
        steps = _plan(pairs, num_kept)
        batches = load_batches(
            images,
            [name for step in steps for name in step.load],
            max_size=max_size,
            num_workers=num_workers,
            on_unreadable=unreadable.__setitem__,
        )
        with closing(batches):
            following = None
            for step in steps:
                for name in step.drop:
                    prepared.pop(name, None)
                for name in step.load:
                    following = following or next(batches, None)
                    if following is not None and following[0] == (name,):
                        [prepared[name]] = matcher.prepare(following[1])
                        following = None
                    elif name not in unreadable:
                        raise ImageError(
                            f"{name} was neither decoded nor found to be unreadable."
                            " Run again; what is matched is kept."
                        )
                if step.pair[0] in prepared and step.pair[1] in prepared:
                    both = step.pair, step.pair[::-1]
                    directed = [pair for pair in both if pair not in store]
                    # under no name, which would keep what the next step drops
                    found = matcher.match(
                        [(prepared[a], prepared[b]) for a, b in directed]
                    )
                    out.put(list(zip(directed, found, strict=True)))
                yield step.pair

    def all_matched() -> Generator[Pair]:
        left, kept = missing, num_cached
        while left:
            done = set()
            try:
                for pair in matched(order_for_cache(left, kept), kept):
                    done.add(pair)
                    yield pair
                return
            except DeviceError:
                if kept == _FEWEST_KEPT:
                    raise
            kept = max(min(kept, len(prepared)) // 2, _FEWEST_KEPT)
            logger.info("the device is full: %d images are kept on it now", kept)
            left = [pair for pair in left if pair not in done]
            prepared.clear()

    with (
        WriteBehind(store.append, max_waiting=_MAX_WAITING) as out,
        closing(all_matched()) as pairs_done,
    ):
        for _ in progress(pairs_done, desc="match semi-dense", total=len(missing)):
            pass
    return unreadable


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A pair, and what changes in the cache before it is matched."""

    pair: Pair
    load: tuple[str, ...]
    drop: tuple[str, ...]


def _plan(pairs: Sequence[Pair], num_cached: int) -> list[_Step]:
    """What a cache of so many images, dropping the least recently used, does when."""
    cache: OrderedDict[str, None] = OrderedDict()
    steps = []
    for pair in pairs:
        load = tuple(name for name in pair if name not in cache)
        for name in pair:
            cache[name] = None
            cache.move_to_end(name)
        drop = [cache.popitem(last=False)[0] for _ in range(len(cache) - num_cached)]
        steps.append(_Step(pair=pair, load=load, drop=tuple(drop)))
    return steps


def _largest_bytes(
    images: ImageSet,
    pairs: Iterable[Pair],
    matcher: DenseMatcher,
    max_size: int,
    unreadable: dict[str, str],
) -> int:
    """The bytes of the largest image that can be decoded, prepared; 0 for none."""

    def area(name: str) -> int:
        width, height = fit_size(images.infos[name].size, max_size)
        return width * height

    names = sorted({name for pair in pairs for name in pair if name in images.infos})
    batches = load_batches(
        images,
        sorted(names, key=area, reverse=True),
        max_size=max_size,
        num_workers=1,
        on_unreadable=unreadable.__setitem__,
    )
    with closing(batches):
        for _, batch in batches:
            [prepared] = matcher.prepare(batch)
            return prepared.num_bytes
    return 0
