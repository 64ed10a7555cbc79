"""Pairs of views that poses, known roughly, place near each other."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfmprep.coords import beyond_rounding
from sfmprep.pairing.pairs import Partners
from sfmprep.types import Float64

_MAX_ANGLE_DEG = 90.0  # between optical axes: beyond it views share little
_ANGLE_DEG = 45.0  # counts as much as the distance of a typical camera from the middle
_NEAREST = 2 / 3  # of the neighbours; the rest are further ones, against drift


def near_partners(
    names: Sequence[str],
    rotations: Float64,
    centres: Float64,
    *,
    num_neighbours: int,
) -> Partners:
    """Of each view those that look the same way from near by, and some further ones.

    How far a view is depends on the distance of the centres and on the angle between
    the optical axes. Two thirds of the neighbours are the nearest; the others are at
    ranks that grow by equal factors, up to the last whose axis is less than 90 degrees
    away. Where none is, the nearest of all are taken.

    Args:
        names: Of the images [N].
        rotations: [N, 3, 3] camera from world.
        centres: [N, 3].
        num_neighbours: How many each view asks for.

    Returns:
        The nearest first. None for fewer than two views.
    """
    forward = rotations[:, 2]
    spread = np.linalg.norm(centres - np.median(centres, axis=0), axis=1)
    # cameras in one spot have no distance to measure by, and rounding is none
    unit = beyond_rounding(float(np.median(spread)), centres) or np.inf
    partners = {}
    for row in range(len(names)):
        cosine = (forward @ forward[row]).clip(-1, 1)
        angle = np.degrees(np.arccos(cosine))
        away = (
            np.linalg.norm(centres - centres[row], axis=1) / unit + angle / _ANGLE_DEG
        )
        away[row] = np.inf
        order = np.argsort(away, kind="stable")[:-1]
        facing = order[angle[order] <= _MAX_ANGLE_DEG]
        few = len(facing) < num_neighbours
        order = order if few else facing
        ranks = _ranks(len(order), num_neighbours)
        partners[names[row]] = [names[order[rank]] for rank in ranks]
    return partners


def _ranks(count: int, wanted: int) -> list[int]:
    """Which of `count` neighbours, nearest first, are taken."""
    if count <= wanted:
        return list(range(count))
    near = max(round(_NEAREST * wanted), 1)
    steps = np.geomspace(near + 1, count, wanted - near + 1)[1:] - 1
    ranks = dict.fromkeys([*range(near), *np.round(steps).astype(int).tolist()])
    return list(ranks)
