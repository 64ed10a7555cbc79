"""Points of depths: those that another view confirms."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from sfmprep.dataset.deep_points import deep_points
from sfmprep.geometry.pointmaps import Depths
from sfmprep.geometry.views import Views

SIZE = (96, 64)
WALL = 5.0  # the depth of a plane that all look at


@pytest.fixture
def views() -> Views:
    """Three cameras beside each other, that look along z."""
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 80.0, *SIZE)
    centres = np.array([[-0.5, 0, 0], [0, 0, 0], [0.5, 0, 0]])
    return Views(
        ids=np.arange(3),
        names=("a", "b", "c"),
        cameras=(camera,) * 3,
        rotations=np.broadcast_to(np.eye(3), (3, 3, 3)),
        centres=centres,
        focals=np.full(3, 80.0),
    )


def depths(value: float = WALL) -> Depths:
    x, y = np.meshgrid(np.arange(0, SIZE[0], 4) + 0.5, np.arange(0, SIZE[1], 4) + 0.5)
    xy = np.column_stack((x.ravel(), y.ravel()))
    return Depths(xy=xy, depth=np.full(len(xy), value))


def test_what_two_views_tell_alike_is_a_point(views: Views) -> None:
    told = {"a": depths(), "b": depths()}
    found = deep_points(views, told)
    assert found.xyz[:, 2] == pytest.approx(WALL)
    assert set(found.view) == {0, 1}
    for row in range(2):
        own = found.view == row
        there = found.xyz[own] - views.centres[row]
        seen = views.cameras[row].img_from_cam(there)
        assert seen == pytest.approx(found.xy[own])
    # all that both see, and little else
    assert 0.7 < len(found.xyz) / (2 * len(told["a"].xy)) < 1


def test_what_no_other_view_sees_is_none(views: Views) -> None:
    assert not len(deep_points(views, {"a": depths()}).xyz)
    assert not len(deep_points(views, {}).xyz)
    nothing = Depths(xy=np.empty((0, 2)), depth=np.empty(0))
    assert not len(deep_points(views, {"a": depths(), "b": nothing}).xyz)


def test_what_others_tell_otherwise_or_look_through_is_none(views: Views) -> None:
    assert not len(deep_points(views, {"a": depths(), "b": depths(1.2 * WALL)}).xyz)
    # a and b agree on what c looks through
    near = 0.7 * WALL
    found = deep_points(views, {"a": depths(near), "b": depths(near), "c": depths()})
    seen = views.cameras[2].img_from_cam(found.xyz - views.centres[2])
    inside = ((seen > 3) & (seen < np.array(SIZE) - 3)).all(axis=1)
    assert not inside.any()


def test_a_single_depth_is_no_error(views: Views) -> None:
    one = Depths(xy=depths().xy[:1], depth=np.full(1, WALL))
    assert len(deep_points(views, {"a": depths(), "b": one}).xyz) <= 2
