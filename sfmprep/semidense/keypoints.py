"""The keypoints of one image that semi-dense matches have ends at.

The rules are those of `join.py`: a detector's keypoints, then the places where
matches start, then the places where those ends gather that are near neither.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
from scipy.spatial import KDTree

from sfmprep.stores.tables import DenseStore
from sfmprep.types import Float32, Float64, Index, Pair


@dataclass(frozen=True, kw_only=True, eq=False)
class Endpoints:
    """Where the matches of one image start and end."""

    starts: Float32  # [S, 2] unique
    start_scores: Float64  # [S] summed over the matches that start there
    ends: Float32  # [E, 2]
    end_scores: Float64  # [E]


def read_endpoints(name: str, pairs: Iterable[Pair], dense: DenseStore) -> Endpoints:
    """Reads the endpoints that ordered pairs have in one of their images."""
    starts, start_scores = [np.empty((0, 2), np.float32)], [np.empty(0, np.float32)]
    ends, end_scores = [np.empty((0, 2), np.float32)], [np.empty(0, np.float32)]
    for pair in pairs:
        found = dense.get(*pair)
        if pair[0] == name:
            starts.append(found.xy0)
            start_scores.append(found.scores)
        else:
            ends.append(found.xy1)
            end_scores.append(found.scores)
    unique, row = np.unique(np.concatenate(starts), axis=0, return_inverse=True)
    weights = np.concatenate(start_scores).astype(np.float64)
    sums = np.bincount(row.ravel(), weights, minlength=len(unique))
    return Endpoints(
        starts=unique,
        start_scores=sums.astype(np.float64),
        ends=np.concatenate(ends),
        end_scores=np.concatenate(end_scores).astype(np.float64),
    )


def add_keypoints(
    detected: Float32, found: Endpoints, *, radius: float, max_added: int
) -> tuple[Float32, Float32]:
    """The keypoints that endpoints add to those of a detector.

    Returns:
        Places [A, 2] and summed confidences [A] of at most `max_added`, best first.
    """
    own = found.starts[nearest(detected, found.starts, radius) < 0]
    known = np.concatenate((detected, own))
    free = nearest(known, found.ends, radius) < 0
    gathered = quantise(found.ends[free], found.end_scores[free], radius=radius)
    added = np.concatenate((own, gathered))

    points = np.concatenate((found.starts, found.ends))
    scores = np.concatenate((found.start_scores, found.end_scores))
    row = nearest(np.concatenate((detected, added)), points, radius) - len(detected)
    weights = np.bincount(row[row >= 0], scores[row >= 0], minlength=len(added))
    best = np.argsort(-weights, kind="stable")[:max_added]
    return added[best], weights[best].astype(np.float32)


def quantise(xy: Float32, scores: Float64, *, radius: float) -> Float32:
    """Gathers points [E, 2] in places [Q, 2] further apart than about `radius`.

    Each place is the mean, weighted by `scores`, of the points within the radius to
    which no other place is nearer.
    """
    if not len(xy):
        return np.empty((0, 2), np.float32)
    cell = np.floor(xy / radius).astype(np.int64)
    _, row = np.unique(cell, axis=0, return_inverse=True)
    centres, weights = _means(xy, scores, row.ravel())
    centres = centres[_best_apart(centres, weights, radius)]
    row = nearest(centres, xy, radius)
    # a centre may have lost all its points to others
    _, kept = np.unique(row[row >= 0], return_inverse=True)
    return _means(xy[row >= 0], scores[row >= 0], kept.ravel())[0]


def nearest(keypoints: Float32, xy: Float32, radius: float) -> Index:
    """The row [M] of the keypoint nearest to each point; -1 where all are further."""
    return nearest_in(KDTree(keypoints), xy, radius)


def nearest_in(tree: KDTree, xy: Float32, radius: float) -> Index:
    """As `nearest`, in a tree of the keypoints."""
    if not tree.n or not len(xy):
        return np.full(len(xy), -1, np.int64)
    distance, row = tree.query(xy, distance_upper_bound=radius * (1 + 1e-6))
    return np.where(np.isfinite(distance), row, -1).astype(np.int64)


def _means(xy: Float32, scores: Float64, row: Index) -> tuple[Float32, Float64]:
    """The weighted mean of the points of every row, and the sum of their weights."""
    count = int(row.max()) + 1
    # matches of confidence 0 exist after float16
    weight = np.maximum(scores, 1e-3)
    sums = np.bincount(row, weight, minlength=count)
    means = [np.bincount(row, weight * side, minlength=count) / sums for side in xy.T]
    return np.stack(means, axis=1).astype(np.float32), sums.astype(np.float64)


def _best_apart(xy: Float32, weights: Float64, radius: float) -> Index:
    """Rows of points, best first, none of which is within the radius of a better."""
    order = np.argsort(-weights, kind="stable")
    rank = np.empty(len(xy), np.int64)
    rank[order] = np.arange(len(xy))
    near = rank[KDTree(xy).query_pairs(radius, output_type="ndarray")].reshape(-1, 2)
    better, worse = near.min(axis=1), near.max(axis=1)
    open_, taken = np.ones(len(xy), bool), np.zeros(len(xy), bool)
    while open_.any():
        waits = np.zeros(len(xy), bool)
        waits[worse[open_[better]]] = True
        chosen = open_ & ~waits
        taken |= chosen
        open_ &= ~chosen
        open_[worse[chosen[better]]] = False
    return order[taken]
