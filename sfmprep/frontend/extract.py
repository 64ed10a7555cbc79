"""The stage from photographs to features."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import closing
from itertools import chain

from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import drop_masked, read_mask
from sfmprep.errors import ImageError
from sfmprep.models.protocols import Extractor
from sfmprep.progress import Progress, silent
from sfmprep.stores.tables import FeatureStore
from sfmprep.stores.write_behind import WriteBehind
from sfmprep.threads import thread_pool
from sfmprep.types import Features, Mask

_MASK_THREADS = 2


def extract_features(
    images: ImageSet,
    extractor: Extractor,
    store: FeatureStore,
    *,
    max_size: int,
    num_workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, str]:
    """Extracts the features of every image that the store does not hold yet.

    Images are decoded and masks are read in threads, and features are written in one
    of its own, while the extractor works. Keypoints on masked pixels are dropped. The
    order of the store is that of `load_batches`, the same in each run.

    Args:
        images: The capture.
        extractor: A model.
        store: Where features go. An error on the way loses no finished batch.
        max_size: Longer side in pixels that larger images are reduced to.
        num_workers: Threads that decode and resize; None: one a core, at most 8.
        progress: Wraps the loop over images.

    Returns:
        The images that could not be decoded, or whose mask could not be used, with the
        reason.

    Raises:
        ConfigError: `max_size` or `num_workers` is below 1.
        DeviceError: an image is too large for the memory of the extractor's device.
        StoreError: see `FeatureStore.append`.
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
    with (
        closing(batches),
        WriteBehind(store.append) as writer,
        thread_pool(_MASK_THREADS, "sfmprep-mask") as readers,
    ):

        def extracted() -> Iterator[tuple[str, ...]]:
            for names, batch in batches:
                masks = [readers.submit(read_mask, images, name) for name in names]
                found = extractor.extract(batch)
                writer.put(list(_usable(names, found, masks, unreadable)))
                yield names

        for _ in progress(
            chain.from_iterable(extracted()), desc="extract", total=len(missing)
        ):
            pass
    return unreadable


def _usable(
    names: tuple[str, ...],
    found: list[Features],
    masks: list[Future[Mask | None]],
    unreadable: dict[str, str],
) -> Iterator[tuple[str, Features]]:
    """Yields what the masks leave, and notes the images whose mask cannot be used."""
    for name, features, task in zip(names, found, masks, strict=True):
        try:
            mask = task.result()
        except ImageError as error:
            unreadable[name] = str(error)
        else:
            yield name, features if mask is None else drop_masked(features, mask)
