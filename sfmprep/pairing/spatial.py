"""Pairs of photographs that were taken near each other, by their GPS positions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.spatial import KDTree

from sfmprep.coords import earth_fixed
from sfmprep.pairing.pairs import Partners

_ONE_SPOT_M = 1e-6  # what rounding leaves of the earth's radius
_SPREAD = 3.0  # accuracies, rms, from which on positions tell who is near whom


def spatial_partners(
    places: Mapping[str, tuple[float, float]],
    *,
    num_neighbours: int,
    accuracy_m: float = 0.0,
) -> Partners:
    """Of each photograph those whose positions are the nearest to its own, in order.

    Heights do not count: GPS tells them badly, and a drone that rises over one spot
    is near itself.

    Args:
        places: Latitude and longitude by name, degrees, WGS84.
        num_neighbours: How many each asks for, 1 or more.
        accuracy_m: Standard deviation of the positions, metres.

    Returns:
        None for fewer than two photographs, and none where all are within three times
        the accuracy (rms) of their mean, or at one spot: noise says who is near whom.
    """
    names = sorted(places)
    if len(names) < 2:
        return {}
    at = earth_fixed(np.array([(*places[name], 0.0) for name in names], np.float64))
    spread = float(np.sqrt(at.var(axis=0).sum()))
    if spread <= max(_SPREAD * accuracy_m, _ONE_SPOT_M):
        return {}
    count = min(num_neighbours, len(names) - 1)
    # one more: itself, or, of several at one position, another of these
    _, rows = KDTree(at).query(at, k=count + 1)
    return {
        names[row]: [names[k] for k in found if k != row][:count]
        for row, found in enumerate(rows)
    }
