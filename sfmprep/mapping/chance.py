"""How many matches agree on an epipolar geometry by chance."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.special import gammaln

from sfmprep.types import Float64


@lru_cache(maxsize=1 << 16)
def least_inliers(num_matches: int, share: float, sample: int) -> int:
    """The fewest inliers that random matches are not expected to have.

    The number of geometries with k inliers or more that are expected among n random
    matches is (n - s) C(n, k) C(k, s) p^(k - s) (Moisan and Stival, IJCV 2004): there
    are C(n, s) samples of s matches, and each of the rest is an inlier with p. From
    the result on it is below 1.

    Args:
        num_matches: n, 0 or more.
        share: p, 0..1: the share of an image that lies within the largest error of an
            epipolar line.
        sample: s, matches that make a geometry: 7 for a fundamental matrix, 5 for an
            essential one.

    Returns:
        At least `sample + 1`; more than `num_matches` where so few matches prove
        nothing.
    """
    counts = np.arange(sample + 1, num_matches + 1)
    if not len(counts):
        return sample + 1
    expected = (
        np.log(num_matches - sample)
        + _log_choices(num_matches, counts)
        + _log_choices(counts, sample)
        + (counts - sample) * np.log(np.clip(share, 1e-12, 1.0))
    )
    likely = np.flatnonzero(expected >= 0)
    return int(counts[likely[-1]]) + 1 if len(likely) else sample + 1


def share_of_band(size: tuple[int, int], max_error_px: float) -> float:
    """The largest share, 0..1, of an image (W, H) within an error of a line, pixels."""
    width, height = size
    band = 2 * max_error_px * float(np.hypot(width, height))
    return min(1.0, band / (width * height))


def _log_choices(n: int | np.ndarray, k: int | np.ndarray) -> Float64:
    """The logarithm of binomial coefficients."""
    n, k = np.asarray(n, np.float64), np.asarray(k, np.float64)
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
