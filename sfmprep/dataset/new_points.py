"""Points of matches that fit the poses and have no point yet."""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from sfmprep.config import SeedConfig
from sfmprep.dataset.support import (
    Points,
    concatenated,
    measured,
    nothing,
    refused_by,
    scaled_errors,
)
from sfmprep.geometry.tracks import Keypoints, Links, link_tracks
from sfmprep.geometry.triangulate import triangulate
from sfmprep.geometry.views import Observations, Views
from sfmprep.types import Float64, Index, Mask

_BLOCK_OBSERVATIONS = 1 << 18
_MAX_REFITS = 4  # observations that a track may lose before it is given up
_MAX_EXTENSIONS = 3  # links from a point to a keypoint that joins it
_NUM_BESIDE = 8
_BEYOND = 1.1  # times the range of distances


def owners(keypoints: Keypoints, points: Points) -> Index:
    """The point [K] that every keypoint sees, -1 for none."""
    owner = np.full(len(keypoints), -1, np.int64)
    observations = points.observations
    owner[keypoints.offsets[observations.view] + observations.keypoint] = (
        observations.point
    )
    return owner


def join_keypoints(
    views: Views,
    scales: Float64,
    keypoints: Keypoints,
    links: Links,
    owner: Index,
    xyz: Float64,
    max_error_px: float,
) -> Index:
    """Gives keypoints that are linked to a point and fit it to that point.

    Of several keypoints of one image the closest joins; `owner` is updated.

    Returns:
        The keypoints that joined.
    """
    joined = [np.empty(0, np.int64)]
    for _ in range(_MAX_EXTENSIONS):
        first, second = links.ends.astype(np.int64).T
        one = (owner[first] >= 0) != (owner[second] >= 0)
        first, second = first[one], second[one]
        keypoint = np.where(owner[first] < 0, first, second)
        point = np.maximum(owner[first], owner[second])
        candidates = keypoints.observations(keypoint, point)
        errors = scaled_errors(views, scales, candidates, xyz)
        order = np.argsort(errors, kind="stable")
        order = order[errors[order] <= max_error_px]
        place = point * len(views) + candidates.view
        has = np.flatnonzero(owner >= 0)
        order = order[
            ~np.isin(place[order], owner[has] * len(views) + keypoints.view(has))
        ]
        for value in (keypoint, place):
            _, best = np.unique(value[order], return_index=True)
            order = order[np.sort(best)]
        if not len(order):
            break
        owner[keypoint[order]] = point[order]
        joined.append(keypoint[order])
    return np.concatenate(joined)


def new_points(
    views: Views,
    scales: Float64,
    keypoints: Keypoints,
    links: Links,
    noise: float,
    config: SeedConfig,
) -> Points:
    """Triangulates what the links join, and keeps what meets the thresholds."""
    keypoint, track = link_tracks(links, keypoints)
    found = [nothing()]
    start = 0
    while start < len(track):
        last = track[min(start + _BLOCK_OBSERVATIONS, len(track)) - 1]
        stop = int(np.searchsorted(track, last, side="right"))
        observations = keypoints.observations(
            keypoint[start:stop], track[start:stop] - track[start]
        )
        points = _fitted(views, scales, observations, config.max_error_px)
        refused = refused_by(views, points, noise, config)
        found.append(points.select(~np.any(list(refused.values()), axis=0)))
        start = stop
    return concatenated(found)


def _fitted(
    views: Views, scales: Float64, observations: Observations, max_error_px: float
) -> Points:
    """Points from tracks, without the observations that do not fit, worst first."""
    observations = observations.select(np.all(np.isfinite(observations.ray), axis=1))
    found = []
    for _ in range(_MAX_REFITS + 1):
        alone = observations.counts() < 2
        observations = observations.select(~alone[observations.point])
        if not len(observations):
            break
        xyz = triangulate(views, observations)
        errors = scaled_errors(views, scales, observations, xyz)
        largest = np.maximum.reduceat(errors, observations.starts)
        fits = largest <= max_error_px
        found.append(measured(views, scales, observations, xyz).select(fits))
        worst = errors == largest[observations.point]
        observations = observations.select(~(fits[observations.point] | worst))
    return concatenated([nothing(), *found])


def among_neighbours(views: Views, old: Points, new: Points) -> Mask:
    """Which new points are no nearer and no further than what is beside them.

    A wrong match on the epipolar line gives a point at any depth, and nothing
    contradicts it where only two images see it. So in every image its distance must be
    within the range of those of the nearest points that the mapper found in three or
    more. Images with too few of these are not asked.
    """
    kept = np.ones(len(new), bool)
    long = old.observations.counts()[old.observations.point] > 2
    sure, doubtful = old.observations.select(long), new.observations
    sure_xyz = old.xyz[old.observations.counts() > 2]
    sure_rows, doubtful_rows = sure.by_view(len(views)), doubtful.by_view(len(views))
    for view, (own, asked) in enumerate(zip(sure_rows, doubtful_rows, strict=True)):
        if len(own) < _NUM_BESIDE or not len(asked):
            continue
        centre = views.centres[view]
        known = np.linalg.norm(sure_xyz[sure.point[own]] - centre, axis=1)
        distances = np.linalg.norm(new.xyz[doubtful.point[asked]] - centre, axis=1)
        _, beside = cKDTree(sure.xy[own]).query(doubtful.xy[asked], _NUM_BESIDE)
        nearest, furthest = known[beside].min(axis=1), known[beside].max(axis=1)
        kept[doubtful.point[asked]] &= (distances >= nearest / _BEYOND) & (
            distances <= furthest * _BEYOND
        )
    return kept
