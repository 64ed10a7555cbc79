"""What two views from one place should have in common."""

from __future__ import annotations

import math

import numpy as np
import pycolmap

from sfmprep.geometry.views import ModelArrays, Observations, Views
from sfmprep.mapping.same_view import SameView
from sfmprep.types import Float64, Index

SIZE = (640, 480)
XY = np.stack(np.meshgrid(np.arange(24, 640, 16.0), np.arange(24, 480, 16.0)), -1)
XY = XY.reshape(-1, 2)
ALL = np.arange(len(XY))


def _camera() -> pycolmap.Camera:
    return pycolmap.Camera.create_from_model_name(1, "SIMPLE_PINHOLE", 600.0, *SIZE)


def _same_view(apart: float) -> SameView:
    """Two cameras that look at a wall 5 m away, side by side; only the upper half of
    the keypoints became points."""
    camera = _camera()
    centres = np.array([[0.0, 0, 0], [apart, 0, 0]])
    views = Views(
        ids=np.array([1, 2]),
        names=("a.jpg", "b.jpg"),
        cameras=(camera, camera),
        rotations=np.tile(np.eye(3), (2, 1, 1)),
        centres=centres,
        focals=np.full(2, 600.0),
    )
    upper = np.flatnonzero(XY[:, 1] < 240)
    ray = np.asarray(camera.cam_ray_from_img(XY[upper])).reshape(-1, 3)
    xyz = 5 * ray / ray[:, 2:]
    moved = _moved(apart)[upper]
    point = np.repeat(np.arange(len(upper)), 2)
    observations = Observations(
        point=point,
        view=np.tile([0, 1], len(upper)),
        keypoint=np.repeat(upper, 2),
        xy=np.stack([XY[upper], moved], 1).reshape(-1, 2),
        ray=np.zeros((len(point), 3)),
    )
    arrays = ModelArrays(
        views=views,
        point_ids=np.arange(len(upper)).astype(np.uint64),
        xyz=xyz,
        observations=observations,
    )
    return SameView(arrays, lambda view: XY if view == 0 else _moved(apart))


def _moved(apart: float) -> Float64:
    return XY - (600 * apart / 5, 0)


def _matches(rows: Index) -> Index:
    return np.column_stack([rows, rows])


def test_a_region_without_a_match_is_missing() -> None:
    asked = _same_view(0.05)
    assert asked.are_close(np.array([[0, 1]])).tolist() == [True]
    found = ALL[XY[:, 1] < 320]  # a third of the height has no match, nor any point
    assert 0.25 < asked.missing(0, 1, _matches(found)) < 0.35
    assert asked.missing(0, 1, _matches(ALL)) == 0


def test_matches_lost_here_and_there_are_not_missing() -> None:
    some = np.random.default_rng(0).random(len(ALL)) < 0.5
    assert _same_view(0.05).missing(0, 1, _matches(ALL[some])) < 0.01


def test_matches_that_contradict_the_poses_are_none() -> None:
    asked, rows = _same_view(0.05), ALL[XY[:, 1] >= 320]
    wrong = np.column_stack([rows, np.roll(rows, 5 * 40)])  # rows of another height
    both = np.concatenate([_matches(ALL[XY[:, 1] < 320]), wrong])
    assert asked.missing(0, 1, both) > 0.25


def test_nothing_is_said_where_nothing_can_be() -> None:
    assert math.isnan(_same_view(0.05).missing(0, 1, np.empty((0, 2), np.int64)))
    few = _matches(ALL[::100])
    assert math.isnan(_same_view(0.05).missing(0, 1, few))
    apart = _same_view(2.0)
    assert apart.are_close(np.array([[0, 1]])).tolist() == [False]
    assert math.isnan(apart.missing(0, 1, _matches(ALL)))
    assert not len(apart.are_close(np.empty((0, 2), np.int64)))
