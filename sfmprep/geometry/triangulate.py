"""Points from rays of known cameras, vectorised: where they meet, and how well.

All rays are unit vectors in world axes and poses are never changed. A point minimises
the squared distances to its rays, each divided by the distance to that camera: the
angles between the rays and the directions to the point, in pixels after multiplying
with the focal length. That is linear but for the distances, so a few rounds with those
of the round before give the least-squares point, and the matrix of the last round is
the inverse of its covariance at a noise of one pixel.
"""

from __future__ import annotations

import numpy as np

from sfmprep.geometry.views import Observations, Views
from sfmprep.types import Float64

_ROUNDS = 3
_ROWS, _COLUMNS = np.triu_indices(3)
_NEAREST = 1e-100  # a point at the very centre of a camera: its weight is finite
_RIDGE = 1e-12  # of the trace: parallel rays give a far point instead of an error
_BLOCK = 1 << 20  # products of rays at once


def triangulate(views: Views, observations: Observations) -> Float64:
    """The points [N, 3] that fit their rays best; far off where rays are parallel."""
    xyz: Float64 = np.empty((0, 3))
    distances: Float64 = np.ones(len(observations))
    ray, centres = observations.ray, views.centres[observations.view]
    nearest = centres - np.einsum("mi,mi->m", ray, centres)[:, None] * ray
    for _ in range(_ROUNDS if len(observations) else 0):
        weights = _weights(views, observations, distances)
        left = _information(observations, weights)
        left += _RIDGE * np.trace(left, axis1=1, axis2=2)[:, None, None] * np.eye(3)
        right = _sum_by_point(observations, weights[:, None] * nearest)
        xyz = np.asarray(np.linalg.solve(left, right[:, :, None])[:, :, 0], np.float64)
        distances = _distances(views, observations, xyz)
    return xyz


def relative_stddev(
    views: Views, observations: Observations, xyz: Float64, noise_px: float
) -> Float64:
    """How uncertain every point is [N], at this noise of keypoints and fixed poses.

    The standard deviation along the most uncertain axis, as a share of the distance to
    the nearest camera that sees the point; infinite where its rays are parallel.
    """
    if not len(observations):
        return np.empty(0)
    distances = _distances(views, observations, xyz)
    weights = _weights(views, observations, distances)
    information = np.linalg.eigvalsh(_information(observations, weights))[:, 0]
    nearest = np.minimum.reduceat(distances, observations.starts)
    precision = np.sqrt(np.maximum(information, 0)) * nearest
    stddev = np.full(len(precision), np.inf)
    np.divide(noise_px, precision, out=stddev, where=precision > 0)
    return stddev


def reprojection_errors(
    views: Views, observations: Observations, xyz: Float64
) -> Float64:
    """Pixels [M] between observation and projection; infinite behind the camera."""
    view = observations.view
    errors = np.full(len(observations), np.inf)
    offsets = xyz[observations.point] - views.centres[view]
    in_front = np.einsum("mi,mi->m", offsets, observations.ray) > 0
    for each, seen in enumerate(observations.by_view(len(views))):
        rows = seen[in_front[seen]]
        if not len(rows):
            continue
        in_camera = offsets[rows] @ views.rotations[each].T
        projected = np.asarray(views.cameras[each].img_from_cam(in_camera))
        errors[rows] = np.linalg.norm(projected - observations.xy[rows], axis=1)
    return np.where(np.isfinite(errors), errors, np.inf)


def largest_angles_deg(
    views: Views, observations: Observations, xyz: Float64
) -> Float64:
    """The largest angle [N] between two rays from a point to its cameras, degrees.

    0 where one camera sees it, or sees it from its very centre.
    """
    starts, counts = observations.starts, observations.counts()
    rays = views.centres[observations.view] - xyz[observations.point]
    rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-300)
    cosines = np.ones(len(starts))
    for length in np.unique(counts[counts > 1]).tolist():
        points = np.flatnonzero(counts == length)
        for block in np.array_split(points, len(points) * length**2 // _BLOCK + 1):
            tracks = rays[starts[block, None] + np.arange(length)]
            products = tracks @ tracks.swapaxes(1, 2)
            cosines[block] = products.min(axis=(1, 2), initial=1)
    angles: Float64 = np.degrees(np.arccos(np.clip(cosines, -1, 1)))
    return angles


def _distances(views: Views, observations: Observations, xyz: Float64) -> Float64:
    offsets = xyz[observations.point] - views.centres[observations.view]
    distances: Float64 = np.linalg.norm(offsets, axis=1)
    return distances


def _weights(views: Views, observations: Observations, distances: Float64) -> Float64:
    """Squared pixels [M] that a step of one unit across the ray makes."""
    focals = views.focals[observations.view]
    weights: Float64 = (focals / np.maximum(distances, _NEAREST)) ** 2
    return weights


def _information(observations: Observations, weights: Float64) -> Float64:
    """The sums [N, 3, 3] of the planes across the rays, times their weights."""
    ray = observations.ray
    # Six columns and not nine: this is most of the time of triangulating.
    terms = weights[:, None] * ray[:, _ROWS] * ray[:, _COLUMNS]
    sums = np.empty((observations.num_points, 3, 3))
    sums[:, _ROWS, _COLUMNS] = -_sum_by_point(observations, terms)
    sums[:, _COLUMNS, _ROWS] = sums[:, _ROWS, _COLUMNS]
    # Rays have length 1, so the trace of their squares is the sum of the weights.
    sums -= np.trace(sums, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    return sums


def _sum_by_point(observations: Observations, values: Float64) -> Float64:
    sums: Float64 = np.add.reduceat(values, observations.starts, axis=0)
    return sums
