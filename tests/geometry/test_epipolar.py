"""Epipolar errors and triangulation angles against what they are by definition."""

from __future__ import annotations

import itertools

import numpy as np
import pycolmap
import pytest

from sfmprep.geometry.epipolar import epipolar_errors_px, sampson_errors_px
from sfmprep.geometry.triangulate import largest_angles_deg
from sfmprep.geometry.views import ModelArrays
from tests.support.degenerate import FOCAL, SIZE, capture, cloud_of, facing, poses_of

CALIBRATION = np.array([[FOCAL, 0, SIZE[0] / 2], [0, FOCAL, SIZE[1] / 2], [0, 0, 1]])


@pytest.fixture
def pair() -> ModelArrays:
    """Two cameras side by side that look at one point straight ahead."""
    poses = [facing((x, -5, 0), (-x, 5, 0)) for x in (-1, 1)]
    return ModelArrays.of(capture(poses, np.zeros((1, 3)))[0])


def errors_px(arrays: ModelArrays, xy0: np.ndarray, xy1: np.ndarray) -> np.ndarray:
    rays = [arrays.views.rays(k, xy) for k, xy in enumerate((xy0, xy1))]
    views = np.zeros(len(xy0), np.int64), np.ones(len(xy0), np.int64)
    return epipolar_errors_px(arrays.views, *views, *rays)


def fundamental(arrays: ModelArrays) -> np.ndarray:
    first, second = (
        np.column_stack((r, -r @ c))
        for r, c in zip(arrays.views.rotations, arrays.views.centres, strict=True)
    )
    rotation = second[:, :3] @ first[:, :3].T
    x, y, z = second[:, 3] - rotation @ first[:, 3]
    essential = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]]) @ rotation
    inverse = np.linalg.inv(CALIBRATION)
    return inverse.T @ essential @ inverse


def test_error_is_the_distance_from_the_epipolar_line(pair: ModelArrays) -> None:
    middle = np.array([SIZE]) / 2
    for off, wanted in ((0.0, 0.0), (0.5, 0.5), (-3.0, 3.0)):
        moved = middle + (0, off)  # at the middle of an image the line is level
        assert errors_px(pair, middle, moved) == pytest.approx(wanted, abs=1e-3)
        assert errors_px(pair, moved, middle) == pytest.approx(wanted, abs=1e-3)
        along = middle + (9, 0)
        assert errors_px(pair, middle, along) == pytest.approx(0, abs=1e-9)


def test_rays_on_two_sides_and_cameras_on_one_spot_have_no_line() -> None:
    left, right = np.array([[10.0, 120]]), np.array([[310.0, 120]])
    face_to_face = ModelArrays.of(capture(poses_of("opposite", 2), cloud_of("one"))[0])
    assert errors_px(face_to_face, left, left) == np.inf
    assert errors_px(face_to_face, left, right) == pytest.approx(0, abs=1e-9)
    one_spot = ModelArrays.of(capture(poses_of("one_spot", 2), cloud_of("one"))[0])
    assert errors_px(one_spot, left, left) == np.inf


def test_sampson_is_the_least_move_of_both_keypoints(pair: ModelArrays) -> None:
    middle = np.array([SIZE]) / 2
    matrix = fundamental(pair)
    assert sampson_errors_px(matrix, middle, middle) == pytest.approx(0, abs=1e-9)
    # Half of the way for each, and square to each other: 1 / sqrt(2).
    off = sampson_errors_px(matrix, middle, middle + (0, 1))
    assert off == pytest.approx(np.sqrt(0.5), rel=1e-3)
    assert sampson_errors_px(np.zeros((3, 3)), middle, middle) == np.inf


@pytest.mark.parametrize("layout", ["slider", "turning", "opposite", "drone"])
@pytest.mark.parametrize("number", [1, 2, 5, 9])
def test_angle_is_the_largest_of_all_pairs_of_rays(layout: str, number: int) -> None:
    arrays = ModelArrays.of(capture(poses_of(layout, number), cloud_of("volume"))[0])
    found = largest_angles_deg(arrays.views, arrays.observations, arrays.xyz)
    assert len(found) == len(arrays.xyz)
    for point, xyz in enumerate(arrays.xyz[:20]):
        seen = arrays.observations.view[arrays.observations.point == point]
        rays = arrays.views.centres[seen] - xyz
        angles = [
            np.degrees(np.arctan2(np.linalg.norm(np.cross(a, b)), a @ b))
            for a, b in itertools.combinations(rays, 2)
        ]
        assert found[point] == pytest.approx(max(angles, default=0), abs=1e-5)


def test_nothing_has_no_angle() -> None:
    arrays = ModelArrays.of(pycolmap.Reconstruction())
    assert not len(largest_angles_deg(arrays.views, arrays.observations, arrays.xyz))
