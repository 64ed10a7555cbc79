"""Masks: which pixels of a photograph count.

A mask is [H, W] bool in the stored orientation of the file on disk, True = use. In a
mask file black (below 128 in every channel) is ignored. For the image `a/b.jpg` it is
`a/b.jpg.png` below the mask root, as COLMAP names it, or `a/b.png`, or either with
another of the endings that images have; else it is the image's own transparency. A mask
root that is a file is the mask of all.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np

from sfmprep import coords
from sfmprep.capture.folder import EXTENSIONS, escaped
from sfmprep.capture.image_file import ImageInfo, decode, open_header, read_info
from sfmprep.capture.image_set import ImageSet
from sfmprep.errors import ImageError
from sfmprep.types import Features, Mask

logger = logging.getLogger(__name__)


_SUFFIXES = (".png", *(e for e in EXTENSIONS if e != ".png"))
_THRESHOLD = 128
_MAX_LISTED = 3


def read_mask(images: ImageSet, name: str) -> Mask | None:
    """Reads which pixels of the image `name` are used.

    A mask of another size is resized to the nearest pixel if its aspect agrees. One of
    a photograph that EXIF turns may be as stored or upright, whichever aspect agrees;
    where both do (square, or half a turn) it is taken as upright, as it was painted.

    Returns:
        [H, W] of the file on disk, True = use; None where the image has neither a mask
        nor transparency, or is opaque everywhere.

    Raises:
        ImageError: the mask cannot be read, has another aspect than the image, has
            values 0 and 1 for 0 and 255, or transparency that contradicts its colours.
    """
    info = images.infos[name]
    path = mask_path(images, name)
    if path is None:
        return _transparency_of(images.path(name)) if info.has_alpha else None
    try:
        return read_mask_file(path, info)
    except ImageError as error:
        raise ImageError(f"the mask {path} of {images.path(name)}: {error}") from error


def read_mask_file(path: Path, info: ImageInfo) -> Mask:
    """Reads a mask file as `read_mask` does, for a photograph with this header.

    Raises:
        ImageError: see `read_mask`; the message is the bare reason.
    """
    return _fit(*_read_mask_file(path), info)


def has_masks(images: ImageSet) -> bool:
    """Whether any image has a mask, or transparency that is not opaque everywhere.

    Images with an alpha channel are decoded until one of them is not opaque.

    Raises:
        ImageError: an image with an alpha channel cannot be decoded.
    """
    if any(mask_path(images, name) is not None for name in images.names):
        return True
    with_alpha = (name for name in images.names if images.infos[name].has_alpha)
    return any(_transparency_of(images.path(name)) is not None for name in with_alpha)


def drop_masked(features: Features, mask: Mask) -> Features:
    """Leaves out the keypoints whose pixel is not used; may leave none.

    Args:
        features: Of one image, in COLMAP pixels of the file on disk.
        mask: [H, W] of the file on disk, True = use.

    Raises:
        ValueError: the mask is not of the features' image size.
    """
    if mask.shape[::-1] != features.image_size:
        raise ValueError(f"{mask.shape[::-1]=} but expected {features.image_size}")
    pixel = np.floor(features.xy).astype(np.int64)
    column, row = np.clip(pixel, 0, np.array(features.image_size) - 1).T
    keep = mask[row, column]
    return features.take(keep)


def check_masks(images: ImageSet) -> None:
    """Warns of masks without an image, images without a mask, and unclear turns.

    Does nothing where no mask root is given.

    Raises:
        ImageError: no file below the mask root is the mask of an image, or a mask that
            may be turned cannot be read.
    """
    if images.mask_root is None:
        return
    masks = {n: p for n in images.names if (p := mask_path(images, n)) is not None}
    of_panoramas = {
        path
        for panorama in images.panoramas
        if (path := mask_file(images.mask_root, panorama.film or panorama.name))
    }
    if not masks and not of_panoramas:
        raise ImageError(
            f"no file in {images.mask_root} is the mask of an image in {images.root}."
            f" Expected, for example, {images.names[0]}.png there; sub-folders count."
        )
    used = of_panoramas.union(masks.values())
    of_left_out = {
        begin + suffix
        for name in (*images.unreadable, *images.copies)
        for begin in (name, str(PurePosixPath(name).with_suffix("")))
        for suffix in _SUFFIXES
    }
    others = (p for p in _image_files(images.mask_root) if p not in used)
    names = (escaped(p.relative_to(images.mask_root).as_posix()) for p in others)
    unused = [name for name in names if name not in of_left_out]
    if unused:
        logger.warning(
            "files in %s that belong to no image: %d, such as %s; check their names",
            *(images.mask_root, len(unused), _some(unused)),
        )
    without = [
        name
        for name in images.names
        if name not in masks and not images.infos[name].has_alpha
    ]
    if without:
        logger.warning(
            "%d of %d images have no mask in %s and are used whole, such as %s",
            len(without),
            len(images),
            images.mask_root,
            _some(without),
        )
    unclear = [name for name, path in masks.items() if _is_unclear(images, name, path)]
    if unclear:
        logger.warning(
            "%d masks are taken as painted on the upright photograph, but their size"
            " also fits the stored one, such as that of %s; if this is wrong, turn the"
            " photographs' pixels themselves upright",
            len(unclear),
            _some(unclear),
        )


def _some(names: list[str]) -> str:
    return ", ".join(names[:_MAX_LISTED])


def _image_files(folder: Path) -> Iterator[Path]:
    """Image files below a folder, in order, without hidden ones."""
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and path.suffix.lower() in EXTENSIONS and path.is_file():
            yield path


def mask_path(images: ImageSet, name: str) -> Path | None:
    """Where the mask file of an image lies; None where there is none."""
    root = images.mask_root
    if root is not None and root.is_file() and name in images.views_of_panoramas:
        return None  # it was cut with the panorama
    return mask_file(root, name)


def mask_file(mask_root: Path | None, name: str) -> Path | None:
    """Where the mask file of an image so called lies; None where there is none.

    A root that is a file is the mask of all images.
    """
    if mask_root is None or mask_root.is_file():
        return mask_root
    stem = str(PurePosixPath(name).with_suffix(""))
    for suffix in _SUFFIXES:
        for candidate in (name + suffix, stem + suffix):
            for spelled in (candidate, candidate[: -len(suffix)] + suffix.upper()):
                path = mask_root / spelled
                if os.path.isfile(path):  # False where the longer name is too long
                    return path
    return None


# ------------------------------------------------------------------------ mask files
def _read_mask_file(path: Path) -> tuple[Mask, int]:
    """The mask as stored, and its own EXIF orientation."""
    info = read_info(path)
    brightest = decode(path).pixels.max(axis=2)
    if brightest.max() == 1:
        raise ImageError("its values are 0 and 1 but expected 0 and 255; write it anew")
    mask = brightest >= _THRESHOLD
    if info.has_alpha:
        opaque = _opaque(path)
        if not opaque.all() and (opaque != mask).any():
            raise ImageError(
                "its transparency contradicts its colours; save it in black (ignore)"
                " and white (use) without transparency"
            )
    return mask, info.orientation


def _transparency_of(path: Path) -> Mask | None:
    """The opaque pixels of an image with alpha, as stored; None where all are."""
    try:
        opaque = _opaque(path)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    return None if opaque.all() else opaque


def _opaque(path: Path) -> Mask:
    """Where an image with alpha is opaque, [H, W] as stored."""
    orientation = read_info(path).orientation
    try:
        with path.open("rb") as file, open_header(file) as header:
            alpha = np.asarray(header.convert("RGBA").getchannel("A"), np.uint8)
            if header.format == "TIFF":  # Pillow turns these upright
                alpha = coords.stored_pixels(alpha, orientation)
    except (OSError, SyntaxError, ValueError) as error:
        raise ImageError(f"its transparency cannot be decoded: {error}") from error
    opaque: Mask = alpha >= _THRESHOLD
    return opaque


def _fit(mask: Mask, mask_orientation: int, info: ImageInfo) -> Mask:
    """A mask file's pixels in the stored orientation and size of its image."""
    size = (mask.shape[1], mask.shape[0])
    upright = coords.upright_size(info.size, info.orientation)
    if mask_orientation != 1:
        turned = coords.upright_pixels(mask.view(np.uint8), mask_orientation)
        mask = turned.view(np.bool_)
        size = (mask.shape[1], mask.shape[0])
        as_painted, fits = True, _same_aspect(size, upright)
    else:
        as_painted = info.orientation != 1 and _same_aspect(size, upright)
        fits = as_painted or _same_aspect(size, info.size)
    if not fits:
        also = f" ({upright[0]} x {upright[1]} upright)" if upright != info.size else ""
        raise ImageError(
            f"it is {size[0]} x {size[1]} pixels but the image"
            f" {info.size[0]} x {info.size[1]}{also}; expected the same aspect. Paint"
            " it on the photograph as it is, uncropped."
        )
    if as_painted:
        mask = coords.stored_pixels(mask.view(np.uint8), info.orientation).view(
            np.bool_
        )
    return _resized(mask, info.size)


def _same_aspect(size: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether one (W, H) is the other resized, up to one pixel of rounding."""
    scale = other[0] / size[0], other[1] / size[1]
    return any(
        abs(size[0] * s - other[0]) <= max(1.0, s)
        and abs(size[1] * s - other[1]) <= max(1.0, s)
        for s in scale
    )


def _resized(mask: Mask, size: tuple[int, int]) -> Mask:
    """Takes the nearest pixel: the one under the centre of each new pixel."""
    if mask.shape == size[::-1]:
        return mask
    rows, columns = (
        ((np.arange(new) + 0.5) * old / new).astype(np.int64)
        for new, old in zip(size[::-1], mask.shape, strict=True)
    )
    resized: Mask = mask[rows[:, None], columns]
    return resized


def _is_unclear(images: ImageSet, name: str, path: Path) -> bool:
    """Whether a mask may be meant as stored or as upright, and these differ."""
    info = images.infos[name]
    if info.orientation == 1:
        return False
    try:
        mask = read_info(path)
    except ImageError as error:
        raise ImageError(f"the mask {path}: {error}") from error
    upright = coords.upright_size(info.size, info.orientation)
    return (
        mask.orientation == 1
        and _same_aspect(mask.size, info.size)
        and _same_aspect(mask.size, upright)
    )
