"""The photographs of a capture: which there are, which share a camera, and batches.

Names are POSIX paths relative to the root folder. `image_file` reads the single file.
"""

from __future__ import annotations

import logging
import os
import shlex
from collections import defaultdict, deque
from collections.abc import (
    Callable,
    Generator,
    Iterable,
    Iterator,
    Mapping,
    Sequence,
)
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np

from sfmprep import coords
from sfmprep.capture.image_file import ImageInfo, decode, read_info, read_pixels
from sfmprep.errors import ConfigError, ImageError
from sfmprep.progress import Progress, silent
from sfmprep.types import Float32, ImageBatch

__all__ = [
    "EXTENSIONS",
    "Grouping",
    "ImageInfo",
    "ImageSet",
    "fit_size",
    "load_batches",
    "read_pixels",
    "reduction_scales",
]

logger = logging.getLogger(__name__)

EXTENSIONS = (
    *(".jpg", ".jpeg", ".png", ".tif", ".tiff"),
    *(".bmp", ".webp", ".heic", ".heif"),
)
_FILM_EXTENSIONS = (".mp4", ".mov", ".m4v", ".avi", ".mkv", ".webm")
_SCAN_THREADS = 8
MAX_LOAD_THREADS = 8  # a process
_MAX_LISTED = 5

Grouping = Literal["auto", "single", "per-folder", "per-image"]


@dataclass(frozen=True, eq=False)
class ImageSet:
    """The images of a folder and its sub-folders."""

    root: Path
    names: tuple[str, ...]  # sorted POSIX paths relative to root
    infos: Mapping[str, ImageInfo]  # one for each of `names`
    unreadable: Mapping[str, str]  # name -> reason; these are not among `names`
    mask_root: Path | None = None

    def __len__(self) -> int:
        return len(self.names)

    def path(self, name: str) -> Path:
        """Where the image `name` lies."""
        return self.root / name

    @classmethod
    def scan(
        cls, root: Path, *, mask_root: Path | None = None, progress: Progress = silent
    ) -> ImageSet:
        """Finds all images below `root` and reads their headers, not their pixels.

        Files with one of `EXTENSIONS` count, in any case. Hidden files and folders,
        `__MACOSX` and `mask_root` are passed over. Links are followed, but no folder is
        entered twice. Truncated JPEG and PNG files are found by their missing end.

        Args:
            root: The folder of photographs.
            mask_root: A folder of masks; it may lie inside `root`.
            progress: Wraps the loop over files.

        Raises:
            ImageError: a folder is missing or is a file, `mask_root` is `root`, or no
                image can be read.
        """
        _expect_folder(root, "image")
        if mask_root is not None:
            _expect_folder(mask_root, "mask")
            if mask_root.samefile(root):
                raise ImageError(
                    f"{root} is given as the folder of images and of masks, but they"
                    " are told apart by folder. Move the masks to their own one."
                )
        unreadable: dict[str, str] = {}
        found = sorted(_find_images(root, mask_root, unreadable))
        infos: dict[str, ImageInfo] = {}
        pool = ThreadPoolExecutor(_SCAN_THREADS, "sfmprep-scan")
        try:
            answers = pool.map(lambda name: _info_or_reason(root / name), found)
            for name, answer in progress(
                zip(found, answers, strict=True), desc="scan", total=len(found)
            ):
                if isinstance(answer, ImageInfo):
                    infos[name] = answer
                else:
                    unreadable[name] = answer
        finally:
            pool.shutdown(cancel_futures=True)
        if not infos:
            raise ImageError(_explain_nothing(root, unreadable))
        return cls(root, tuple(infos), infos, unreadable, mask_root)

    def camera_groups(self, how: Grouping) -> list[tuple[str, ...]]:
        """Groups the names by the camera that took them.

        `auto` puts together what has the same make, model, lens, focal length, size on
        disk and folder; frames without EXIF share a camera if size and folder agree.

        Returns:
            Groups in the order of their first names; none where there is no image.
        """
        groups: defaultdict[object, list[str]] = defaultdict(list)
        for name in self.names:
            groups[self._camera_key(name, how)].append(name)
        return [tuple(group) for group in groups.values()]

    def _camera_key(self, name: str, how: Grouping) -> object:
        match how:
            case "single":
                return None
            case "per-image":
                return name
            case "per-folder":
                return PurePosixPath(name).parent
            case "auto":
                info = self.infos[name]
                return (
                    PurePosixPath(name).parent,
                    info.size,
                    info.make,
                    info.model,
                    info.lens_model,
                    info.focal_length_mm,
                    info.focal_length_35mm,
                )


# -------------------------------------------------------------------------- scanning
def _expect_folder(path: Path, what: str) -> None:
    if path.is_dir():
        return
    if path.suffix.lower() in _FILM_EXTENSIONS and path.exists():
        raise ImageError(
            f"{path} is a film but expected a folder of photographs."
            f" {_frames_hint(path)}"
        )
    if path.exists():
        raise ImageError(
            f"{path} is a file but expected the {what} folder. Give the folder it lies"
            f" in: {path.parent}"
        )
    raise ImageError(
        f"the {what} folder {path} does not exist. Check the path for typing errors."
    )


def _frames_hint(film: Path) -> str:
    return (
        "Take frames from it first, for example:"
        f" ffmpeg -i {shlex.quote(str(film))} -vf fps=2 -q:v 2 FRAMES/%05d.jpg"
    )


def _find_images(
    root: Path, mask_root: Path | None, unreadable: dict[str, str]
) -> Iterator[str]:
    """Yields the names of what could be an image, in no order."""
    entered = set() if mask_root is None else {_identity(mask_root)}
    folders, links = deque([root]), deque[Path]()
    while folders or links:
        # real folders come first, so that a link never takes a folder's name from it
        folder = folders.popleft() if folders else links.popleft()
        if _identity(folder) in entered:
            continue
        entered.add(_identity(folder))
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            name = folder.relative_to(root).as_posix()
            unreadable[name] = f"the folder cannot be listed: {error.strerror}"
            continue
        for entry in entries:
            if entry.name.startswith(".") or entry.name == "__MACOSX":
                continue
            path = Path(entry.path)
            if path.is_dir():  # unlike the entry's, it bears links that point in a ring
                (links if entry.is_symlink() else folders).append(path)
            elif path.suffix.lower() in EXTENSIONS and (
                entry.is_symlink() or entry.is_file()
            ):
                name = path.relative_to(root).as_posix()
                printable = os.fsencode(name).decode("utf-8", "backslashreplace")
                if printable == name:
                    yield name
                else:
                    unreadable[printable] = "its name is not UTF-8; rename it"


def _info_or_reason(path: Path) -> ImageInfo | str:
    try:
        return read_info(path)
    except ImageError as error:
        return str(error)


def _identity(folder: Path) -> tuple[int, int]:
    stat = folder.stat()
    return stat.st_dev, stat.st_ino


def _explain_nothing(root: Path, unreadable: Mapping[str, str]) -> str:
    """Why a folder holds no image that can be used, and what to do."""
    if unreadable:
        listed = [f"\n  {n!r}: {reason}" for n, reason in sorted(unreadable.items())]
        more = len(listed) - _MAX_LISTED
        return (
            f"none of the {len(listed)} image files in {root} can be read:"
            + "".join(listed[:_MAX_LISTED])
            + (f"\n  and {more} more" if more > 0 else "")
            + "\nCopy them from the camera again, or give another folder."
        )
    films = (p for p in root.iterdir() if p.suffix.lower() in _FILM_EXTENSIONS)
    film = min(films, default=None)
    return (
        f"no image in {root} or its sub-folders. Expected files that end in"
        f" {' '.join(EXTENSIONS)}; hidden ones do not count."
        + (f" It holds a film. {_frames_hint(film)}" if film else "")
    )


# --------------------------------------------------------------------------- batches
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
