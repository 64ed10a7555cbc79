"""What can be had of image files whose pixel data is damaged, and how to tell."""

from __future__ import annotations

import zlib
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import ImageFile, TiffImagePlugin

_COMPRESSION = 259
_DEFLATE = (8, 32946)
_PARTS = ((273, 279), (324, 325))  # places and lengths of strips, or of tiles


def values_of(image: ImageFile.ImageFile) -> NDArray[Any]:
    """The values of an opened image: numbers as they are, all else as RGB.

    Raises:
        OSError, SyntaxError, ValueError, RuntimeError: as Pillow does.
    """
    numeric = image.mode.startswith(("I", "F"))
    return np.asarray(image if numeric else image.convert("RGB"))


def remaining_values(image: ImageFile.ImageFile) -> NDArray[Any] | None:
    """The values that Pillow has decoded when it meets an error, and zeros; or None.

    It has none of a truncated WebP, HEIC or AVIF.
    """
    try:
        image.load()
    except (OSError, SyntaxError, ValueError, RuntimeError):
        image.tile = []  # so that Pillow shows what it had until then
    try:
        return values_of(image)
    except (OSError, SyntaxError, ValueError, RuntimeError, AttributeError):
        return None


def has_broken_strip(image: ImageFile.ImageFile, data: bytes) -> bool:
    """Whether a strip or tile of a deflated TIFF has not its checksum.

    Its reader finds the checksum behind the last row, and so often not at all.
    """
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return False
    tags = image.tag_v2
    if tags.get(_COMPRESSION) not in _DEFLATE:
        return False
    for places, lengths in _PARTS:
        for start, length in zip(
            tags.get(places, ()), tags.get(lengths, ()), strict=False
        ):
            try:
                zlib.decompress(data[start : start + length])
            except zlib.error:
                return True
    return False
