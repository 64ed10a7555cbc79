"""Focal length and pose out of points in space."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sfmprep.coords import stored_pose, upright_pose
from sfmprep.geometry.pointmaps import (
    View,
    focal_length,
    pointmap_geometry,
    relative_pose,
)

FOCAL = (900.0, 1100.0)  # pixels of the files
PIXEL = 4.0  # of the file for one of the network
SIZE = (64, 48)  # of the network
TURN = Rotation.from_euler("yx", (25, -8), degrees=True).as_matrix()
SHIFT = np.array([-1.5, 0.2, 0.3])


def offsets() -> np.ndarray:
    x, y = np.meshgrid(np.arange(SIZE[0]) + 0.5, np.arange(SIZE[1]) + 0.5)
    xy = np.column_stack((x.ravel(), y.ravel())) - np.array(SIZE) / 2
    return (PIXEL * xy).astype(np.float32)


def points_of(focal: float, seed: int) -> np.ndarray:
    """What a camera sees, in its own frame: depths between 3 and 6."""
    xy = offsets()
    depth = np.random.default_rng(seed).uniform(3, 6, (len(xy), 1))
    return depth * np.column_stack((xy / focal, np.ones(len(xy))))


def views(*, sure: tuple[float, float] = (9, 4), orientation: int = 1):
    """The pair in both orders; upright cameras, the second at (TURN, SHIFT)."""
    first, second = points_of(FOCAL[0], 1), points_of(FOCAL[1], 2)
    in_first = (second - SHIFT) @ TURN
    in_second = first @ TURN.T + SHIFT

    def view(points: np.ndarray, confidence: float, side: int) -> View:
        return View(
            points=points.astype(np.float32),
            confidence=np.full(len(points), confidence, np.float32),
            is_sure=np.full(len(points), confidence > 3),
            offsets=offsets(),
            pixel=PIXEL,
            orientation=(1, orientation)[side],
        )

    return (
        (view(first, sure[0], 0), view(in_first, sure[0], 1)),
        (view(second, sure[1], 1), view(in_second, sure[1], 0)),
    )


@pytest.mark.shared
def test_the_focal_length_equals_that_of_the_original(shared: Path) -> None:
    """Whose pixels have their centres at integers, and the middle at W / 2."""
    with np.load(shared / "fixtures" / "pointmaps" / "geometry.npz") as file:
        fixture = dict(file)
    height, width, _ = fixture["geo/pts"].shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    away = np.column_stack((x.ravel() - width / 2, y.ravel() - height / 2))
    points = fixture["geo/pts"].reshape(-1, 3)
    plain = focal_length(points, away.astype(np.float32))
    assert plain == pytest.approx(float(fixture["geo/focal_plain"][0]), rel=1e-5)
    base = max(width, height) / (2 * np.tan(np.radians(30)))
    clamped = focal_length(points, away.astype(np.float32), (0.5 * base, 3.5 * base))
    assert clamped == pytest.approx(float(fixture["geo/focal_clamped"][0]), rel=1e-5)
    assert plain == pytest.approx(float(fixture["geo/focal_true"]), rel=0.05)


def test_a_third_of_wrong_points_hardly_move_the_focal_length() -> None:
    points = points_of(FOCAL[0], 0)
    wrong = 0.3 * np.random.default_rng(0).normal(size=points[::3, :2].shape)
    points[::3, :2] += wrong
    slopes = points[:, :2] / points[:, 2:]
    least_squares = (slopes * offsets()).sum() / (slopes**2).sum()
    assert least_squares < 0.8 * FOCAL[0]
    assert focal_length(points, offsets()) == pytest.approx(FOCAL[0], rel=1e-3)


def test_points_without_depth_count_as_in_the_middle() -> None:
    points = points_of(FOCAL[0], 0)
    points[:5, 2] = 0
    assert focal_length(points, offsets()) == pytest.approx(FOCAL[0], rel=0.01)
    assert focal_length(np.zeros((3, 3), np.float32), offsets()[:3]) == 0


@pytest.mark.parametrize("sure", [(9, 4), (4, 9)])
def test_focal_lengths_and_pose_are_found(sure: tuple[float, float]) -> None:
    found = pointmap_geometry(*views(sure=sure))
    assert found.focal_px == pytest.approx(FOCAL, rel=1e-3)
    np.testing.assert_allclose(found.second_from_first[:, :3], TURN, atol=1e-3)
    np.testing.assert_allclose(found.second_from_first[:, 3], SHIFT, atol=5e-3)
    assert found.share > 0.99
    assert found.confidence == pytest.approx(9)


@pytest.mark.parametrize("sure", [(9, 4), (4, 9)])
def test_the_pose_is_that_of_the_stored_photograph(sure: tuple[float, float]) -> None:
    """EXIF 6: the file's own camera is turned against the upright one."""
    found = pointmap_geometry(*views(sure=sure, orientation=6))
    upright = upright_pose(found.second_from_first, 6)
    np.testing.assert_allclose(upright[:, :3], TURN, atol=1e-3)
    expected = stored_pose(np.column_stack((TURN, SHIFT)), 6)
    np.testing.assert_allclose(found.second_from_first, expected, atol=5e-3)


def test_noise_has_no_pose() -> None:
    [(_, second), _] = views()
    random = np.random.default_rng(0).normal(size=second.points.shape)
    noise = View(
        points=random.astype(np.float32),
        confidence=second.confidence,
        is_sure=second.is_sure,
        offsets=second.offsets,
        pixel=PIXEL,
        orientation=1,
    )
    pose, share = relative_pose(noise, FOCAL[1])
    assert pose is None or share < 0.05


def test_unsure_points_have_no_pose() -> None:
    found = pointmap_geometry(*views(sure=(2, 2)))
    assert found.second_from_first is None
    assert found.share == 0
    assert found.focal_px == pytest.approx(FOCAL, rel=1e-3)


def test_the_unit_follows_from_points_whose_depth_is_known() -> None:
    found = pointmap_geometry(*views())
    rows = np.arange(0, len(found.offsets), 7)
    away, depth = found.offsets[rows].astype(float), 0.3 * found.depth[rows]
    unit, spread = found.unit(away, depth)
    assert unit == pytest.approx(0.3, rel=1e-3)
    assert spread == pytest.approx(0, abs=1e-3)
    assert np.isnan(found.unit(away[:14], depth[:14])).all()
    assert np.isnan(found.unit(away[:0], depth[:0])).all()
    assert np.isnan(found.unit(away + 1e4, depth)).all()


def test_depths_are_in_the_unit_of_the_pose_in_either_order() -> None:
    """Whichever order is surer: those of the first image, in its own camera."""
    for sure in ((9, 4), (4, 9)):
        found = pointmap_geometry(*views(sure=sure))
        assert found.depth == pytest.approx(points_of(FOCAL[0], 1)[:, 2], rel=1e-2)
