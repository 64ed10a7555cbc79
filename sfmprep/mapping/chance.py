"""How many matches agree by chance: thresholds that follow the capture."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from scipy.special import gammaln

from sfmprep.types import Float64

_MAX_POSES_BY_CHANCE = 1e-3  # expected of all that could be tried


@lru_cache(maxsize=1 << 16)
def least_inliers(
    num_matches: int, share: float, sample: int, *, expected: float = 1.0
) -> int:
    """The fewest inliers that random matches are not expected to have.

    The number of geometries with k inliers or more that are expected among n random
    matches is (n - s) C(n, k) C(k, s) p^(k - s) (Moisan and Stival, IJCV 2004): there
    are C(n, s) samples of s matches, and each of the rest is an inlier with p. From
    the result on it is below `expected`.

    Args:
        num_matches: n, 0 or more.
        share: p, 0..1: the share of an image that lies within the largest error of an
            epipolar line.
        sample: s, matches that make a geometry: 7 for a fundamental matrix, 5 for an
            essential one, 3 for a pose from points.
        expected: Above 0.

    Returns:
        At least `sample + 1`; more than `num_matches` where so few matches prove
        nothing.
    """
    counts = np.arange(sample + 1, num_matches + 1)
    if not len(counts):
        return sample + 1
    logs = (
        np.log(num_matches - sample)
        + _log_choices(num_matches, counts)
        + _log_choices(counts, sample)
        + (counts - sample) * np.log(np.clip(share, 1e-12, 1.0))
    )
    likely = np.flatnonzero(logs >= np.log(expected))
    return int(counts[likely[-1]]) + 1 if len(likely) else sample + 1


def needed_inliers(
    num_matches: int, chance: float, *, solutions: int = 4
) -> int | None:
    """The least number of inliers of a pose that random matches practically never have.

    Args:
        num_matches: Matches that were asked.
        chance: That a random match fits a given pose, 0..1.
        solutions: Poses that three matches make.

    Returns:
        None where even all of them could be chance.
    """
    expected = _MAX_POSES_BY_CHANCE / solutions
    needed = least_inliers(num_matches, chance, 3, expected=expected)
    return needed if needed <= num_matches else None


def share_of_band(size: tuple[int, int], max_error_px: float) -> float:
    """The largest share, 0..1, of an image (W, H) within an error of a line, pixels."""
    width, height = size
    band = 2 * max_error_px * float(np.hypot(width, height))
    return min(1.0, band / (width * height))


def _log_choices(n: int | np.ndarray, k: int | np.ndarray) -> Float64:
    """The logarithm of binomial coefficients."""
    n, k = np.asarray(n, np.float64), np.asarray(k, np.float64)
    return np.asarray(gammaln(n + 1) - gammaln(k + 1) - gammaln(n - k + 1))
