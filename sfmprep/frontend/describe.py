"""The stage from photographs to one row each, for retrieval."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import chain

from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.models.protocols import Retriever
from sfmprep.progress import Progress, silent
from sfmprep.stores.tables import RowStore
from sfmprep.stores.write_behind import WriteBehind


def describe_images(
    images: ImageSet,
    names: Sequence[str],
    retriever: Retriever,
    store: RowStore,
    *,
    max_size: int,
    num_workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, str]:
    """Describes every image that the store does not hold yet.

    Images are decoded in threads, and rows are written in one of its own, while the
    network works. Masks are not looked at.

    Args:
        images: The capture.
        names: Which of its images.
        retriever: A model.
        store: Where rows go. An error on the way loses no finished batch.
        max_size: Longer side in pixels that larger images are reduced to.
        num_workers: Threads that decode and resize; None: one a core, at most 8.
        progress: Wraps the loop over images.

    Returns:
        The images that could not be decoded, with the reason.

    Raises:
        ConfigError: `max_size` or `num_workers` is below 1.
        DeviceError: an image is too large for the memory of the device.
        StoreError: see `RowStore.append`.
    """
    missing = [name for name in names if name not in store]
    unreadable: dict[str, str] = {}
    batches = load_batches(
        images,
        missing,
        max_size=max_size,
        batch_size=retriever.batch_size,
        num_workers=num_workers,
        on_unreadable=unreadable.__setitem__,
    )
    with closing(batches), WriteBehind(store.append) as writer:

        def described() -> Iterator[tuple[str, ...]]:
            for batch_names, batch in batches:
                rows = retriever.embed(batch)
                writer.put(list(zip(batch_names, rows, strict=True)))
                yield batch_names

        for _ in progress(
            chain.from_iterable(described()), desc="describe", total=len(missing)
        ):
            pass
    return unreadable
