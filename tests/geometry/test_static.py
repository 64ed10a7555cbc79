"""Whether several views see one point that stands still."""

from __future__ import annotations

import numpy as np
import pycolmap

from sfmprep.geometry.static import Seen, explain
from sfmprep.geometry.views import Views

CENTRES = np.array([(0.0, 0, 0), (0.4, 0.1, 0), (-0.4, 0.05, 0.1), (0.8, -0.2, 0.1)])


def views() -> Views:
    """Four cameras side by side."""
    camera = pycolmap.Camera(
        model="SIMPLE_PINHOLE", width=640, height=480, params=[600, 320, 240]
    )
    return Views(
        ids=np.arange(4),
        names=("a", "b", "c", "d"),
        cameras=(camera,) * 4,
        rotations=np.stack([np.eye(3)] * 4),
        centres=CENTRES,
        focals=np.full(4, 600.0),
    )


def towards(points: np.ndarray, view: int) -> np.ndarray:
    rays = points - CENTRES[view]
    return rays / np.linalg.norm(rays, axis=1, keepdims=True)


def seen_at(points: np.ndarray, view: int, is_valid: bool = True) -> Seen:
    """What a view sees of points [N, 3], known to a pixel."""
    return Seen(
        view=view,
        rays=towards(points, view),
        is_valid=np.full(len(points), is_valid),
        tolerance=np.full(len(points), 1 / 600),
    )


POINTS = np.random.default_rng(0).uniform((-1, -1, 3), (1, 1, 9), (50, 3))


def test_still_points_are_explained_at_their_distance() -> None:
    others = [seen_at(POINTS, view) for view in (1, 2, 3)]
    found = explain(views(), 0, towards(POINTS, 0), others, min_views=2)
    np.testing.assert_allclose(found.misfit, 0, atol=1e-5)
    np.testing.assert_allclose(
        found.distance, np.linalg.norm(POINTS, axis=1), rtol=1e-4
    )


def test_what_moves_between_the_views_is_not() -> None:
    step = np.array([0.02, 0.15, 0.0])
    others = [seen_at(POINTS + k * step, k) for k in (1, 2, 3)]
    found = explain(views(), 0, towards(POINTS, 0), others, min_views=2)
    assert found.misfit.min() > 0.6


def test_one_view_that_is_wrong_counts_for_its_share() -> None:
    others = [seen_at(POINTS, 1), seen_at(POINTS, 2), seen_at(POINTS + 0.5, 3)]
    found = explain(views(), 0, towards(POINTS, 0), others, min_views=2)
    np.testing.assert_allclose(found.misfit, 1 / 3, atol=1e-3)


def test_a_point_behind_the_camera_explains_nothing() -> None:
    behind = -POINTS
    others = [seen_at(behind, view) for view in (1, 2, 3)]
    found = explain(views(), 0, towards(POINTS, 0), others, min_views=2)
    assert found.misfit.min() > 0.3


def test_pixels_that_too_few_views_know_are_not_judged() -> None:
    others = [seen_at(POINTS, 1), seen_at(POINTS, 2, is_valid=False)]
    found = explain(views(), 0, towards(POINTS, 0), others, min_views=2)
    assert np.isnan(found.misfit).all()
    assert np.isnan(explain(views(), 0, POINTS, [], min_views=2).misfit).all()


def test_one_view_alone_tells_what_no_still_point_can_be() -> None:
    away = np.array([0.0, 0.3, 0.0])  # across all baselines: 20 pixels or more
    moved, still = seen_at(POINTS + away, 1), seen_at(POINTS, 1)
    found = explain(views(), 0, towards(POINTS, 0), [moved], min_views=2)
    np.testing.assert_array_equal(found.misfit, 1)
    found = explain(views(), 0, towards(POINTS, 0), [still], min_views=2)
    assert np.isnan(found.misfit).all()
