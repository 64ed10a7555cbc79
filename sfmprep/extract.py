"""The stage from photographs to features."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain

from sfmprep.images import ImageSet, load_batches
from sfmprep.models.protocols import Extractor
from sfmprep.progress import Progress, silent
from sfmprep.stores import FeatureStore
from sfmprep.types import Features


def extract_features(
    images: ImageSet,
    extractor: Extractor,
    store: FeatureStore,
    *,
    max_size: int,
    num_workers: int = 2,
    progress: Progress = silent,
) -> dict[str, str]:
    """Extracts the features of every image that the store does not hold yet.

    Args:
        images: The capture.
        extractor: A model.
        store: Where features go; it is on disk after every batch.
        max_size: Longer side in pixels that larger images are reduced to.
        num_workers: Threads that decode and resize.
        progress: Wraps the loop over images.

    Returns:
        The images that could not be decoded, with the reason.
    """
    missing = [name for name in images.names if name not in store]
    unreadable: dict[str, str] = {}
    batches = load_batches(
        images,
        missing,
        max_size=max_size,
        batch_size=extractor.batch_size,
        num_workers=num_workers,
        on_unreadable=unreadable.__setitem__,
    )

    def extracted() -> Iterator[list[tuple[str, Features]]]:
        for names, batch in batches:
            items = list(zip(names, extractor.extract(batch), strict=True))
            store.append(items)
            yield items

    for _ in progress(
        chain.from_iterable(extracted()), desc="extract", total=len(missing)
    ):
        pass
    return unreadable
