"""Pairs of crops from reconstructed captures, and what they say of keypoints."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest
from scipy.spatial import cKDTree

from sfmprep.errors import ImageError, ReconstructionError
from sfmprep.train.pairs.labels import label_keypoints
from sfmprep.train.pairs.posed import Capture, PosedPair, sample_posed

SIZE = 128


@pytest.fixture(scope="module")
def scene(
    tmp_path_factory: pytest.TempPathFactory,
) -> tuple[Path, pycolmap.Reconstruction]:
    """Five photographs with lens distortion; each observation is a white dot."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig = 1, 5
    options.num_cameras_per_rig, options.num_points3D = 1, 200
    options.camera_width, options.camera_height = 640, 480
    options.camera_model_id = pycolmap.CameraModelId.SIMPLE_RADIAL
    options.camera_params = [560.0, 320, 240, -0.08]
    pycolmap.set_random_seed(1)
    model = pycolmap.synthesize_dataset(options)
    folder = tmp_path_factory.mktemp("posed") / "images"
    for image in model.images.values():
        canvas = np.zeros((480, 640, 3), np.uint8)
        for point in image.points2D:
            if point.has_point3D():
                x, y = (round((at - 0.5) * 16) for at in point.xy)
                cv2.circle(canvas, (x, y), 24, (255,) * 3, -1, cv2.LINE_AA, 4)
        path = folder / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        cv2.imwrite(str(path), canvas)
    return folder, model


@pytest.fixture(scope="module")
def capture(scene: tuple[Path, pycolmap.Reconstruction]) -> Capture:
    return Capture.read(*scene, max_size=480)


@pytest.fixture(scope="module")
def pairs(capture: Capture) -> list[PosedPair]:
    return [
        sample_posed(np.random.default_rng(seed), capture, SIZE) for seed in range(12)
    ]


def test_points_are_where_the_photographs_show_them(pairs: list[PosedPair]) -> None:
    offsets = []
    for pair in pairs:
        assert len(pair.points0) == len(pair.points1) >= 12
        for image, points, seen in (
            (pair.image0, pair.points0, pair.seen0),
            (pair.image1, pair.points1, pair.seen1),
        ):
            nearest = cKDTree(seen[:, :2]).query(points, k=2)[0][:, 1]
            is_clear = (nearest > 9) & ((points > 6) & (points < SIZE - 7)).all(axis=1)
            for x, y in points[is_clear]:
                patch = cv2.getRectSubPix(image[0], (9, 9), (float(x), float(y)))
                row, column = np.mgrid[-4:5, -4:5]
                offset = np.array([(patch * column).sum(), (patch * row).sum()])
                offsets.append(offset / patch.sum())
    assert len(offsets) > 30
    assert np.abs(np.median(offsets, axis=0)).max() < 0.05
    assert np.quantile(np.abs(offsets), 0.8) < 0.25


def test_points_fit_the_cameras(pairs: list[PosedPair]) -> None:
    for pair in pairs:
        motion = pair.cam1_from_cam0
        rotation, (x, y, z) = motion[:, :3], motion[:, 3]
        np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-9)
        cross = np.array([[0, -z, y], [z, 0, -x], [-y, x, 0]])
        fundamental = (
            np.linalg.inv(pair.K1).T @ cross @ rotation @ np.linalg.inv(pair.K0)
        )
        ones = np.ones((len(pair.points0), 1))
        lines = np.hstack((pair.points0, ones)) @ fundamental.T
        away = (lines * np.hstack((pair.points1, ones))).sum(1)
        assert np.abs(away / np.hypot(lines[:, 0], lines[:, 1])).max() < 0.01


def test_a_keypoint_on_a_point_is_placed_there(pairs: list[PosedPair]) -> None:
    for pair in pairs:
        for image, here, there in (
            (0, pair.points0, pair.points1),
            (1, pair.points1, pair.points0),
        ):
            places, is_known = pair.places(here, image)
            away = np.linalg.norm(places - there, axis=1)[is_known]
            assert is_known.mean() > 0.5
            assert np.nanquantile(away, 0.8) < 0.5  # others have a second point beside


def plane(pair: PosedPair, depth: float, sideways: float) -> PosedPair:
    """A wall at `depth` with points every 8 pixels, the camera moved sideways."""
    x, y = np.meshgrid(np.arange(4.0, 64, 8), np.arange(4.0, 64, 8))
    seen = np.stack((x.ravel(), y.ravel(), np.full(x.size, depth)), 1)
    camera = np.array([[64, 0, 31.5], [0, 64, 31.5], [0, 0, 1]])
    blank = np.zeros((3, 64, 64), np.float32)
    seen = seen.astype(np.float32)
    return replace(
        pair,
        image0=blank,
        image1=blank,
        K0=camera,
        K1=camera,
        seen0=seen,
        seen1=seen,
        cam1_from_cam0=np.column_stack((np.eye(3), [-sideways, 0, 0])),
    )


def test_depth_between_points_is_used_where_they_agree(pairs: list[PosedPair]) -> None:
    pair = plane(pairs[0], 2.0, 0.5)  # moves by 16 pixels
    xy = np.array([[24, 24], [9, 40]], np.float32)
    places, is_known = pair.places(xy, 0)
    np.testing.assert_allclose(places[0], (8, 24), atol=1e-3)
    assert is_known.all() and np.isnan(places[1]).all()  # outside is known too

    step = pair.seen0.copy()
    step[step[:, 0] > 24, 2] = 1.0  # moves by 32 pixels
    places, is_known = replace(pair, seen0=step).places(xy, 0)
    assert not is_known[0] and np.isnan(places[0]).all()


def test_far_from_all_points_nothing_is_known(pairs: list[PosedPair]) -> None:
    pair = plane(pairs[0], 2.0, 0.5)
    few = replace(pair, seen0=pair.seen0[:2], seen1=pair.seen1[:0])
    for image in (0, 1):
        places, is_known = few.places(np.array([[40, 40]], np.float32), image)
        assert not is_known.any() and np.isnan(places).all()


def test_unknown_keypoints_stay_undecided(pairs: list[PosedPair]) -> None:
    pair = plane(pairs[0], 2.0, 0.5)
    lower = replace(pair, seen0=pair.seen0[:32], seen1=pair.seen1[:32])  # upper half
    xy0 = np.array([[40, 12], [40, 60], [50, 20]], np.float32)
    xy1 = np.array([[24, 12], [24, 60]], np.float32)
    matches, alone0, alone1 = label_keypoints(lower, xy0, xy1)
    assert matches.tolist() == [[0, 0]]
    assert alone0.tolist() == [False, False, True]
    assert not alone1.any()


def test_the_same_seed_gives_the_same_pair(capture: Capture) -> None:
    first, second = (
        sample_posed(np.random.default_rng(5), capture, SIZE) for _ in range(2)
    )
    np.testing.assert_array_equal(first.image0, second.image0)
    np.testing.assert_array_equal(first.points1, second.points1)


def test_orientation_is_applied(
    scene: tuple[Path, pycolmap.Reconstruction], tmp_path: Path, capture: Capture
) -> None:
    """Files that EXIF turns by a quarter give the same points, turned."""
    from PIL import Image

    folder, model = scene
    for image in model.images.values():
        exif = Image.Exif()
        exif[0x0112] = 6
        path = tmp_path / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(folder / image.name).save(path, exif=exif)
    turned = Capture.read(tmp_path, model, max_size=480)
    for upright, stored in zip(turned.images, capture.images, strict=True):
        height, width = stored.pixels.shape[:2]
        assert upright.pixels.shape[:2] == (width, height)
        shared, *rows = np.intersect1d(
            upright.point_ids, stored.point_ids, return_indices=True
        )
        assert len(shared) > 50
        x, y = stored.xy[rows[1]].T
        np.testing.assert_allclose(
            upright.xy[rows[0]], np.stack((height - 1 - y, x), 1), atol=0.02
        )


def test_missing_photograph_is_named(
    scene: tuple[Path, pycolmap.Reconstruction], tmp_path: Path
) -> None:
    with pytest.raises(ImageError, match="is missing, but the model names"):
        Capture.read(tmp_path, scene[1])


def test_a_capture_without_shared_points_is_refused(
    scene: tuple[Path, pycolmap.Reconstruction],
) -> None:
    with pytest.raises(ReconstructionError, match="share 24 points"):
        Capture.read(scene[0], pycolmap.Reconstruction())
