"""Photographs with a random depth: geometry, colours, occlusion."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sfmprep.train.pairs import labels
from sfmprep.train.pairs.labels import label_keypoints
from sfmprep.train.pairs.parallax import ParallaxView, sample_parallax
from sfmprep.train.pairs.views import Views

SIZE = 160


def photograph() -> NDArray[np.uint8]:
    """Coloured blotches, smooth enough to be interpolated."""
    noise = np.random.default_rng(7).integers(0, 256, (24, 32, 3)).astype(np.uint8)
    return np.asarray(cv2.resize(noise, (640, 480), interpolation=cv2.INTER_CUBIC))


@pytest.fixture(scope="module")
def samples() -> list[ParallaxView]:
    return [
        sample_parallax(np.random.default_rng(seed), photograph(), SIZE)
        for seed in range(12)
    ]


def at(field: NDArray[np.float32], xy: NDArray[np.float32]) -> NDArray[np.float32]:
    """Linear values [H, W, C] of a field at places [H, W, 2]; NaN spreads."""
    return np.asarray(
        cv2.remap(field, np.nan_to_num(xy, nan=-9), None, cv2.INTER_LINEAR)
    )


def inner(xy: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Pixels around which all are visible."""
    visible = np.isfinite(xy).all(-1).astype(np.uint8)
    eroded = cv2.erode(visible, np.ones((5, 5), np.uint8), borderValue=0)
    return np.asarray(eroded > 0)


def backwards(view: Views) -> Views:
    return Views(image0=view.image1, image1=view.image0, to1=view.to0, to0=view.to1)


@pytest.fixture(scope="module")
def both_ways(samples: list[ParallaxView]) -> list[Views]:
    views = [sample.views() for sample in samples]
    return views + [backwards(view) for view in views]


def test_there_and_back_is_the_same_pixel(both_ways: list[Views]) -> None:
    grid = np.stack(np.meshgrid(np.arange(SIZE), np.arange(SIZE)), -1)
    for view in both_ways:
        both = inner(view.to1)
        # linear interpolation is only that on one surface, away from its border
        both &= at(inner(view.to0).astype(np.float32), view.to1) == 1
        away = np.linalg.norm(at(view.to0, view.to1) - grid, axis=-1)[both]
        assert both.mean() > 0.02
        assert np.quantile(away, 0.95) < 0.05  # the rest is across depth edges


def test_visible_pixels_have_one_colour(both_ways: list[Views]) -> None:
    for view in both_ways:
        image0, image1 = (
            np.ascontiguousarray(image.transpose(1, 2, 0))
            for image in (view.image0, view.image1)
        )
        away = np.abs(at(image1, view.to1) - image0).max(-1)[inner(view.to1)]
        assert np.median(away) < 0.01
        assert np.quantile(away, 0.95) < 0.05


def test_places_are_the_projection_of_the_depth(samples: list[ParallaxView]) -> None:
    for sample in samples:
        view = sample.views()
        rows, columns = np.nonzero(np.isfinite(view.to1[..., 0]))
        pixels = np.stack((columns, rows, np.ones(len(rows))))
        points = np.linalg.inv(sample.K0) @ pixels * sample.depth0[rows, columns]
        motion = sample.cam1_from_cam0
        x, y, z = sample.K1 @ (motion[:, :3] @ points + motion[:, 3:])
        places = view.to1[rows, columns]
        np.testing.assert_allclose(places, np.stack((x / z, y / z), 1), atol=2e-3)
        seen = at(sample.depth1, view.to1)[rows, columns]
        assert np.quantile(np.abs(seen / z - 1), 0.9) < 0.01


def test_motion_is_rigid_and_within_the_limits() -> None:
    for seed in range(30):
        rng = np.random.default_rng(seed)
        sample = sample_parallax(
            rng, photograph(), 32, max_angle_deg=20, max_roll_deg=0
        )
        rotation = sample.cam1_from_cam0[:, :3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
        assert np.linalg.det(rotation) > 0
        # the look at a shifted target adds to the angle around the middle
        assert np.degrees(np.arccos(rotation[2, 2])) < 20 + 25


def test_a_nearer_surface_hides_what_is_behind() -> None:
    """A square halfway in front of a wall, seen from the right."""
    depth0 = np.full((64, 64), 2, np.float32)
    depth0[24:40, 24:40] = 1
    depth1 = np.full((64, 64), 2, np.float32)
    depth1[24:40, 8:24] = 1  # moved by 16 pixels, the wall by 8
    blank = np.zeros((3, 64, 64), np.float32)
    camera = np.array([[64, 0, 31.5], [0, 64, 31.5], [0, 0, 1]])
    view = ParallaxView(
        image0=blank,
        image1=blank,
        depth0=depth0,
        depth1=depth1,
        K0=camera,
        K1=camera,
        cam1_from_cam0=np.column_stack((np.eye(3), [-0.25, 0, 0])),
    ).views()
    np.testing.assert_allclose(view.to1[30, 30], (14, 30), atol=1e-4)
    np.testing.assert_allclose(view.to1[30, 50], (42, 30), atol=1e-4)
    assert np.isnan(view.to1[30, 20]).all()  # its place, 12, shows the square
    assert np.isnan(view.to1[30, 4]).all()  # outside
    assert np.isnan(view.to0[30, 30]).all()  # its place, 38, shows the square


def test_unknown_depth_has_no_place(samples: list[ParallaxView]) -> None:
    sample = samples[0]
    sample.depth0[:10] = 0
    assert np.isnan(sample.views().to1[:10]).all()


def test_the_same_seed_gives_the_same_views() -> None:
    first, second = (
        sample_parallax(np.random.default_rng(3), photograph(), 64) for _ in range(2)
    )
    np.testing.assert_array_equal(first.image1, second.image1)
    np.testing.assert_array_equal(first.depth1, second.depth1)


def test_most_views_overlap_and_some_hide_something() -> None:
    shares = []
    for seed in range(40):
        rng = np.random.default_rng(seed)
        view = sample_parallax(rng, photograph(), 96).views()
        shares.append(np.isfinite(view.to1[..., 0]).mean())
    assert 0.5 < np.mean(shares) < 0.9
    assert min(shares) > 0.1


@pytest.mark.parametrize("shape", [(9, 40, 3), (700, 50, 3), (64, 64, 3)])
def test_any_photograph_will_do(shape: tuple[int, int, int]) -> None:
    pixels = np.zeros(shape, np.uint8)
    sample = sample_parallax(np.random.default_rng(0), pixels, 40)
    assert sample.image0.shape == sample.image1.shape == (3, 40, 40)
    assert sample.depth0.dtype == sample.image0.dtype == np.float32


def test_grey_photographs_are_refused() -> None:
    with pytest.raises(ValueError, match="expected \\[H, W, 3\\] uint8"):
        sample_parallax(np.random.default_rng(0), np.zeros((9, 9), np.uint8), 32)


# ----------------------------------------------------------------------------- labels
def moved(x: float) -> Views:
    """Image 1 is image 0 moved to the right; the 20 columns that leave it are NaN."""
    grid = np.stack(np.meshgrid(np.arange(64), np.arange(64)), -1).astype(np.float32)
    blank = np.zeros((3, 64, 64), np.float32)

    def shifted(by: float) -> NDArray[np.float32]:
        places = grid + np.array([by, 0], np.float32)
        gone = (places < 0) | (places > 63)
        return np.where(gone.any(-1, keepdims=True), np.float32(np.nan), places)

    return Views(image0=blank, image1=blank, to1=shifted(x), to0=shifted(-x))


def test_keypoints_get_their_verdicts() -> None:
    xy0 = np.array([[10, 10], [12.25, 40.5], [30, 30], [60, 20], [40, 50]], np.float32)
    xy1 = np.array([[31, 11], [32.25, 40.5], [50, 34], [5, 5]], np.float32)
    matches, alone0, alone1 = label_keypoints(moved(20), xy0, xy1)
    assert matches.tolist() == [[0, 0], [1, 1]]
    assert alone0.tolist() == [
        False,
        False,
        False,
        True,
        True,
    ]  # 2: 4 pixels, undecided
    assert alone1.tolist() == [False, False, False, True]


def test_matches_are_one_to_one() -> None:
    xy0 = np.array([[10, 10], [11, 10], [12, 10]], np.float32)
    matches, alone0, _ = label_keypoints(moved(20), xy0, np.float32([[31, 10]]))
    assert matches.tolist() == [[1, 0]]
    assert not alone0.any()


def test_sub_pixel_places_are_interpolated(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(labels, "_POSITIVE_PX", 1e-3)
    xy0 = np.array([[10.5, 10.25]], np.float32)
    xy1 = np.array([[30.5, 10.25]], np.float32)
    matches, _, _ = label_keypoints(moved(20), xy0, xy1)
    assert matches.tolist() == [[0, 0]]


@pytest.mark.parametrize(("rows0", "rows1"), [(0, 3), (3, 0), (0, 0)])
def test_no_keypoints_no_matches(rows0: int, rows1: int) -> None:
    xy = np.full((3, 2), 30, np.float32)
    matches, alone0, alone1 = label_keypoints(moved(1), xy[:rows0], xy[:rows1])
    assert matches.shape == (0, 2) and matches.dtype == np.int64
    assert alone0.tolist() == [True] * rows0
    assert alone1.tolist() == [True] * rows1
