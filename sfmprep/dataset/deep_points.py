"""Points of the depths of images: initial points where no feature was."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from sfmprep.geometry.pointmaps import Depths
from sfmprep.geometry.views import Views
from sfmprep.types import Float64, Index, Mask

_NEIGHBOURS = 6  # views nearest to one that its points are compared with
_SAME_DEPTH = 0.05  # share by which depths of one point differ
_THROUGH = 0.1  # share of the depth that a point may hang before what is seen there


@dataclass(frozen=True, kw_only=True, eq=False)
class DeepPoints:
    """Points that one view each tells."""

    xyz: Float64  # [N, 3] world
    view: Index  # [N] rows of the views
    xy: Float64  # [N, 2] where it sees them, COLMAP pixels of the file

    def select(self, kept: Mask) -> DeepPoints:
        """Some of them."""
        return DeepPoints(xyz=self.xyz[kept], view=self.view[kept], xy=self.xy[kept])


def deep_points(views: Views, depths: Mapping[str, Depths]) -> DeepPoints:
    """The points of depths that another view confirms and none contradicts.

    Confirmed is what lies where another view has the same depth, to a twentieth; it is
    contradicted where another looks through it, at what is further away by a tenth.
    The other views are the six nearest ones that have depths.

    Args:
        views: Of the model, undistorted or not.
        depths: By image, in its units; views without any give no points.
    """
    rows = [row for row, name in enumerate(views.names) if name in depths]
    rows = [row for row in rows if len(depths[views.names[row]].depth)]
    found = DeepPoints(
        xyz=np.empty((0, 3)), view=np.empty(0, np.int64), xy=np.empty((0, 2))
    )
    if len(rows) < 2:
        return found
    world = {row: _world(views, row, depths[views.names[row]]) for row in rows}
    trees = {row: cKDTree(depths[views.names[row]].xy) for row in rows}
    centres = views.centres[rows]
    count = min(_NEIGHBOURS + 1, len(rows))
    near = cKDTree(centres).query(centres, k=count)[1].reshape(len(rows), -1)
    parts = []
    for item, row in enumerate(rows):
        agreed = np.zeros(len(world[row]), np.int64)
        refused = np.zeros(len(world[row]), np.int64)
        for other in (rows[k] for k in near[item].tolist()):
            if other != row:
                ratio = _depth_ratio(
                    views, other, trees[other], depths[views.names[other]], world[row]
                )
                agreed += np.abs(ratio - 1) <= _SAME_DEPTH
                refused += ratio < 1 - _THROUGH
        kept = (agreed > 0) & (refused == 0)
        own = depths[views.names[row]]
        parts.append((world[row][kept], np.full(int(kept.sum()), row), own.xy[kept]))
    xyz, view, xy = (np.concatenate(column) for column in zip(*parts, strict=True))
    return DeepPoints(xyz=xyz, view=view, xy=xy)


def _world(views: Views, row: int, depths: Depths) -> Float64:
    """Where the pixels of a view are in the world; NaN where it sees nothing."""
    rays = views.rays(row, depths.xy)
    along = rays @ views.rotations[row][2]
    scale = np.where(along > 0, depths.depth / np.where(along > 0, along, 1), np.nan)
    points: Float64 = views.centres[row] + scale[:, None] * rays
    return points


def _depth_ratio(
    views: Views, row: int, tree: cKDTree, depths: Depths, xyz: Float64
) -> Float64:
    """The depth of points in a view over what it tells there; NaN where it does not."""
    there = (xyz - views.centres[row]) @ views.rotations[row].T
    ratio = np.full(len(xyz), np.nan)
    ahead = np.flatnonzero(there[:, 2] > 0)
    if not len(ahead):
        return ratio
    place = np.asarray(views.cameras[row].img_from_cam(there[ahead]), np.float64)
    seen = np.isfinite(place).all(axis=1)
    step = np.median(tree.query(tree.data[:100], k=[min(2, tree.n)])[0])
    away, nearest = tree.query(place[seen], distance_upper_bound=max(step, 1e-6))
    hit = np.isfinite(away)
    rows = ahead[seen][hit]
    ratio[rows] = there[rows, 2] / depths.depth[nearest[hit]]
    return ratio
