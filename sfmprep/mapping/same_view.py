"""What two photographs from one place should have in common and do not.

Points of a model exist only where something was matched, so a model in which one place
was laid on another holds what both share, and of the rest only what a third view saw as
well. Keypoints are there without that. Where poses put two cameras next to each other,
turned the same way, both see the same; a region full of keypoints in which not a single
one is found in the other, while elsewhere most are, shows that it is another place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache

import numpy as np
from scipy.spatial import cKDTree

from sfmprep.geometry.epipolar import errors_by_poses_px
from sfmprep.geometry.views import ModelArrays
from sfmprep.types import Float64, Index, Mask

_MAX_ANGLE_DEG = 8.0  # between the rays to a place, for both to see the same
_MAX_SCALE = 1.3
_MARGIN = 0.03  # of the image
_NEAREST = 0.05  # share of the points of a view that are nearer than its near end
_NEAR = 0.5  # of that: keypoints may lie on what is nearer than all points
_FITS_PX = 8.0
_MIN_KEYPOINTS = 40
_CHANCE = 1e-3  # that a region of matched things has no match by chance
_MIN_REGIONS = 20  # fewer that can be told from chance tell nothing
_AREA_OF = 8  # keypoints whose extent is the area that one of them stands for
_MAX_CACHED = 512


class SameView:
    """Asks of pairs of views that a model puts next to each other.

    Args:
        arrays: Of the model.
        keypoints: All keypoints [K, 2] of a view, by its row.
    """

    def __init__(
        self, arrays: ModelArrays, keypoints: Callable[[int], Float64]
    ) -> None:
        self._views, self._keypoints = arrays.views, keypoints
        self._near = _nearest_depths(arrays)
        self.rays = lru_cache(_MAX_CACHED)(self._rays)
        self._areas = lru_cache(_MAX_CACHED)(self._areas_of)

    def are_close(self, index: Index) -> Mask:
        """Which pairs of views [P, 2] are next to each other; others are not asked.

        Those whose cameras are not further apart than a scale of 1.3 allows.
        """
        one, two = index.T
        centres = self._views.centres
        apart = np.linalg.norm(centres[one] - centres[two], axis=1)
        near = np.maximum(self._near[one], self._near[two])
        close: Mask = apart < (_MAX_SCALE - 1) * near
        return close

    def missing(self, view: int, other: int, matches: Index) -> float:
        """Share, 0..1, of what both should see of which nothing is found in the other.

        As large as the image area that keypoints stand for; of both directions the
        smaller, since what one view misses may be hidden. NaN where too little is to be
        seen, or so little of it is found that a region without any says nothing.

        Args:
            view: Row of a view.
            other: Row of another.
            matches: Keypoints of both [M, 2], verified or not.
        """
        errors = errors_by_poses_px(
            *(self._views, view, other),
            *(self.rays(view)[matches[:, 0]], self.rays(other)[matches[:, 1]]),
        )
        fitting = matches[errors < _FITS_PX]
        there = self._missing(view, other, fitting[:, 0])
        if math.isnan(there):
            return there
        back = self._missing(other, view, fitting[:, 1])
        return float(np.minimum(there, back))

    def _missing(self, view: int, other: int, matched: Index) -> float:
        expected = np.flatnonzero(self._expected(view, other))
        if len(expected) < _MIN_KEYPOINTS:
            return math.nan
        found = np.isin(expected, matched)
        share = min(float(found.mean()), 0.999)
        if share == 0:
            return math.nan
        # so many together without a match are not there by chance
        together = math.ceil(math.log(_CHANCE) / math.log1p(-share))
        if together * _MIN_REGIONS > len(expected):
            return math.nan
        xy, areas = self._keypoints(view)[expected], self._areas(view)[expected]
        others = ~found  # what is found is not missing
        near = cKDTree(xy, balanced_tree=False).query(xy[others], max(together, 2))[1]
        absent = ~found[near].any(axis=1)
        return float(areas[others][absent].sum() / areas.sum())

    def _expected(self, view: int, other: int) -> Mask:
        """Keypoints [K] that another view sees as well, however far they are."""
        views, camera = self._views, self._views.cameras[other]
        rays = self.rays(view)
        depth = rays @ views.rotations[view][2]
        size = np.array([camera.width, camera.height], np.float64)
        with np.errstate(invalid="ignore", divide="ignore"):
            near = rays * (self._near[view] / depth)[:, None]
            good = depth > 0
            good &= self._inside(rays, other, size)  # infinitely far
            moved = near + views.centres[view] - views.centres[other]
            good &= self._inside(moved, other, size)
            far0, far1 = (np.linalg.norm(way, axis=1) for way in (near, moved))
            cosine = np.einsum("ni,ni->n", near, moved) / (far0 * far1)
            good &= cosine > math.cos(math.radians(_MAX_ANGLE_DEG))
            scale = far0 / far1 * (views.focals[other] / views.focals[view])
            good &= (scale < _MAX_SCALE) & (scale > 1 / _MAX_SCALE)
        return np.asarray(good, bool)

    def _inside(self, rays: Float64, view: int, size: Float64) -> Mask:
        local = rays @ self._views.rotations[view].T
        local[~(local[:, 2] > 0)] = np.nan
        xy = np.asarray(self._views.cameras[view].img_from_cam(local), np.float64)
        xy = xy.reshape(-1, 2)
        within = (xy > _MARGIN * size) & (xy < (1 - _MARGIN) * size)
        return np.asarray(within.all(axis=1), bool)

    def _rays(self, view: int) -> Float64:
        return self._views.rays(view, self._keypoints(view))

    def _areas_of(self, view: int) -> Float64:
        """How much of the image each keypoint [K] stands for; the rarest not more."""
        xy = self._keypoints(view)
        if len(xy) <= _AREA_OF:
            return np.ones(len(xy))
        extent = cKDTree(xy).query(xy, [_AREA_OF + 1])[0][:, 0] ** 2
        return np.asarray(np.minimum(extent, np.percentile(extent, 95)), np.float64)


def _nearest_depths(arrays: ModelArrays) -> Float64:
    """By view [V], a depth that next to nothing is nearer than; 0 without points."""
    views, seen = arrays.views, arrays.observations
    ahead = arrays.xyz[seen.point] - views.centres[seen.view]
    depth = np.einsum("mi,mi->m", ahead, views.rotations[seen.view, 2])
    return np.array(
        [
            _NEAR * np.quantile(depth[rows], _NEAREST).clip(0) if len(rows) else 0.0
            for rows in seen.by_view(len(views))
        ],
        np.float64,
    ).reshape(-1)
