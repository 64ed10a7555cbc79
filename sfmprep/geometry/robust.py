"""How far errors spread, by their median, and the robust loss that goes with it."""

from __future__ import annotations

import numpy as np

from sfmprep.types import Float64

LOSS_SCALE = 2.385
"""Of Cauchy's loss, in standard deviations: as good as squares to 95 % where errors are
normal (Holland and Welsch, Communications in Statistics 6, 1977)."""
MEAN_LENGTH = 1.2533
"""Of a vector whose two components have the deviation 1."""
_MEDIAN_LENGTHS = {2: 1.1774, 3: 1.5382}  # of one of so many components


def deviation_of(lengths: Float64, num_components: int) -> float:
    """The standard deviation of each component of vectors, by their median length.

    Args:
        lengths: [N], one or more.
        num_components: Of each vector, 2 or 3.
    """
    return float(np.median(lengths)) / _MEDIAN_LENGTHS[num_components]
