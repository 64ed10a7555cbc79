"""Photographs of a scene as worse light, or a hand that shakes, would have made them.

The poses stay, so what is known of them does, too. Everything comes from one seed.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

Light = NDArray[np.float64]  # [H, W, 3] BGR, 1 is white, proportional to light
Change = Callable[[Light, int, np.random.Generator], Light]
"""What becomes of the light of a photograph, by its number in the capture."""

_EXPOSURE = 0.06  # share of the light that is there at night
_ELECTRONS = 500.0  # that a white pixel of a phone collects, amplified as at night
_READ_NOISE = 2.5  # electrons
_SHAKE = 0.006  # of the longer side: the way of a hand during the exposure


def make_worse(images: Path, change: Change, *, seed: int = 0) -> None:
    """Changes all photographs of a folder, each in its place."""
    rng = np.random.default_rng(seed)
    for number, path in enumerate(sorted(images.iterdir())):
        pixels = cv2.imread(str(path))
        assert pixels is not None, path
        light = change(_light_of(pixels), number, rng)
        cv2.imwrite(str(path), _pixels_of(light), [cv2.IMWRITE_JPEG_QUALITY, 92])


def night(light: Light, number: int, rng: np.random.Generator) -> Light:
    """Four stops too dark, with the noise of the few photons and of reading them."""
    electrons = rng.poisson(light * _EXPOSURE * _ELECTRONS)
    return (electrons + rng.normal(0, _READ_NOISE, light.shape)) / _ELECTRONS


def two_lights(light: Light, number: int, rng: np.random.Generator) -> Light:
    """Every second one at another hour: from one side, of other colour, in haze."""
    if number % 2 == 0:
        return light
    from_side = np.linspace(0.3, 1.6, light.shape[1])[None, :, None]
    return 0.6 * light * from_side * np.array([1.5, 0.9, 0.5]) + 0.03


def shaken(light: Light, number: int, rng: np.random.Generator) -> Light:
    """Every second one moved while it was taken, each in a direction of its own."""
    angle = rng.uniform(0, np.pi)
    if number % 2 == 0:
        return light
    reach = max(1, round(_SHAKE * max(light.shape[:2]) / 2))
    way = reach * np.array([np.cos(angle), np.sin(angle)])
    kernel = np.zeros((2 * reach + 1, 2 * reach + 1), np.float32)
    start, stop = (tuple(np.rint(reach + s * way).astype(int)) for s in (-1, 1))
    cv2.line(kernel, start, stop, 1.0)
    return cv2.filter2D(light, -1, kernel / kernel.sum())


def _light_of(pixels: NDArray[np.uint8]) -> Light:
    """Light from sRGB: IEC 61966-2-1."""
    steps = np.arange(256) / 255
    table = np.where(steps <= 0.04045, steps / 12.92, ((steps + 0.055) / 1.055) ** 2.4)
    return table[pixels]


def _pixels_of(light: Light) -> NDArray[np.uint8]:
    light = np.clip(light, 0, 1)
    curve = 1.055 * light ** (1 / 2.4) - 0.055
    srgb = np.where(light <= 0.0031308, 12.92 * light, curve)
    return np.rint(255 * srgb).astype(np.uint8)
