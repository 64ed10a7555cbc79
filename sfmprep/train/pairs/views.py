"""Two views of one photograph with known correspondence, and photometric change."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from sfmprep.types import Bytes, Float32, Float64, Index, Mask

Numbers = NDArray[np.number[Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """Two images of S by S pixels, and where each pixel lies in the other."""

    image0: Float32  # [3, S, S] in 0..1
    image1: Float32
    to1: Float32  # [S, S, 2] place (x, y) in image 1 of the pixel (row, column) of
    # image 0, pixel centres at integers, NaN where it is not visible there
    to0: Float32  # the same from image 1


def random_homography(
    rng: np.random.Generator,
    photograph_size: tuple[int, int],
    size: int,
    *,
    max_rotation_deg: float,
    max_scale: float,
    max_tilt: float = 0.2,
) -> Float64:
    """A view's homography [3, 3] from pixels of the photograph to those of the view.

    Args:
        rng: The source of all that is random.
        photograph_size: (W, H).
        size: Side of the square view, pixels.
        max_rotation_deg: Rotation is uniform between minus and plus this.
        max_scale: Scale is log-uniform between its inverse and itself, but not so small
            that the view reaches far beyond the photograph.
        max_tilt: How far perspective moves a corner, as a share of the size.
    """
    width, height = photograph_size
    least = 0.8 * size / min(width, height)
    scale = max(least, float(np.exp(rng.uniform(-1, 1) * np.log(max_scale))))
    angle = np.deg2rad(rng.uniform(-1, 1) * max_rotation_deg)
    reach = size / scale / 2
    centre = [
        rng.uniform(min(reach, side / 2), max(side - reach, side / 2))
        for side in (width, height)
    ]
    turn = scale * np.array(
        [[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]
    )
    similarity = np.eye(3)
    similarity[:2, :2] = turn
    similarity[:2, 2] = (size - 1) / 2 - turn @ centre
    corners = np.array([[0, 0], [size, 0], [size, size], [0, size]], np.float32)
    moved = corners + rng.uniform(-max_tilt, max_tilt, (4, 2)) * size / 2
    tilt = cv2.getPerspectiveTransform(corners, moved.astype(np.float32))
    return np.asarray(tilt @ similarity)


def transform(homography: Numbers, xy: Numbers) -> Float64:
    """Applies a homography [3, 3] to points [..., 2] in the pixels that it is of."""
    lifted = xy.astype(np.float64) @ homography[:, :2].T + homography[:, 2]
    return np.asarray(lifted[..., :2] / lifted[..., 2:], np.float64)


def warp(photograph: Bytes, homography: Float64, size: int) -> Bytes:
    """Draws a view [S, S, 3] of a photograph, mirrored beyond its border."""
    return cv2.warpPerspective(
        photograph,
        homography,
        (size, size),
        flags=cv2.INTER_LINEAR,
        borderMode=cv2.BORDER_REFLECT,
    ).astype(np.uint8, copy=False)


def shifted(homography: Float64, by: Float64) -> Float64:
    """The homography followed by a shift [2]."""
    shift = np.eye(3)
    shift[:2, 2] = by
    return np.asarray(shift @ homography)


def overlapping(
    rng: np.random.Generator, first: Float64, second: Float64, size: int, away: float
) -> Float64:
    """Shifts the second view's homography so that the middle of the first is near its.

    By up to `away` of the `size` along either axis; most pairs would not overlap else.
    """
    middle = np.full(2, (size - 1) / 2)
    target = middle + rng.uniform(-away, away, 2) * size
    return shifted(second, target - transform(second @ np.linalg.inv(first), middle))


def sample_homography(rng: np.random.Generator, photograph: Bytes, size: int) -> Views:
    """Draws two views of a photograph that homographies relate, lit differently.

    They are turned by up to 45 degrees and scaled by up to 1.6 against each other.
    """
    height, width = photograph.shape[:2]
    first, second = (
        random_homography(
            rng, (width, height), size, max_rotation_deg=45 / 2, max_scale=1.6**0.5
        )
        for _ in range(2)
    )
    second = overlapping(rng, first, second, size, 0.25)
    grid = np.stack(np.meshgrid(np.arange(size), np.arange(size)), -1)
    image0, image1 = (
        as_tensor_image(photometric(rng, warp(photograph, view, size)))
        for view in (first, second)
    )
    return Views(
        image0=image0,
        image1=image1,
        to1=_visible(grid, first, second, (width, height), size),
        to0=_visible(grid, second, first, (width, height), size),
    )


def _visible(
    grid: Index,
    here: Float64,
    there: Float64,
    photograph_size: tuple[int, int],
    size: int,
) -> Float32:
    """Where pixels of one view lie in another, NaN outside it or the photograph."""
    source = transform(np.linalg.inv(here), grid)
    target = transform(there, source)
    is_inside = inside(source, photograph_size) & inside(target, (size, size))
    return np.where(is_inside[..., None], target, np.nan).astype(np.float32)


def inside(xy: Numbers, size: tuple[int, int]) -> Mask:
    """Which points [..., 2] lie on an image of (W, H) pixels."""
    return np.asarray(((xy >= 0) & (xy <= np.array(size) - 1)).all(-1))


def draw_gaussians(
    xy: Float32, heights: Float32, size: tuple[int, int], *, sigma: float, radius: int
) -> Float32:
    """Draws a Gaussian for each place [N, 2], [H, W]; the higher one where two meet.

    Args:
        xy: Pixel centres at integers.
        heights: [N], of the peaks.
        size: (W, H) of the map in pixels.
        sigma: Standard deviation, pixels.
        radius: How far from the nearest pixel each is drawn, pixels.
    """
    drawn = np.zeros(size[::-1], np.float32)
    whole = np.rint(xy).astype(np.int64)
    for dy in range(-radius, radius + 1):
        for dx in range(-radius, radius + 1):
            at = whole + (dx, dy)
            squared = np.square(at - xy).sum(1, dtype=np.float32)
            value = heights * np.exp(-squared / np.float32(2 * sigma**2))
            keep = inside(at, size)
            np.maximum.at(drawn, (at[keep, 1], at[keep, 0]), value[keep])
    return drawn


def as_tensor_image(image: Bytes) -> Float32:
    """Turns [H, W, 3] bytes into [3, H, W] in 0..1."""
    return np.ascontiguousarray(image.transpose(2, 0, 1), np.float32) / np.float32(255)


def photometric(rng: np.random.Generator, image: Bytes) -> Bytes:
    """Changes light, colour, sharpness and noise of [H, W, 3] bytes, strongly.

    Gamma 0.5..2, contrast 0.5..1.5, brightness up to a fifth, one shadow's soft edge,
    colour casts, blur of up to 2 pixels or of motion, noise of up to 5 %, JPEG.
    """
    levels = (np.arange(256) / 255)[:, None] ** np.exp(rng.uniform(-0.7, 0.7, (1, 1)))
    gain = np.exp(rng.uniform(-0.6, 0.4)) * np.exp(rng.normal(0, 0.08, 3))
    levels = (levels - 0.5) * gain + 0.5 + rng.uniform(-0.2, 0.2)
    table = np.clip(levels * 255, 0, 255).astype(np.uint8)[None]
    changed: NDArray[Any] = cv2.LUT(image, table)
    kind = rng.random()
    if kind < 0.3:
        changed = cv2.GaussianBlur(changed, (0, 0), rng.uniform(0.4, 2.0))
    elif kind < 0.4:
        length = int(rng.integers(3, 8))
        kernel = np.zeros((length, length), np.float32)
        angle = rng.uniform(0, np.pi)
        along = np.linspace(-0.5, 0.5, 4 * length) * (length - 1)
        middle = (length - 1) / 2
        row = np.rint(middle + along * np.sin(angle)).astype(int)
        column = np.rint(middle + along * np.cos(angle)).astype(int)
        kernel[row, column] = 1
        changed = cv2.filter2D(changed, -1, kernel / kernel.sum())
    if rng.random() < 0.3:
        changed = _shaded(rng, changed.astype(np.uint8, copy=False))
    if rng.random() < 0.5:
        noise: NDArray[Any] = np.empty(changed.shape, np.int16)
        cv2.setRNGSeed(int(rng.integers(1 << 30)))
        cv2.randn(noise, np.zeros(3), np.full(3, rng.uniform(1, 13)))
        changed = cv2.add(changed, noise, dtype=cv2.CV_8U)
    if rng.random() < 0.3:
        quality = [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(25, 90))]
        _, code = cv2.imencode(".jpg", changed, quality)
        changed = np.asarray(cv2.imdecode(code, cv2.IMREAD_COLOR))
    if rng.random() < 0.1:
        changed = np.repeat(changed.mean(2, keepdims=True), 3, 2)
    return changed.astype(np.uint8, copy=False)


def _shaded(rng: np.random.Generator, image: Bytes) -> Bytes:
    """Darkens one side of a straight soft edge."""
    height, width = image.shape[:2]
    normal = rng.normal(size=2)
    normal /= np.linalg.norm(normal)
    y, x = np.ogrid[:height, :width]
    away = (x - rng.uniform(0, width)) * normal[0] + (y - rng.uniform(0, height)) * (
        normal[1]
    )
    light = 1 - rng.uniform(0.2, 0.7) / (1 + np.exp(-away / rng.uniform(1, 20)))
    return np.asarray(image * light[..., None]).astype(np.uint8)
