"""After mapping: every track measured from one image, as exactly as the matcher can.

A point that became a keypoint of another image (see `join.py`) may be off by
the radius, and two matches of one track may have started at different points of the
surface. So for each track one observation is chosen, that from which most others were
matched directly. It moves to where these matches start and the others to where they
end: they all see the same point of the surface now, and the next bundle adjustment uses
what was measured and not the names. Those that were not matched with it stay where they
are: without them tracks are 0.1 shorter, and poses on real scenes are no better.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pycolmap
from scipy.spatial import KDTree

from sfmprep.geometry.views import ModelArrays, Observations, Views
from sfmprep.pairing.pairs import Pairs
from sfmprep.semidense.join import chosen
from sfmprep.stores.tables import DenseStore
from sfmprep.types import Float64, Index


def remeasure(
    model: pycolmap.Reconstruction,
    arrays: ModelArrays,
    dense: DenseStore,
    *,
    radii: Mapping[str, float],
    tried: Pairs | None = None,
    max_move: float = 2.0,
) -> int:
    """Moves the keypoints of tracks, in the model, to where they were measured.

    Each keypoint is part of one track at most, so it may be moved. Poses and points
    stay: run a bundle adjustment afterwards, as `mapper.refine_model` does.

    Args:
        model: Changed in place. One without points is left as it is.
        arrays: Of this model.
        dense: The matches that its keypoints were made from.
        radii: By image name, pixels of the file: how far from a keypoint a match may
            start that is said to start there. It is `DenseConfig.radius` times the
            image's `join.network_scales`. Others are passed over.
        tried: The pairs whose matches count; None for all.
        max_move: A measurement further from the keypoint is not believed, in radii.

    Returns:
        How many keypoints moved.
    """
    views, observations = arrays.views, arrays.observations
    found = [
        direct
        for direct in _direct(views, observations, dense, radii, tried, max_move)
        if len(direct.start)
    ]
    if not found:
        return 0
    start = np.concatenate([direct.start for direct in found])
    end = np.concatenate([direct.end for direct in found])
    xy0 = np.concatenate([direct.xy0 for direct in found])
    xy1 = np.concatenate([direct.xy1 for direct in found])
    scores = np.concatenate([direct.scores for direct in found])

    # Two starts near one keypoint are two points of the surface.
    _, origin = np.unique(np.c_[start, xy0], axis=0, return_inverse=True)
    origin = origin.ravel()
    votes = np.bincount(origin, 1 + 1e-3 * scores)[origin]
    order = np.lexsort((origin, -votes, observations.point[start]))
    point = observations.point[start[order]]
    first = order[np.searchsorted(point, point)]  # the best of the row's point
    chosen = order[origin[order] == origin[first]]

    xy = observations.xy.copy()
    xy[start[chosen]] = xy0[chosen]
    xy[end[chosen]] = xy1[chosen]
    moved = np.flatnonzero((xy != observations.xy).any(axis=1))
    for row in moved.tolist():
        image = model.images[int(views.ids[observations.view[row]])]
        image.points2D[int(observations.keypoint[row])].xy = xy[row]
    return len(moved)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Direct:
    """Matches between observations of one point, of one ordered pair of images."""

    start: Index  # [M] rows of the observations
    end: Index  # [M]
    xy0: Float64  # [M, 2] where they were measured
    xy1: Float64  # [M, 2]
    scores: Float64  # [M]


def _direct(
    views: Views,
    observations: Observations,
    dense: DenseStore,
    radii: Mapping[str, float],
    tried: Pairs | None,
    max_move: float,
) -> Iterator[_Direct]:
    rows = observations.by_view(len(views))
    view_of = {name: view for view, name in enumerate(views.names)}
    trees = {view: KDTree(observations.xy[seen]) for view, seen in enumerate(rows)}
    # by point and view; one image may see a point twice, then the first counts
    keys = observations.point * len(views) + observations.view
    order = np.argsort(keys, kind="stable")
    wanted_pairs = chosen(dense.pairs(), tried)
    for (name0, name1), matches in dense.items():
        if (name0, name1) not in wanted_pairs:
            continue
        if not {name0, name1} <= view_of.keys() & radii.keys() or not len(matches):
            continue
        view0, view1 = view_of[name0], view_of[name1]
        if not len(rows[view0]) or not len(rows[view1]):
            continue
        distance, nearest = trees[view0].query(
            matches.xy0, distance_upper_bound=radii[name0] * (1 + 1e-6)
        )
        near = np.flatnonzero(np.isfinite(distance))
        start = rows[view0][nearest[near]]
        wanted = observations.point[start] * len(views) + view1
        place = np.minimum(np.searchsorted(keys, wanted, sorter=order), len(keys) - 1)
        end = order[place]
        moves = np.linalg.norm(matches.xy1[near] - observations.xy[end], axis=1)
        fits = (keys[end] == wanted) & (moves <= max_move * radii[name1])
        yield _Direct(
            start=start[fits],
            end=end[fits],
            xy0=matches.xy0[near[fits]].astype(np.float64),
            xy1=matches.xy1[near[fits]].astype(np.float64),
            scores=matches.scores[near[fits]].astype(np.float64),
        )
