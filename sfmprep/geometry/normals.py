"""How the surface lies around the points of a model: normals and distances."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from sfmprep.geometry.views import ModelArrays
from sfmprep.types import Float32, Float64, Ids, Index

_NUM_NEIGHBOURS = 12
_MIN_NEIGHBOURS = 3  # that a plane needs, with the point itself
_MIN_WIDTH = 1e-6  # of a plane's second axis to its first: less is a line
_NUM_NEAREST = 3
_SCALE_RANGE = (0.01, 10.0)  # times the median, both as shares of the distance
_LONE_SCALE = 0.01  # of the distance, where there is no neighbour at all
_BLOCK = 1 << 16


@dataclass(frozen=True, kw_only=True, eq=False)
class SurfaceShapes:
    """How the surface lies at every point, in the order of the point ids."""

    point_ids: Ids  # [N] rising
    normals: Float32  # [N, 3] unit, towards the cameras that see the point
    scales: Float32  # [N] world units, above 0


def surface_shapes(arrays: ModelArrays) -> SurfaceShapes:
    """Fits a plane to the neighbours of every point, and measures their distance.

    A normal is the thinnest axis of a point and its 12 nearest neighbours, turned to
    the side that its cameras are on; where these lie on a line, it is the direction to
    the cameras. A scale is the root mean square distance to the three nearest
    neighbours, with which 3DGS starts its Gaussians (Kerbl et al., SIGGRAPH 2023); as a
    share of the distance to the nearest camera it is held between 0.01 and 10 times
    its median, because one lone point would else begin as a wall.

    Returns:
        One row a point that a registered image sees; none for a model without points.
    """
    xyz = arrays.xyz
    to_cameras, distances = _cameras(arrays)
    normals = to_cameras.copy()
    scales = np.zeros(len(xyz))
    tree = cKDTree(xyz)
    count = min(_NUM_NEIGHBOURS + 1, len(xyz))
    for start in range(0, len(xyz) if count > 1 else 0, _BLOCK):
        rows = slice(start, start + _BLOCK)
        lengths, neighbours = tree.query(xyz[rows], count)
        # The nearest is the point itself, or one at the same place.
        nearest = lengths[:, 1 : _NUM_NEAREST + 1]
        scales[rows] = np.sqrt((nearest**2).mean(axis=1))
        if count > _MIN_NEIGHBOURS:
            normals[rows] = _normals(xyz[neighbours], to_cameras[rows])
    return SurfaceShapes(
        point_ids=arrays.point_ids,
        normals=normals.astype(np.float32),
        scales=_held(scales, distances).astype(np.float32),
    )


def _cameras(arrays: ModelArrays) -> tuple[Float64, Float64]:
    """The mean direction [N, 3] to the cameras, and the distance [N] to the nearest."""
    observations = arrays.observations
    offsets = arrays.views.centres[observations.view] - arrays.xyz[observations.point]
    lengths = np.maximum(np.linalg.norm(offsets, axis=1), 1e-300)
    starts: Index = observations.starts
    if not len(starts):
        return np.empty((0, 3)), np.empty(0)
    directions = offsets / lengths[:, None]
    mean = np.add.reduceat(directions, starts, axis=0)
    size = np.linalg.norm(mean, axis=1, keepdims=True)
    # Cameras all around cancel each other out: then the first one tells the side.
    mean = np.where(size > 1e-6, mean / np.maximum(size, 1e-300), directions[starts])
    return mean, np.minimum.reduceat(lengths, starts)


def _normals(groups: Float64, to_cameras: Float64) -> Float64:
    """The normals [N, 3] of groups [N, K, 3] of points."""
    centred = groups - groups.mean(axis=1, keepdims=True)
    spread, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", centred, centred))
    flat = spread[:, 1] > _MIN_WIDTH**2 * spread[:, 2]
    normals = np.where(flat[:, None], axes[:, :, 0], to_cameras)
    away = np.einsum("ni,ni->n", normals, to_cameras) < 0
    normals[away] *= -1
    return normals


def _held(scales: Float64, distances: Float64) -> Float64:
    """The scales within a range around their median, and above 0."""
    if not len(scales):
        return scales
    shares = scales / distances
    typical = float(np.median(shares[shares > 0])) if (shares > 0).any() else 0.0
    low, high = (np.array(_SCALE_RANGE) * typical).tolist()
    shares = (
        np.clip(shares, low, high) if typical else np.full(len(shares), _LONE_SCALE)
    )
    held: Float64 = shares * distances
    return held
