"""How far two keypoints are from seeing one point, by the geometry of their images."""

from __future__ import annotations

import numpy as np

from sfmprep.geometry.views import Views
from sfmprep.types import Float64, Index


def epipolar_errors_px(
    views: Views, view0: Index, view1: Index, ray0: Float64, ray1: Float64
) -> Float64:
    """Distances [M] of matches from the epipolar lines that known poses give, pixels.

    The angle between the ray and the plane of the other ray and the baseline, times
    the focal length: the larger of both images. Infinite where the rays are on opposite
    sides of the baseline, where one is NaN, and without a baseline.

    Args:
        views: The cameras, of any model.
        view0: [M] rows of the views, or one row.
        view1: Likewise, of the other image.
        ray0: [M, 3] unit, world axes.
        ray1: [M, 3].
    """
    baseline = views.centres[view1] - views.centres[view0]
    plane0, plane1 = np.cross(baseline, ray0), np.cross(baseline, ray1)
    across = np.abs(np.einsum("mi,mi->m", ray0, plane1))
    with np.errstate(divide="ignore", invalid="ignore"):
        error0 = across / np.linalg.norm(plane1, axis=1) * views.focals[view0]
        error1 = across / np.linalg.norm(plane0, axis=1) * views.focals[view1]
    same_side = np.einsum("mi,mi->m", plane0, plane1) > 0
    errors: Float64 = np.where(same_side, np.maximum(error0, error1), np.inf)
    return errors


def errors_by_poses_px(
    views: Views, view0: int, view1: int, ray0: Float64, ray1: Float64
) -> Float64:
    """How far matches [M] are from fitting the poses of two views, pixels.

    The distance from the epipolar line, or from the place that the rotation alone gives
    where that is nearer: without a baseline there is no line. Infinite where a camera
    cannot see its keypoint.

    Args:
        views: The cameras, of any model.
        view0: Row of a view.
        view1: Row of another.
        ray0: [M, 3] unit, world axes.
        ray1: [M, 3].
    """
    first, second = np.full(len(ray0), view0), np.full(len(ray0), view1)
    sine = np.linalg.norm(np.cross(ray0, ray1), axis=1)
    focal = max(views.focals[view0], views.focals[view1])
    turned = np.arctan2(sine, np.einsum("mi,mi->m", ray0, ray1)) * focal
    to_line = epipolar_errors_px(views, first, second, ray0, ray1)
    return np.asarray(np.fmin(to_line, turned), np.float64)


def sampson_errors_px(fundamental: Float64, xy0: Float64, xy1: Float64) -> Float64:
    """Sampson's distances [M] of matches [M, 2] from x1^T F x0 = 0, pixels.

    To first order how far both keypoints together have to move (Hartley and Zisserman,
    Multiple View Geometry, 11.4.3); infinite at the epipoles.

    Args:
        fundamental: F [3, 3].
        xy0: Keypoints of the first image.
        xy1: Of the second.
    """
    one0, one1 = (np.pad(xy, ((0, 0), (0, 1)), constant_values=1) for xy in (xy0, xy1))
    line0, line1 = one1 @ fundamental, one0 @ fundamental.T
    across = np.abs(np.einsum("mi,mi->m", one0, line0))
    slope = np.linalg.norm(np.c_[line0[:, :2], line1[:, :2]], axis=1)
    errors = np.full(len(across), np.inf)
    np.divide(across, slope, out=errors, where=slope > 0)
    return errors
