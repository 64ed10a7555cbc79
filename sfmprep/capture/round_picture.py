"""Whether a picture twice as wide as high shows a whole sphere, or two lenses."""

from __future__ import annotations

import numpy as np

from sfmprep.types import Bytes, Float64

_SEAM = 0.25  # of the difference between columns far apart, at the border of a sphere
_POLE = 0.35  # of the spread along rows of the middle, along the first and the last
_SMOOTH = 2.0  # grey levels of spread, which sensors and codecs leave
_DARK = 24  # grey, of what lies around the circle of a lens


def closes(pixels: Bytes) -> bool:
    """Whether a picture [H, W, 3] is closed as an equirectangular one is.

    Its left border goes on at the right one, and each of its first and last rows, which
    is one direction, has one colour. Black bars at both sides do not count.
    """
    height, width = pixels.shape[:2]
    left, right = _grey(pixels[:, [0, -1]]).T
    columns = _grey(pixels[:, np.linspace(0, width - 1, 9)[:-1].astype(np.int64)])
    usual = float(np.abs(columns - np.roll(columns, 3, axis=1)).mean())
    if left.std() <= _SMOOTH or np.abs(left - right).mean() >= _SEAM * usual:
        return False
    rows = _grey(pixels[height // 4 : -height // 4 : max(height // 64, 1)])
    allowed = max(_POLE * float(np.median(rows.std(axis=1))), _SMOOTH)
    return bool(_grey(pixels[[0, -1]]).std(axis=1).max() < allowed)


def _grey(pixels: Bytes) -> Float64:
    return np.asarray(pixels.mean(axis=2), np.float64)


def shows_two_lenses(pixels: Bytes) -> bool:
    """Whether a picture [H, 2 H, 3] is two circles in the dark, side by side."""
    height, width = pixels.shape[:2]
    spot, middle = height // 16, slice(height // 4, -height // 4)
    if width != 2 * height or spot == 0:
        return False
    halves = np.split(pixels, 2, axis=1)
    corners = [
        float(half[rows, columns].mean())
        for half in halves
        for rows in (slice(spot), slice(-spot, None))
        for columns in (slice(spot), slice(-spot, None))
    ]
    middles = [float(half[middle, middle].mean()) for half in halves]
    return max(corners) < _DARK and min(middles) > 2 * _DARK
