"""A capture as a user gives it: each photograph once, and what to say about it."""

from __future__ import annotations

import hashlib
import logging
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import combinations
from pathlib import Path, PurePosixPath

from sfmprep.capture.developed import Developed
from sfmprep.capture.folder import (
    describe_passed_over,
    is_image,
    photograph_folder,
    without_twin,
)
from sfmprep.capture.identity import content_sha256
from sfmprep.capture.image_set import ImageSet
from sfmprep.errors import ImageError
from sfmprep.progress import Progress, silent

logger = logging.getLogger(__name__)

_SAMPLE_BYTES = 1 << 16
_MAX_REDUCTION = 16
_MIN_PANORAMA_WIDTH = 2048


def find_photographs(
    root: Path,
    *,
    mask_root: Path | None = None,
    keep_damaged: bool = False,
    developed: Developed | None = None,
    progress: Progress = silent,
) -> ImageSet:
    """Scans a folder, in known layouts the right one in it, with each photograph once.

    Of a scene of nerfstudio, 3D Gaussian Splatting or COLMAP its `images`, or else its
    `input`, are scanned, so names are relative to that. Of files with the same content
    the first is used; the others are among the unreadable ones. Warnings in the log
    name scaled copies, panoramas and files that are not read.

    Args:
        root: The folder of photographs, or of such a scene; a film that is developed.
        mask_root: A folder of masks; it may lie inside `root`.
        keep_damaged: Use what is left of damaged photographs.
        developed: What films and RAW files became; these join the photographs.
        progress: Wraps the loop over files.

    Raises:
        ImageError: as `ImageSet.scan`.
    """
    folder, beside = photograph_folder(root)
    if mask_root is not None:
        beside = [name for name in beside if root / name != mask_root]
    if folder != root:
        logger.warning(
            "%s is a scene: its photographs are taken from %s alone%s",
            root,
            folder,
            f"; not read is what lies in {', '.join(beside)}" if beside else "",
        )
    images = ImageSet.scan(
        folder,
        mask_root=mask_root,
        keep_damaged=keep_damaged,
        developed=developed,
        progress=progress,
    )
    images = without_duplicates(images)
    _warn_of_scaled_copies(images)
    _warn_of_panoramas(images)
    known = filter(is_image, [*images.names, *images.unreadable, *images.copies])
    alone = without_twin(images.passed_over, known)
    if alone:
        logger.warning(
            "not read in %s: %s", images.root, describe_passed_over(images.root, alone)
        )
    return images


def without_duplicates(images: ImageSet) -> ImageSet:
    """Leaves out every image whose file equals that of another one, by its content.

    The one with the shortest name is used: "a (1).jpg" is the copy of "a.jpg". Only
    files of one size whose samples agree are read whole.

    Raises:
        ImageError: a file cannot be read.
    """
    alike = defaultdict(list)
    for name, info in images.infos.items():
        alike[info.size, info.num_bytes].append(name)
    sampled = defaultdict(list)
    for (_, num_bytes), names in alike.items():
        if len(names) > 1:
            for name in names:
                sampled[_sample(images.path(name), num_bytes)].append(name)
    unclear = [name for names in sampled.values() if len(names) > 1 for name in names]
    same = defaultdict(list)
    for name, digest in content_sha256(_only(images, unclear)).items():
        same[digest.sha256].append(name)
    copies: dict[str, str] = {}
    for names in same.values():
        first, *others = sorted(names, key=lambda name: (len(name), name))
        copies |= dict.fromkeys(others, first)
    kept = [name for name in images.names if name not in copies]
    return replace(_only(images, kept), copies=dict(sorted(copies.items())))


def _only(images: ImageSet, names: Iterable[str]) -> ImageSet:
    infos = {name: images.infos[name] for name in names}
    return replace(images, names=tuple(infos), infos=infos)


def _sample(path: Path, num_bytes: int) -> bytes:
    """A hash of the first, middle and last bytes of a file, and of its size."""
    sample = hashlib.sha256(str(num_bytes).encode())
    try:
        with path.open("rb", buffering=0) as file:
            for start in (0, num_bytes // 2, max(num_bytes - _SAMPLE_BYTES, 0)):
                file.seek(start)
                sample.update(file.read(_SAMPLE_BYTES))
    except OSError as error:
        raise ImageError(
            f"{path}: the file cannot be read: {error.strerror}"
        ) from error
    return sample.digest()


def _warn_of_scaled_copies(images: ImageSet) -> None:
    copies = list(_scaled_copies(images))
    if copies:
        large, small, factor = copies[0]
        logger.warning(
            "%d images in %s have the name of another at a fraction of its size, such"
            " as %s at 1/%d of %s; if these are copies, give the folder of the large"
            " ones alone",
            len({small for _, small, _ in copies}),
            images.root,
            small,
            factor,
            large,
        )


def _scaled_copies(images: ImageSet) -> Iterator[tuple[str, str, int]]:
    """Larger, smaller and factor of images that share a stem but not a folder."""
    by_stem = defaultdict(list)
    frames = {n for film in images.films for shot in film.shots() for n in shot}
    for name in images.names:
        if name in frames:
            continue  # they are called by their times
        by_stem[PurePosixPath(name).stem.lower()].append(name)
    for names in by_stem.values():
        for pair in combinations(names, 2):
            small, large = sorted(pair, key=lambda name: images.infos[name].size)
            factor = _factor(images.infos[large].size, images.infos[small].size)
            if factor and PurePosixPath(small).parent != PurePosixPath(large).parent:
                yield large, small, factor


def _factor(large: tuple[int, int], small: tuple[int, int]) -> int | None:
    """By which whole number `small` is `large` reduced, up to rounding; else None."""
    factor = round(large[0] / small[0])
    fits = all(abs(a / factor - b) < 1 for a, b in zip(large, small, strict=True))
    return factor if 2 <= factor <= _MAX_REDUCTION and fits else None


def _warn_of_panoramas(images: ImageSet) -> None:
    found = [
        name
        for name, info in images.infos.items()
        if info.is_panorama
        or (info.size[0] == 2 * info.size[1] and info.size[0] >= _MIN_PANORAMA_WIDTH)
    ]
    if found:
        logger.warning(
            "%d images in %s seem 360° panoramas by their XMP or by their shape of 2:1,"
            " such as %s, but each is taken for one ordinary photograph; those of the"
            " whole sphere are cut into views with --set panorama.cut=always",
            len(found),
            images.root,
            found[0],
        )
