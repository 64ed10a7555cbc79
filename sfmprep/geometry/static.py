"""Whether what several views see along a ray can be one point that stands still."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sfmprep.geometry.views import Views
from sfmprep.types import Float32, Float64, Mask

_WORST = 2.0  # tolerances, beyond which it is no matter how far something is off
_FAR = 1e4  # distance of points at infinity, in baselines


@dataclass(frozen=True, kw_only=True, eq=False)
class Seen:
    """Where another view sees the content of pixels."""

    view: int  # row of the views
    rays: Float64  # [N, 3] unit, world axes
    is_valid: Mask  # [N] whether it is known
    tolerance: Float64  # [N] radians


@dataclass(frozen=True, kw_only=True, eq=False)
class Explained:
    """How well one still point explains what is seen of each pixel."""

    # [N] 0..1: mean error of the best point; nan for too few views that fit one
    misfit: Float32
    distance: Float32  # [N] of that point from the view


def explain(
    views: Views, view: int, rays: Float64, others: Sequence[Seen], *, min_views: int
) -> Explained:
    """Finds the still point on each ray that agrees with most of the other views.

    Every other view in turn says how far away it is, and the rest are asked. A point
    that is in front of no view, or of two views only, explains nothing.

    Args:
        views: The cameras.
        view: Row of the view whose pixels these are.
        rays: [N, 3] unit, world axes, of its pixels.
        others: What other views see.
        min_views: Of these that have to be valid for a pixel to be judged; fewer only
            tell that a pixel is as far off as can be.
    """
    centre = views.centres[view]
    num_valid = np.sum([seen.is_valid for seen in others], axis=0, dtype=np.int64)
    best = np.full(len(rays), np.inf)
    distance = np.full(len(rays), np.nan)
    for proposer in others:
        proposed = _distances(views, centre, rays, proposer)
        points = centre + proposed[:, None] * rays
        total = np.zeros(len(rays))
        for seen in others:
            error = _errors(views.centres[seen.view], points, seen.rays)
            misfit = np.minimum(error / seen.tolerance, _WORST) / _WORST
            total += np.where(seen.is_valid, misfit, 0)
        total = np.where(proposer.is_valid & (proposed > 0), total, np.inf)
        better = total < best
        best, distance = (
            np.where(better, total, best),
            np.where(better, proposed, distance),
        )
    with np.errstate(invalid="ignore", divide="ignore"):
        misfit = np.where(np.isfinite(best), best / num_valid, 1)
    # few views fit some point or other, but where even they fit none, none is there
    few = num_valid < min_views
    misfit[few & ((misfit < 1) | (num_valid == 0))] = np.nan
    return Explained(
        misfit=misfit.astype(np.float32), distance=distance.astype(np.float32)
    )


def _distances(views: Views, centre: Float64, rays: Float64, seen: Seen) -> Float64:
    """How far along each ray it is nearest to the other view's ray; far if behind."""
    baseline = views.centres[seen.view] - centre
    along = np.einsum("ni,ni->n", rays, seen.rays)
    sine2 = 1 - along**2
    here, there = rays @ baseline, seen.rays @ baseline
    far = _FAR * float(np.linalg.norm(baseline))
    with np.errstate(invalid="ignore", divide="ignore"):
        found = (here - along * there) / sine2
        is_behind = along * found - there < 0  # of the other view
    ok = np.isfinite(found) & (found > 0) & (found < far) & ~is_behind
    return np.where(ok, found, far)


def _errors(centre: Float64, points: Float64, rays: Float64) -> Float64:
    """Angles between rays and the directions of points, radians, up to 1 or so."""
    direction = points - centre
    direction /= np.linalg.norm(direction, axis=1, keepdims=True)
    error: Float64 = np.linalg.norm(direction - rays, axis=1)
    return error
