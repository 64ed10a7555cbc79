"""In which order pairs are matched, so that few images are read more than once."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import reverse_cuthill_mckee

from sfmprep.types import Index, Pair


def order_for_cache(pairs: Sequence[Pair], num_cached: int) -> list[Pair]:
    """Orders pairs so that a cache of `num_cached` images misses little.

    A block of images stays in the cache while those that follow it pass by, each once,
    beside all of the block that it is paired with. Blocks are cut from the images in
    the order of their names, which is best for a film, and in the order of a reverse
    Cuthill-McKee (1969) of the pairs' graph, which finds the way through photographs
    whose names say nothing. Pairs whose images have few neighbours in common, which
    retrieval returns by mistake, are left out of that graph: 5 % of them would double
    the misses. Of these orders, and the given one, the one with the fewest misses of a
    cache that drops what was used least recently is returned.

    Misses, and those of sorted pairs: 1,209 and 19,909 for all pairs of 200 images
    with 20 of them cached (a bound is 1,048: 199 * 200 / 2 pairs, at most 19 a miss);
    10,201 and 180,773 for 10,000 shuffled images of a loop walked 3 times, each paired
    with 20 near ones, 200 cached; 31,476 and 182,612 where 5 % of those pairs are
    random. 200,000 pairs take about 2 s.

    Args:
        pairs: Unordered pairs, each once; may be empty.
        num_cached: Images that fit into the cache; below 3 the order stays.

    Returns:
        The same pairs; in the given order if all their images fit into the cache. The
        same arguments give the same order.
    """
    names = sorted({name for pair in pairs for name in pair})
    if len(names) <= num_cached or num_cached < 3:
        return list(pairs)
    number = {name: k for k, name in enumerate(names)}
    ends = np.array([(number[a], number[b]) for a, b in pairs], np.int64)
    orders = [
        _in_blocks(np.sort(rank[ends], axis=1), size)
        for rank in (np.arange(len(names)), _rank_along_graph(ends, len(names)))
        for size in _block_sizes(num_cached)
    ]
    orders.append(np.arange(len(pairs)))
    best = min(orders, key=lambda order: count_misses(ends[order].tolist(), num_cached))
    return [pairs[k] for k in best]


def count_misses(pairs: Iterable[Sequence[object]], num_cached: int) -> int:
    """Images that a cache, which drops the least recently used one, has to load."""
    cache: OrderedDict[object, None] = OrderedDict()
    misses = 0
    for pair in pairs:
        for image in pair:
            if image in cache:
                cache.move_to_end(image)
                continue
            misses += 1
            cache[image] = None
            if len(cache) > num_cached:
                cache.popitem(last=False)
    return misses


def _block_sizes(num_cached: int) -> set[int]:
    """A large block suits dense graphs; a small one leaves room for a band to move."""
    # beside the block, the image that passes by and the one before it are in the cache
    return {num_cached - 2, max(num_cached // 2, 1), max(num_cached // 4, 1)}


def _rank_along_graph(ends: Index, num_images: int) -> Index:
    """The place of each image in an order in which paired images are near."""
    half = csr_matrix(
        (np.ones(len(ends), np.int32), (ends[:, 0], ends[:, 1])),
        shape=(num_images, num_images),
    )
    graph = (half + half.T).tocsr()
    common = (graph @ graph).multiply(graph).tocsr()
    shared = np.asarray(common[ends[:, 0], ends[:, 1]]).ravel()
    kept = ends[2 * shared >= np.median(shared)]
    strong = csr_matrix(
        (np.ones(len(kept), np.int32), (kept[:, 0], kept[:, 1])), shape=graph.shape
    )
    order = reverse_cuthill_mckee((strong + strong.T).tocsr(), symmetric_mode=True)
    rank = np.empty(num_images, np.int64)
    rank[order] = np.arange(num_images)
    return rank


def _in_blocks(ranks: Index, block_size: int) -> Index:
    """The order of pairs [P, 2] of ranks, low and high, that are visited in blocks.

    In each block of low ranks, the high ones pass by in order; for each of them the
    low ones are visited there, for the next one back.
    """
    low, high = ranks.T
    block = low // block_size
    order = np.lexsort((high, block))
    changes = np.diff(high[order], prepend=-1) | np.diff(block[order], prepend=-1)
    step = np.empty(len(order), np.int64)
    step[order] = np.cumsum(changes != 0)
    return np.lexsort((np.where(step % 2, low, -low), step))
