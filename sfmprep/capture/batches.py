"""Photographs in batches, decoded ahead in threads."""

from __future__ import annotations

import logging
import math
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import closing

import numpy as np

from sfmprep import coords
from sfmprep.capture.image_file import decode
from sfmprep.capture.image_set import ImageSet
from sfmprep.devices import num_cores
from sfmprep.errors import ConfigError, ImageError
from sfmprep.threads import thread_pool
from sfmprep.types import Float32, ImageBatch

logger = logging.getLogger(__name__)

MAX_LOAD_THREADS = 8  # a process
_BATCH_BYTES = 3 << 28  # one batch, and all that wait for others of their size
_AHEAD_BYTES = 1 << 29
_BYTES_A_PIXEL = 3 * 4  # float32

# [3, H, W] in 0..1, and levels and damage as in `Decoded`
_Loaded = tuple[Float32, tuple[float, float] | None, str | None]


def fit_size(size: tuple[int, int], max_size: int | None) -> tuple[int, int]:
    """(W, H) reduced until the longer side is `max_size`; never enlarged."""
    longer = max(size)
    if max_size is None or longer <= max_size:
        return size
    width, height = (max(1, round(side * max_size / longer)) for side in size)
    return width, height


def reduction_scales(images: ImageSet, max_size: int | None) -> dict[str, float]:
    """How many pixels of its file a pixel of the reduced image is, by name; 1 or more.

    Args:
        images: The capture.
        max_size: As for `fit_size`.
    """
    sizes = {name: images.infos[name].size for name in images.names}
    return {
        name: max(size) / max(fit_size(size, max_size)) for name, size in sizes.items()
    }


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
    of its size, portrait among landscape, does so until `2 batch_size` images or 768
    MiB wait; then the batch of the one that waits longest goes as it is. The batches
    are always the same for the same names. Beside those that wait, up to `batch_size +
    num_workers` images and 512 MiB are read ahead, but always one. Closing the
    generator stops the threads. At its end the log names pictures of few
    levels, and damaged ones that are kept.

    Args:
        images: The capture.
        names: Which of them; they come out in this order where their sizes agree or
            `batch_size` is 1. May be empty.
        max_size: Longer side in pixels that larger images are reduced to, or None.
        batch_size: The most images of one batch; fewer if they exceed 768 MiB.
        num_workers: Threads, or None for one a core, at most 8.
        on_unreadable: Called with the name and the reason of each image that cannot be
            decoded, which is then left out. By default this is a warning in the log.

    Returns:
        The names of each batch, and the batch.

    Raises:
        ConfigError: a number below 1, or a name that is not among the images.
        ImageError: an image is gone since the scan.
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
        num_workers=num_workers or min(num_cores(), MAX_LOAD_THREADS),
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
        for group in _group_by_size(loaded, batch_size):
            infos = [images.infos[name] for name in group.names]
            yield (
                tuple(group.names),
                ImageBatch(
                    pixels=group.pixels[: len(infos)],
                    sizes=np.array([i.size for i in infos], np.int32),
                    orientations=np.array([i.orientation for i in infos], np.int32),
                ),
            )


class _Group:
    """Images of one size, in an array that is made for all that it may hold.

    What is not filled costs no memory, and nothing is copied when it is full.
    """

    def __init__(self, first: Float32, batch_size: int) -> None:
        num_images = max(1, min(batch_size, _BATCH_BYTES // first.nbytes))
        self.names: list[str] = []
        self.pixels = np.empty((num_images, *first.shape), np.float32)

    def add(self, name: str, pixels: Float32) -> None:
        self.pixels[len(self.names)] = pixels
        self.names.append(name)

    @property
    def num_bytes(self) -> int:
        return len(self.names) * int(self.pixels[0].nbytes)

    @property
    def is_full(self) -> bool:
        return len(self.names) == len(self.pixels)


def _group_by_size(
    loaded: Iterable[tuple[str, Float32]], batch_size: int
) -> Iterator[_Group]:
    """Yields groups of up to `batch_size` images of one size."""
    # In the order of their oldest images, as dictionaries keep that of insertion.
    waiting: dict[tuple[int, ...], _Group] = {}
    for name, pixels in loaded:
        if pixels.shape not in waiting:
            waiting[pixels.shape] = _Group(pixels, batch_size)
        group = waiting[pixels.shape]
        group.add(name, pixels)
        if group.is_full:
            yield waiting.pop(pixels.shape)
        elif (
            sum(len(group.names) for group in waiting.values()) == 2 * batch_size
            or sum(group.num_bytes for group in waiting.values()) >= _BATCH_BYTES
        ):
            yield waiting.pop(next(iter(waiting)))
    while waiting:
        yield waiting.pop(next(iter(waiting)))


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
    left = deque(names)
    ahead: deque[tuple[str, Future[_Loaded]]] = deque()
    stretched: dict[str, tuple[float, float]] = {}
    damaged: dict[str, str] = {}

    def num_bytes(name: str, is_loaded: bool) -> int:
        info = images.infos[name]
        loaded = _BYTES_A_PIXEL * math.prod(fit_size(info.size, max_size))
        return loaded if is_loaded else loaded + 3 * math.prod(info.size)

    def has_room() -> bool:
        held = sum(num_bytes(name, task.done()) for name, task in ahead)
        return not ahead or (
            len(ahead) < batch_size + num_workers
            and held + num_bytes(left[0], False) <= _AHEAD_BYTES
        )

    with thread_pool(num_workers, "sfmprep-load") as pool:
        while left or ahead:
            while left and has_room():
                name = left.popleft()
                ahead.append((name, pool.submit(_load, images, name, max_size)))
            name, task = ahead.popleft()
            try:
                pixels, levels, damage = task.result()
            except ImageError as error:
                images.expect_there(name)  # what comes back is not to be left out
                on_unreadable(name, str(error))
            else:
                del task  # it holds the pixels too
                if levels is not None:
                    stretched[name] = levels
                if damage is not None:
                    damaged[name] = damage
                yield name, pixels
    if stretched:
        name, (low, high) = next(iter(stretched.items()))
        logger.warning(
            "%d of %d images in %s use few of the levels that they could, such as %s"
            " from %g to %g; each is stretched to the range that it uses",
            len(stretched),
            len(names),
            images.root,
            name,
            low,
            high,
        )
    if damaged:
        name, damage = next(iter(damaged.items()))
        logger.warning(
            "%d of %d images in %s are damaged and kept all the same (keep_damaged),"
            " such as %s: %s",
            *(len(damaged), len(names), images.root, name, damage),
        )


def _load(images: ImageSet, name: str, max_size: int | None) -> _Loaded:
    """One image as a network sees it, and what was noticed in decoding it."""
    import cv2  # here, so that a folder can be scanned without it

    info = images.infos[name]
    pixels, levels, damage = decode(images.path(name), keep_damaged=images.keep_damaged)
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
    np.divide(upright.transpose(2, 0, 1), 255, out=planes, dtype=np.float32)
    return planes, levels, damage
