"""Pairs of images, each prepared once for as many pairs as a device has room for."""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Protocol

from sfmprep.capture.batches import fit_size, load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.errors import DeviceError, ImageError
from sfmprep.frontend.match_order import order_for_cache
from sfmprep.models.protocols import DenseImage
from sfmprep.types import ImageBatch, Pair

logger = logging.getLogger(__name__)

_FEWEST_KEPT = 2  # images


class Preparing(Protocol):
    """What `DenseMatcher` has in common with others that look at pairs of images."""

    def prepare(self, batch: ImageBatch) -> list[DenseImage]:
        """See `DenseMatcher`."""
        ...


Look = Callable[[Pair, Mapping[str, DenseImage]], None]


def visit_pairs(
    images: ImageSet,
    pairs: Sequence[Pair],
    network: Preparing,
    look: Look,
    unreadable: dict[str, str],
    *,
    max_size: int,
    cache_gb: float = 2.0,
    num_workers: int | None = None,
) -> Generator[Pair]:
    """Prepares the images of pairs, and has each pair looked at; yields it then.

    Pairs are ordered so that few images are prepared twice. The order tells which image
    is needed when, so threads decode the next ones while the network works. In memory
    are the prepared images, up to `cache_gb`, and `num_workers + 2` decoded ones.

    Args:
        images: The capture.
        pairs: Each once; may be empty.
        network: What prepares images.
        look: Gets a pair and the prepared images by name, and must keep none of them.
        unreadable: Gets the images that could not be decoded, with the reason; their
            pairs are not looked at.
        max_size: Longer side in pixels that larger images are reduced to.
        cache_gb: Prepared images that stay on the device, 1e9 bytes; at least two do.
            There are fewer where its memory ends.
        num_workers: Threads that decode and resize; None: one a core, at most 8.

    Raises:
        ConfigError: `max_size` or `num_workers` is below 1, or a pair names an image
            that is not among `images`.
        DeviceError: a single pair does not fit into the memory of the device.
    """
    num_bytes = _largest_bytes(images, pairs, network, max_size, unreadable)
    num_cached = max(int(cache_gb * 1e9 / max(num_bytes, 1)), _FEWEST_KEPT)
    prepared: dict[str, DenseImage] = {}

    def visited(pairs: Sequence[Pair], num_kept: int) -> Iterator[Pair]:
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
                        [prepared[name]] = network.prepare(following[1])
                        following = None
                    elif name not in unreadable:
                        raise ImageError(
                            f"{name} was neither decoded nor found to be unreadable."
                            " Run again; what is matched is kept."
                        )
                if step.pair[0] in prepared and step.pair[1] in prepared:
                    look(step.pair, prepared)
                yield step.pair

    left, kept = list(pairs), num_cached
    while left:
        done = set()
        try:
            for pair in visited(order_for_cache(left, kept), kept):
                done.add(pair)
                yield pair
            break
        except DeviceError:
            if kept == _FEWEST_KEPT:
                raise
        kept = max(min(kept, len(prepared)) // 2, _FEWEST_KEPT)
        logger.info("the device is full: %d images are kept on it now", kept)
        left = [pair for pair in left if pair not in done]
        prepared.clear()


@dataclass(frozen=True, kw_only=True)
class _Step:
    """A pair, and what changes in the cache before it is looked at."""

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
    network: Preparing,
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
            [prepared] = network.prepare(batch)
            return prepared.num_bytes
    return 0
