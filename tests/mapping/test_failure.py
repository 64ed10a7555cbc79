"""Captures of two photographs: two poses, or the true reason why there are none."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.mapping.failure import explain_failure
from sfmprep.mapping.mapper import map_images
from sfmprep.mapping.verify import read_verified, verify_matches
from sfmprep.pairing.pairs import exhaustive_pairs
from sfmprep.types import Float64
from tests.support.degenerate import FOCAL, SIZE, cloud_of, facing

NAMES = ("a.jpg", "b.jpg")


@pytest.fixture(autouse=True)
def _quiet_colmap() -> None:
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


def map_two(
    folder: Path, poses: list[Float64], num_points: int = 240, shuffled: bool = False
) -> tuple[list[pycolmap.Reconstruction], str]:
    """Maps two photographs of points in a cube; the models, and why there are none."""
    path = folder / "database.db"
    points, rng = cloud_of("volume")[:num_points], np.random.default_rng(0)
    with pycolmap.Database.open(path) as database:
        camera = pycolmap.Camera.create_from_model_id(
            0, pycolmap.CameraModelId.SIMPLE_PINHOLE, FOCAL, *SIZE
        )
        camera.has_prior_focal_length = True
        camera.camera_id = database.write_camera(camera)
        rig = pycolmap.Rig()
        rig.add_ref_sensor(camera.sensor_id)
        rig_id = database.write_rig(rig)
        for name, pose in zip(NAMES, poses, strict=True):
            image = pycolmap.Image(name=name, camera_id=camera.camera_id)
            image.image_id = database.write_image(image)
            frame = pycolmap.Frame()
            frame.rig_id = rig_id
            frame.add_data_id(image.data_id)
            database.write_frame(frame)
            local = points @ pose[:, :3].T + pose[:, 3]
            xy = FOCAL * local[:, :2] / local[:, 2:] + np.array(SIZE) / 2
            xy += rng.normal(0, 0.2, xy.shape)
            database.write_keypoints(image.image_id, xy.astype(np.float32))
        rows = np.arange(num_points, dtype=np.uint32)
        other = rng.permutation(rows) if shuffled else rows
        database.write_matches(1, 2, np.stack([rows, other], axis=1))
    verify_matches(path, exhaustive_pairs(NAMES), DatabaseConfig(), num_threads=1)
    images = ImageSet(folder, NAMES, {}, {})
    models = map_images(path, images, folder / "models", MappingConfig())
    photos = ImageSet(Path("photos"), NAMES, {}, {})
    return models, explain_failure(photos, read_verified(path), path)


@pytest.mark.parametrize("num_points", [240, 40])
def test_two_photographs_give_two_poses(num_points: int, tmp_path: Path) -> None:
    poses = [facing((0, -5, 0), (0, 1, 0)), facing((2, -4.6, 0), (-2, 4.6, 0))]
    (model,), _ = map_two(tmp_path, poses, num_points)
    assert model.num_reg_images() == 2
    found = [model.images[k].cam_from_world().rotation.matrix() for k in (1, 2)]
    off = found[1] @ found[0].T @ poses[0][:, :3] @ poses[1][:, :3].T
    assert np.degrees(np.arccos(min((np.trace(off) - 1) / 2, 1))) < 4


def test_small_angle_between_two_photographs_suffices(tmp_path: Path) -> None:
    poses = [facing((0, -5, 0), (0, 1, 0)), facing((0.26, -5, 0), (-0.05, 1, 0))]
    (model,), _ = map_two(tmp_path, poses)  # 3 degrees
    assert model.num_reg_images() == 2


def test_camera_that_only_turned(tmp_path: Path) -> None:
    poses = [facing((0, -5, 0), (0, 1, 0)), facing((0, -5, 0), (0.1, 1, 0))]
    models, why = map_two(tmp_path, poses)
    assert models == []
    assert why == (
        "1 of 1 verified pairs of photos are explained without any depth: the camera"
        " only turned, or it saw one plane, or the images are copies of each other."
        " Walk sideways between photographs."
    )


def test_identical_photographs(tmp_path: Path) -> None:
    models, why = map_two(tmp_path, [facing((0, -5, 0), (0, 1, 0))] * 2)
    assert models == []
    assert why == (
        "most verified pairs of images of photos are copies of each other: their"
        " matches lie at the same places in both. Take each photograph from a place of"
        " its own, a step from the last."
    )


def test_photographs_that_do_not_overlap(tmp_path: Path) -> None:
    poses = [facing((0, -5, 0), (0, 1, 0)), facing((2, -4.6, 0), (-2, 4.6, 0))]
    models, why = map_two(tmp_path, poses, 14, shuffled=True)
    assert models == []
    assert why == (
        "1 pairs of images of photos have matches, but no pair agrees on one geometry:"
        " the photographs probably do not overlap. Take them so that neighbours share"
        " two thirds of what they show."
    )


def test_too_few_matches(tmp_path: Path) -> None:
    poses = [facing((0, -5, 0), (0, 1, 0)), facing((2, -4.6, 0), (-2, 4.6, 0))]
    # by these, two poses would be 20 degrees off
    models, why = map_two(tmp_path, poses, 20)
    assert models == []
    assert why == (
        "the strongest of 1 verified pairs of images of photos has 20 matches that"
        " agree, too few to begin with. Take more photographs, a step apart, or try"
        " more keypoints (--set features.max_keypoints=8192)."
    )
