"""Pairs of photographs that were taken near each other, by their GPS positions."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from scipy.spatial import KDTree

from sfmprep.pairing.pairs import Pairs
from sfmprep.types import Float64

_EARTH_M = 6_371_008.8  # mean radius; that it is no sphere changes distances by 0.5 %
_ONE_SPOT_M = 1e-6  # what rounding leaves of the earth's radius
_SPREAD = 3.0  # accuracies, rms, from which on positions tell who is near whom


def spatial_pairs(
    places: Mapping[str, tuple[float, float]],
    *,
    num_neighbours: int,
    accuracy_m: float = 0.0,
) -> Pairs:
    """Pairs each photograph with those whose positions are the nearest to its own.

    Heights do not count: GPS tells them badly, and a drone that rises over one spot
    is near itself.

    Args:
        places: Latitude and longitude by name, degrees, WGS84.
        num_neighbours: How many each asks for, 1 or more; others may ask for it too.
        accuracy_m: Standard deviation of the positions, metres.

    Returns:
        None for fewer than two photographs, and none where all are within three times
        the accuracy (rms) of their mean, or at one spot: noise says who is near whom.
    """
    names = sorted(places)
    if len(names) < 2:
        return Pairs(())
    at = _on_the_sphere(np.array([places[name] for name in names], np.float64))
    spread = float(np.sqrt(at.var(axis=0).sum()))
    if spread <= max(_SPREAD * accuracy_m, _ONE_SPOT_M):
        return Pairs(())
    count = min(num_neighbours, len(names) - 1)
    # one more: itself, or, of several at one position, another of these
    _, rows = KDTree(at).query(at, k=count + 1)
    return Pairs.of(
        (names[row], names[other])
        for row, found in enumerate(rows)
        for other in [k for k in found if k != row][:count]
    )


def _on_the_sphere(degrees: Float64) -> Float64:
    """Points [N, 3] of latitudes and longitudes [N, 2], metres."""
    latitude, longitude = np.radians(degrees).T
    level = np.cos(latitude)
    axes = level * np.cos(longitude), level * np.sin(longitude), np.sin(latitude)
    return np.asarray(_EARTH_M * np.stack(axes, axis=1), np.float64)
