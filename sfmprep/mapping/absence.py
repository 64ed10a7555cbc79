"""What a view should see by the model and does not: the mark of a wrong overlay.

Where two look-alikes are laid on each other, what they share is found in the images of
both, and what tells them apart in the images of one side alone. Points that one view of
a verified pair sees are projected into the other; around some of them nothing at all is
found there again, though the other sees the place from the same side, just as large.
After Zach, Irschara and Bischof, What can missing correspondences tell us about 3D
structure and motion?, CVPR 2008, and Heinly, Dunn and Frahm, Correcting for duplicate
scene structure in sparse 3D reconstruction, ECCV 2014.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial import cKDTree

from sfmprep.geometry.views import ModelArrays
from sfmprep.types import Float64, Index, Mask

_MIN_OBSERVATIONS = 2  # of other views than the one asked
_MAX_ANGLE_DEG = 20.0
_BEYOND_DEG = 5.0  # outside of the directions from which a point is seen
_MAX_SCALE = 1.6
_MARGIN = 0.03  # of the image
_NEIGHBOURS = 6  # expected points around one that are looked at together
_OCCLUSION_CELLS = 16  # across and down
_BEHIND = 1.1  # times the depth of what is seen there


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """What one view sees of what another should share with it."""

    num_expected: int  # points that it should see
    found: Index  # rows of those that are found
    num_absent: int  # of the others, those around which none is found


class Visibility:
    """Asks of pairs of views what each should see, from one model.

    Args:
        arrays: Of the model.
    """

    def __init__(self, arrays: ModelArrays) -> None:
        views, observations = arrays.views, arrays.observations
        self._views, self._xyz = views, arrays.xyz
        self._rows = observations.by_view(len(views))
        self._point = observations.point
        self._keypoint = observations.keypoint
        self._counts = observations.counts()
        self._axes, self._cones = _cones(arrays)
        self._depths = [self._nearest(view) for view in range(len(views))]

    def seen(self, view: int, other: int, matched: Index, at: Float64) -> Seen:
        """How much of what `view` sees is found in `other`, among what should be.

        Nothing is absent where the pair has matches, whether or not they are points
        that others see: tracks may be short, of matchers that find more than others.

        Args:
            view: Row of a view.
            other: Row of another.
            matched: Keypoints [M] of `view` that are matched with some of `other`.
            at: Where these are in `other`, pixels [M, 2].
        """
        rows = self._rows[view]
        points, first = np.unique(self._point[rows], return_index=True)
        mine = np.isin(points, self._points(other), assume_unique=True)
        mine |= np.isin(self._keypoint[rows][first], matched)
        points_used = self._counts[points] - mine > _MIN_OBSERVATIONS - 1
        points, mine = points[points_used], mine[points_used]
        xy, good = self._expected(points, view, other)
        xy, mine = xy[good], mine[good]
        if not len(xy):
            return Seen(num_expected=0, found=points[good], num_absent=0)
        others = xy[~mine]  # what is found is not absent
        places = np.concatenate([others, xy[mine], at])
        count = min(_NEIGHBOURS + 1, len(places))
        _, around = cKDTree(places, balanced_tree=False).query(others, count)
        absent = (around.reshape(len(others), count) < len(others)).all(axis=1)
        return Seen(
            num_expected=len(xy),
            found=points[good][mine],
            num_absent=int(absent.sum()),
        )

    def _points(self, view: int) -> Index:
        return np.unique(self._point[self._rows[view]])

    def _projected(self, points: Index, view: int) -> tuple[Float64, Float64]:
        """Pixels [N, 2] and depths [N]; NaN behind the camera."""
        views = self._views
        local = (self._xyz[points] - views.centres[view]) @ views.rotations[view].T
        local[local[:, 2] <= 0] = np.nan
        xy = views.cameras[view].img_from_cam(local)
        return np.asarray(xy, np.float64).reshape(-1, 2), local[:, 2]

    def _expected(self, points: Index, view: int, other: int) -> tuple[Float64, Mask]:
        """Where points lie in another view, and which of them it should see."""
        views, camera = self._views, self._views.cameras[other]
        ray0 = self._xyz[points] - views.centres[view]
        ray1 = self._xyz[points] - views.centres[other]
        far0, far1 = np.linalg.norm(ray0, axis=1), np.linalg.norm(ray1, axis=1)
        cosine = np.einsum("ni,ni->n", ray0, ray1) / (far0 * far1)
        beyond = np.einsum("ni,ni->n", self._axes[points], ray1) / far1
        cone = (self._cones[points] + np.radians(_BEYOND_DEG)).clip(max=np.pi)
        scale = far0 / far1 * (views.focals[other] / views.focals[view])
        xy, depth = self._projected(points, other)
        size = np.array([camera.width, camera.height], np.float64)
        with np.errstate(invalid="ignore"):
            good = cosine > np.cos(np.radians(_MAX_ANGLE_DEG))
            good &= beyond > np.cos(cone)
            good &= (scale < _MAX_SCALE) & (scale > 1 / _MAX_SCALE)
            good &= (xy > _MARGIN * size).all(axis=1)
            good &= (xy < (1 - _MARGIN) * size).all(axis=1)
        cell = self._cell(np.where(good[:, None], xy, 0), other)
        good &= ~(depth > _BEHIND * self._depths[other][cell])
        return xy, good

    def _cell(self, xy: Float64, view: int) -> Index:
        camera = self._views.cameras[view]
        steps = xy / (camera.width, camera.height) * _OCCLUSION_CELLS
        column, row = steps.astype(np.int64).clip(0, _OCCLUSION_CELLS - 1).T
        return np.asarray(row * _OCCLUSION_CELLS + column, np.int64)

    def _nearest(self, view: int) -> Float64:
        """By cell of a view, the depth of the nearest point that it sees there."""
        nearest = np.full(_OCCLUSION_CELLS**2, np.inf)
        xy, depth = self._projected(self._points(view), view)
        good = np.isfinite(xy).all(axis=1)
        np.minimum.at(nearest, self._cell(xy[good], view), depth[good])
        return nearest


def _cones(arrays: ModelArrays) -> tuple[Float64, Float64]:
    """Mean directions [N, 3] from which points are seen, and how wide [N], radians.

    Towards the point; an axis is 0 where views on opposite sides see it.
    """
    observations = arrays.observations
    point = observations.point
    rays = arrays.xyz[point] - arrays.views.centres[observations.view]
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    count = len(arrays.xyz)
    axes: Float64 = np.zeros((count, 3))
    for column, part in enumerate(rays.T):
        axes[:, column] = np.bincount(point, part, count)
    axes /= np.maximum(np.linalg.norm(axes, axis=1, keepdims=True), 1e-9)
    cosine = np.einsum("mi,mi->m", axes[point], rays).clip(-1, 1)
    widths = np.zeros(len(axes))
    np.maximum.at(widths, point, np.arccos(cosine))
    return axes, widths
