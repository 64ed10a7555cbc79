"""Photographs taken in a row: what their order says of pairs and poses.

Next to each other in time means near each other in space. Where names are in the order
of time, a pair of neighbours that match well and that the poses contradict shows a
stretch of the row that was laid on a place that looks like its own.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from sfmprep.mapping.view_graph import strongest_edges
from sfmprep.pairing.pairs import natural_order
from sfmprep.types import Float64, Index, Mask

# Partners of an image, one of which the next image is, and of many images which share:
# where four sides look alike, as many partners are as strong. By chance it is one of
# these for a third of the images, and not for as many as have to be in order.
_STRONGEST = 5
_STRONGEST_SHARE = 1 / 3
_IN_ORDER = 0.8  # of the images have the next one among these
# Fewer matches of a pair fit the poses. Stricter than what contradicts a model: on the
# edge of a wrong overlay a third of a neighbour's matches may still fit.
_BROKEN = 0.5
_FITS = 0.75  # as many of them do
NEAR = 2  # places in the row, between views that tell how it goes on
_MIN_INLIERS = 30


def next_to_each_other(names: Sequence[str], index: Index) -> Mask:
    """Which pairs [P, 2] of rows of names follow each other, numbers in their order."""
    place = places(names)
    gap: Mask = np.abs(place[index[:, 0]] - place[index[:, 1]]) == 1
    return gap


def follow_in_time(names: Sequence[str], index: Index, num_inliers: Index) -> Mask:
    """Which pairs [P] are neighbours in time; none where names have no such order.

    Names are in the order of time if next to most images is among the five strongest
    partners of the one before, or the strongest third of all images.
    """
    follows = next_to_each_other(names, index)
    most = max(_STRONGEST, int(_STRONGEST_SHARE * len(names)))
    strong = follows & strongest_edges(index, num_inliers, most)
    if strong.sum() < _IN_ORDER * max(len(names) - 1, 1):
        return np.zeros(len(follows), bool)
    return follows


def breaks(
    names: Sequence[str], index: Index, num_inliers: Index, fitting: Float64
) -> Mask:
    """Which pairs [P] are neighbours in time that match well and do not fit the poses.

    Neighbours alone may be a wrong pair: of all pairs across that place of the row, of
    views at most two places apart, those that do not fit must have more inliers than
    those that do.

    Args:
        names: Of the views.
        index: Pairs of views [P, 2].
        num_inliers: [P]; 30 or more match well.
        fitting: [P] share 0..1 of their matches that fit the poses.
    """
    follows = follow_in_time(names, index, num_inliers)
    broken = follows & (num_inliers >= _MIN_INLIERS) & (fitting < _BROKEN)
    ends = np.sort(places(names)[index], axis=1)
    near = ends[:, 1] - ends[:, 0] <= NEAR
    said = np.where(fitting < _BROKEN, -num_inliers, num_inliers)
    said = np.where(near & ((fitting < _BROKEN) | (fitting >= _FITS)), said, 0)
    for row in np.flatnonzero(broken).tolist():
        first, second = ends[row]
        across = (ends[:, 0] <= first) & (ends[:, 1] >= second)
        broken[row] = said[across].sum() < 0
    return broken


def stretches(names: Sequence[str], index: Index, broken: Mask) -> Index:
    """Numbers [V], from 0 on, of the stretches of the row that breaks part.

    Args:
        names: Of the views.
        index: Pairs of views [P, 2].
        broken: [P] as `breaks` finds them.
    """
    place = places(names)
    ends = np.unique(place[index[broken]].min(axis=1, initial=len(names)))
    return np.searchsorted(ends, place, "left")


def places(names: Sequence[str]) -> Index:
    """Where each name [V] stands in the row, numbers in their order."""
    place_of = {name: place for place, name in enumerate(natural_order(names))}
    return np.array([place_of[name] for name in names], np.int64)
