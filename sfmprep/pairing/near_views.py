"""Pairs of views that poses, known roughly, place near each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from scipy.spatial import KDTree

from sfmprep.coords import beyond_rounding
from sfmprep.pairing.pairs import Partners
from sfmprep.types import Float64, Index

_MAX_ANGLE_DEG = 90.0  # between optical axes: beyond it views share little
_ANGLE_DEG = 45.0  # counts as much as the distance of a typical camera from the middle
_NEAREST = 2 / 3  # of the neighbours; the rest are further ones, against drift
# by how much a turn moves the tip of an axis: at small angles, as much as it counts
_CHORD = np.degrees(1.0) / _ANGLE_DEG
_ALL_UP_TO = 2_000  # views; of more, each looks at some, so that time does not square
_LOOKED_AT = 1_000  # of all, drawn for each view
_TREE = 8  # times the neighbours: so many nearest ones are looked at besides


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
    away. Where none is, the nearest of all are taken. Of more than 2,000 views, the
    further ones are of 1,000 that are drawn for each.

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
    looks = _looks(np.hstack((centres / unit, forward * _CHORD)), num_neighbours)
    partners = {}
    for row, (others, stands_for) in enumerate(looks):
        cosine = (forward[others] @ forward[row]).clip(-1, 1)
        angle = np.degrees(np.arccos(cosine))
        away = np.linalg.norm(centres[others] - centres[row], axis=1) / unit
        order = np.argsort(away + angle / _ANGLE_DEG, kind="stable")
        facing = order[angle[order] <= _MAX_ANGLE_DEG]
        order = order if len(facing) < num_neighbours else facing
        ranks = _ranks(stands_for[order], num_neighbours)
        partners[names[row]] = [names[others[order[rank]]] for rank in ranks]
    return partners


def _looks(points: Float64, num_neighbours: int) -> Iterator[tuple[Index, Float64]]:
    """For each view the rows of others that it looks at, and how many each stands for.

    Of up to 2,000 views all; of more the nearest of `points` [N, 6], and for those
    further away some that are drawn for each view, so that none is asked by all.
    """
    count = len(points)
    if count <= _ALL_UP_TO:
        for row in range(count):
            yield np.delete(np.arange(count), row), np.ones(count - 1)
        return
    rng = np.random.default_rng(0)
    tree = KDTree(points)
    nearest = min(_TREE * num_neighbours, count - 1)
    for row, point in enumerate(points):
        _, found = tree.query(point, k=nearest + 1)
        drawn = rng.integers(count, size=_LOOKED_AT)
        near = np.setdiff1d(found, row)
        far = np.setdiff1d(drawn, np.append(found, row))
        each = (count - 1 - len(near)) / max(len(far), 1)
        stands_for = np.repeat((1.0, each), (len(near), len(far)))
        yield np.concatenate((near, far)), stands_for


def _ranks(stands_for: Float64, wanted: int) -> list[int]:
    """Which of the neighbours, nearest first, are taken: rows of `stands_for`."""
    if len(stands_for) <= wanted:
        return list(range(len(stands_for)))
    near = max(round(_NEAREST * wanted), 1)
    ahead = np.cumsum(stands_for)  # of these and those before them
    steps = np.geomspace(near + 1, ahead[-1], wanted - near + 1)[1:]
    further = np.searchsorted(ahead, np.round(steps - 1), side="right")
    last = len(stands_for) - 1
    return list(dict.fromkeys([*range(near), *further.clip(max=last).tolist()]))
