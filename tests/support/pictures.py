"""Small pictures, written in every format."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]


def picture(width: int = 60, height: int = 40, seed: int = 0) -> Pixels:
    """A smooth picture without any symmetry, so that lossy files stay close to it."""
    noise = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), np.uint8)
    return np.asarray(
        cv2.resize(noise, (width, height), interpolation=cv2.INTER_CUBIC), np.uint8
    )


def write(path: Path, pixels: Pixels | None = None, **options: object) -> Path:
    """Writes a picture as its name and Pillow's `options` say, and makes the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(picture() if pixels is None else pixels).save(path, **options)
    return path
