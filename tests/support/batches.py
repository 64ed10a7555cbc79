"""Batches of pictures as networks see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from sfmprep.types import ImageBatch


def batch_of(
    *images: np.ndarray, size: tuple[int, int] | None = None, orientation: int = 1
) -> ImageBatch:
    """A batch of [H, W, 3] uint8 pictures; `size` is that of the file on disk."""
    pixels = np.stack([image.transpose(2, 0, 1) for image in images])
    size = size or (pixels.shape[3], pixels.shape[2])
    return ImageBatch(
        pixels=pixels.astype(np.float32) / 255,
        sizes=np.tile(np.int32(size), (len(images), 1)),
        orientations=np.full(len(images), orientation, np.int32),
    )


def photograph(path: Path, size: int) -> ImageBatch:
    """One photograph of up to `size` pixels on the longer side."""
    with Image.open(path) as file:
        original = file.size
        file.thumbnail((size, size))
        return batch_of(np.asarray(file.convert("RGB")), size=original)
