"""How many inliers can no longer be chance: thresholds that follow the capture."""

from __future__ import annotations

from functools import lru_cache
from math import lgamma, log, log10

_MAX_FALSE_ALARMS = 1e-3  # expected poses by chance, of all that could be tried


@lru_cache(4096)
def needed_inliers(
    num_matches: int, chance: float, *, sample: int = 3, solutions: int = 4
) -> int | None:
    """The least number of inliers that random matches would practically never have.

    A contrario (Moisan and Stival, International Journal of Computer Vision 57, 2004):
    the expected number of models with so many inliers among all samples of random
    matches is below a thousandth.

    Args:
        num_matches: Matches that were asked.
        chance: That a random match fits a given model, 0..1.
        sample: Matches that make a model; 3 for a pose from points.
        solutions: Models that a sample makes.

    Returns:
        None where even all of them could be chance.
    """
    chance = min(max(chance, 1e-12), 1.0)
    for count in range(sample + 1, num_matches + 1):
        alarms = (
            log10(solutions * (num_matches - sample))
            + _log10_choose(num_matches, count)
            + _log10_choose(count, sample)
            + (count - sample) * log10(chance)
        )
        if alarms < log10(_MAX_FALSE_ALARMS):
            return count
    return None


def _log10_choose(total: int, some: int) -> float:
    return (lgamma(total + 1) - lgamma(some + 1) - lgamma(total - some + 1)) / log(10)
