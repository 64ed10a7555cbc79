"""Focal lengths that EXIF tells, and whether they can be true."""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pycolmap

from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet

logger = logging.getLogger(__name__)

_FILM_DIAGONAL_MM = math.hypot(36, 24)
# What lenses see across the diagonal, degrees. The longest lens that one can hold has
# 1200 mm; no rectilinear one is shorter than 9 mm, and no fisheye than 6.
_VIEWS_DEG = {False: (1.5, 140.0), True: (10.0, 300.0)}
_MIN_OTHERS = 3  # images of the same make and model that can outvote one
_MAX_CROP_RATIO = 1.25
_GUESS = 1.2  # longer sides, which COLMAP takes where it finds no focal length


@dataclass(frozen=True, kw_only=True)
class FocalPrior:
    """What the header of an image says about its focal length."""

    pixels: float | None  # None: nothing, or nothing that can be believed
    doubt: str | None = None  # why it cannot, in words that follow the image's name


def exif_focal_length(
    images: ImageSet, name: str, *, is_fisheye: bool = False
) -> FocalPrior:
    """The focal length that EXIF tells, if it can be true.

    It is refused where no lens sees as much, or as little; and where the same make and
    model has, in three other images or more, another crop factor: that between the
    length of the lens and its equivalent on 35 mm film. A digital zoom, which EXIF
    tells as well, is part of that equivalent for some makers and not for others; the
    crop factor of images without zoom says which.

    Args:
        images: The capture.
        name: One of its images.
        is_fisheye: Whether the camera model is that of a fisheye lens.

    Returns:
        Pixels of the file, by the equivalent on 35 mm film, whose diagonal EXIF means,
        else by the width of the sensor, which EXIF or COLMAP's tables tell.
    """
    info = images.infos[name]
    diagonal = float(np.hypot(*info.size))
    usual, own = _usual_crop_factor(images, info), _crop_factor(info)
    if info.focal_length_35mm:
        pixels = info.focal_length_35mm * diagonal / _FILM_DIAGONAL_MM
        told = f"{info.focal_length_35mm:g} mm on 35 mm film"
        has_zoom = not usual or not own or not _is_about(own, usual)
    else:
        sensor = _by_sensor(images, name)
        if sensor is None:
            return FocalPrior(pixels=None)
        pixels, told = sensor, f"{info.focal_length_mm:g} mm"
        has_zoom = False
    if info.digital_zoom > 1:
        told += f" and a digital zoom of {info.digital_zoom:g}"
        pixels *= 1 if has_zoom else info.digital_zoom
    low, high = _VIEWS_DEG[is_fisheye]
    view = _view_deg(pixels, diagonal, is_fisheye)
    if not low <= view <= high:
        return FocalPrior(
            pixels=None,
            doubt=f"EXIF tells a focal length of {told}, with which it would see"
            f" {view:.3g} degrees; lenses see {low:g} to {high:g}",
        )
    if usual and own and has_zoom and not _is_about(own, usual * info.digital_zoom):
        return FocalPrior(
            pixels=None,
            doubt=f"EXIF tells a focal length of {info.focal_length_mm:g} mm that is"
            f" {told}, {own:.3g} times as much; other images of the same camera say"
            f" {usual:.3g} times",
        )
    return FocalPrior(pixels=pixels)


def _is_about(factor: float, expected: float) -> bool:
    return 1 / _MAX_CROP_RATIO <= factor / expected <= _MAX_CROP_RATIO


def _view_deg(pixels: float, diagonal: float, is_fisheye: bool) -> float:
    half = diagonal / 2 / pixels
    return math.degrees(2 * (half if is_fisheye else math.atan(half)))


def _by_sensor(images: ImageSet, name: str) -> float | None:
    """By the size of the sensor, as COLMAP knows it."""
    info = images.infos[name]
    if not (info.focal_length_mm and info.model):
        return None
    try:
        camera = pycolmap.infer_camera_from_image(images.path(name))
    except ValueError as error:
        logger.info("%s: COLMAP cannot read it for its focal length: %s", name, error)
        return None
    pixels = float(camera.mean_focal_length())
    is_guess = math.isclose(pixels, _GUESS * max(info.size))
    is_told = camera.has_prior_focal_length and math.isfinite(pixels) and pixels > 0
    return pixels if is_told and not is_guess else None


def _crop_factor(info: ImageInfo) -> float | None:
    if not (info.focal_length_35mm and info.focal_length_mm):
        return None
    return info.focal_length_35mm / info.focal_length_mm


def _usual_crop_factor(images: ImageSet, info: ImageInfo) -> float | None:
    """The median of images without zoom of the same model and lens; None for few."""
    factors = _crop_factors(images).get((info.make, info.model, info.lens_model), [])
    others = len(factors) - (info.digital_zoom == 1 and _crop_factor(info) is not None)
    return float(np.median(factors)) if others >= _MIN_OTHERS else None


@lru_cache(maxsize=1)
def _crop_factors(
    images: ImageSet,
) -> dict[tuple[str | None, ...], list[float]]:
    """Of all images without zoom, by make, model and lens."""
    found: dict[tuple[str | None, ...], list[float]] = {}
    for info in images.infos.values():
        factor = _crop_factor(info)
        if info.model and factor and info.digital_zoom == 1:
            key = info.make, info.model, info.lens_model
            found.setdefault(key, []).append(factor)
    return found
