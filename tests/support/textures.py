"""Pictures to take views of."""

from __future__ import annotations

import cv2
import numpy as np


def texture(seed: int = 0, size: tuple[int, int] = (320, 240)) -> np.ndarray:
    noise = np.random.default_rng(seed).normal(size=(size[1], size[0], 3))
    smooth = cv2.GaussianBlur(noise, None, 3)
    return np.clip(128 + 40 * smooth / smooth.std(), 0, 255).astype(np.uint8)
