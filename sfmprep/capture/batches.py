"""Photographs in batches, decoded ahead in threads."""

from __future__ import annotations

import logging
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import islice
from pathlib import Path

import numpy as np

from sfmprep import coords
from sfmprep.capture.image_file import ImageInfo, decode
from sfmprep.capture.image_set import ImageSet
from sfmprep.errors import ConfigError, ImageError
from sfmprep.types import Float32, ImageBatch

logger = logging.getLogger(__name__)

MAX_LOAD_THREADS = 8  # a process


def fit_size(size: tuple[int, int], max_size: int | None) -> tuple[int, int]:
    """(W, H) reduced until the longer side is `max_size`; never enlarged."""
    longer = max(size)
    if max_size is None or longer <= max_size:
        return size
    width, height = (max(1, round(side * max_size / longer)) for side in size)
    return width, height


def load_batches(
    images: ImageSet,
    names: Sequence[str],
    *,
    max_size: int | None,
    batch_size: int = 1,
    num_workers: int | None = None,
    on_unreadable: Callable[[str, str], object] | None = None,
) -> Generator[tuple[tuple[str, ...], ImageBatch]]:
    """Decodes, reduces and turns images upright in threads, a few images ahead.

    Images whose upright, reduced sizes agree share a batch. One that waits for others
    of its size, portrait among landscape, does so until `2 batch_size` images wait;
    then the batch of the one that waits longest goes as it is. The batches are always
    the same for the same names. Beside those that wait, `batch_size + num_workers`
    images are read ahead; no more than `num_workers` are in full size in memory.
    Closing the generator stops the threads.

    Args:
        images: The capture.
        names: Which of them; they come out in this order where their sizes agree or
            `batch_size` is 1. May be empty.
        max_size: Longer side in pixels that larger images are reduced to, or None.
        batch_size: The most images of one batch.
        num_workers: Threads, or None for one a core, at most 8.
        on_unreadable: Called with the name and the reason of each image that cannot be
            decoded, which is then left out. By default this is a warning in the log.

    Returns:
        The names of each batch, and the batch.

    Raises:
        ConfigError: a number below 1, or a name that is not among the images.
    """
    numbers = {
        "max_size": max_size,
        "batch_size": batch_size,
        "num_workers": num_workers,
    }
    for option, value in numbers.items():
        if value is not None and value < 1:
            raise ConfigError(f"{option}={value} but expected 1 or more")
    for name in names:
        if name not in images.infos:
            raise ConfigError(
                f"{name!r} is not among the {len(images)} images in {images.root}."
                " Give its path relative to that folder."
            )
    loaded = _load_ahead(
        images,
        names,
        max_size=max_size,
        batch_size=batch_size,
        num_workers=num_workers or min(os.cpu_count() or 1, MAX_LOAD_THREADS),
        on_unreadable=on_unreadable or _warner(images),
    )
    return _batches(images, loaded, batch_size)


def _warner(images: ImageSet) -> Callable[[str, str], None]:
    def warn(name: str, reason: str) -> None:
        logger.warning("%s is left out: %s", images.path(name), reason)

    return warn


def _batches(
    images: ImageSet,
    loaded: Generator[tuple[str, Float32]],
    batch_size: int,
) -> Generator[tuple[tuple[str, ...], ImageBatch]]:
    with closing(loaded):
        for items in _group_by_size(loaded, batch_size):
            names, pixels = zip(*items, strict=True)
            infos = [images.infos[name] for name in names]
            yield (
                names,
                ImageBatch(
                    pixels=np.stack(pixels),
                    sizes=np.array([i.size for i in infos], np.int32),
                    orientations=np.array([i.orientation for i in infos], np.int32),
                ),
            )


def _group_by_size(
    loaded: Iterable[tuple[str, Float32]], batch_size: int
) -> Iterator[list[tuple[str, Float32]]]:
    """Yields lists of up to `batch_size` images of one size."""
    # In the order of their oldest images, as dictionaries keep that of insertion.
    waiting: dict[tuple[int, ...], list[tuple[str, Float32]]] = {}
    for name, pixels in loaded:
        group = waiting.setdefault(pixels.shape, [])
        group.append((name, pixels))
        if len(group) == batch_size:
            yield waiting.pop(pixels.shape)
        elif sum(map(len, waiting.values())) == 2 * batch_size:
            yield waiting.pop(next(iter(waiting)))
    yield from waiting.values()


def _load_ahead(
    images: ImageSet,
    names: Sequence[str],
    *,
    max_size: int | None,
    batch_size: int,
    num_workers: int,
    on_unreadable: Callable[[str, str], object],
) -> Generator[tuple[str, Float32]]:
    """Yields the images in order while threads work on those that follow."""
    pool = ThreadPoolExecutor(num_workers, "sfmprep-load")
    tasks = (
        (name, pool.submit(_load, images.path(name), images.infos[name], max_size))
        for name in names
    )
    try:
        ahead = deque(islice(tasks, batch_size + num_workers))
        while ahead:
            name, task = ahead.popleft()
            try:
                pixels = task.result()
            except ImageError as error:
                on_unreadable(name, str(error))
            else:
                yield name, pixels
            ahead.extend(islice(tasks, 1))
    finally:
        pool.shutdown(cancel_futures=True)


def _load(path: Path, info: ImageInfo, max_size: int | None) -> Float32:
    """One image as a network sees it, [3, H, W] in 0..1."""
    import cv2  # here, so that a folder can be scanned without it

    pixels = decode(path)
    if pixels.shape[1::-1] != info.size:
        raise ImageError(
            f"it is {pixels.shape[1]} x {pixels.shape[0]} pixels now but was"
            f" {info.size[0]} x {info.size[1]} before; start again"
        )
    size = fit_size(info.size, max_size)
    if size != info.size:
        reduced = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
        pixels = np.asarray(reduced, np.uint8)
    upright = coords.upright_pixels(pixels, info.orientation)
    planes = np.empty((3, *upright.shape[:2]), np.float32)
    return np.divide(upright.transpose(2, 0, 1), 255, out=planes, dtype=np.float32)
