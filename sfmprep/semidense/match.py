"""The stage from pairs of images to semi-dense matches.

Each pair is matched in both directions: a match starts at a keypoint that the matcher
itself gives the first image, the same for every partner, and ends anywhere in the
second. What makes tracks of that is `join.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing

from sfmprep.capture.image_set import ImageSet
from sfmprep.models.protocols import DenseImage, DenseMatcher
from sfmprep.pairing.pairs import Pairs
from sfmprep.progress import Progress, silent
from sfmprep.semidense.visit import visit_pairs
from sfmprep.stores.tables import DenseStore
from sfmprep.stores.write_behind import WriteBehind
from sfmprep.types import Pair

_MAX_WAITING = 8  # pairs; what a killed run may lose


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

    The order is that of `visit_pairs`. What the store holds in the end does not depend
    on `cache_gb`, but its order does. A run that is stopped keeps what it has matched;
    one that is killed, all but the last few pairs.

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
    missing = [pair for pair in pairs if pair not in store or pair[::-1] not in store]

    def match(pair: Pair, prepared: Mapping[str, DenseImage]) -> None:
        directed = [each for each in (pair, pair[::-1]) if each not in store]
        found = matcher.match([(prepared[a], prepared[b]) for a, b in directed])
        out.put(list(zip(directed, found, strict=True)))

    unreadable: dict[str, str] = {}
    visits = visit_pairs(
        *(images, missing, matcher, match, unreadable),
        max_size=max_size,
        cache_gb=cache_gb,
        num_workers=num_workers,
    )
    with (
        WriteBehind(store.append, max_waiting=_MAX_WAITING) as out,
        closing(visits),
    ):
        for _ in progress(visits, desc="match semi-dense", total=len(missing)):
            pass
    return unreadable
