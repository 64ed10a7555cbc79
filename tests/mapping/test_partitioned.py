"""Captures mapped in parts."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import MappingConfig
from sfmprep.mapping.database import add_images
from sfmprep.mapping.mapper import map_images
from sfmprep.mapping.partitioned import is_cut

NUM_IMAGES = 60


@pytest.fixture(autouse=True)
def _quiet_colmap() -> None:
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


def names() -> tuple[str, ...]:
    return tuple(f"{k:02d}.jpg" for k in range(NUM_IMAGES))


def walk(path: Path) -> pycolmap.Reconstruction:
    """A verified database of a walk around many things, each seen by its neighbours."""
    rng = np.random.default_rng(1)
    truth = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 700, 800, 600)
    camera.has_prior_focal_length = True
    truth.add_camera_with_trivial_rig(camera)
    angle = 2 * np.pi * np.arange(NUM_IMAGES) / NUM_IMAGES
    centres = np.column_stack([10 * np.cos(angle), 10 * np.sin(angle), 0 * angle])
    centres += rng.normal(0, 0.05, centres.shape)
    around = rng.uniform(0, 2 * np.pi, 1500)
    away = rng.uniform(15, 20, 1500)
    xyz = np.column_stack(
        [away * np.cos(around), away * np.sin(around), rng.uniform(-4, 4, 1500)]
    )
    seen = []
    for k, centre in enumerate(centres):
        forward = np.array([np.cos(angle[k]), np.sin(angle[k]), 0])
        right = np.cross(forward, [0, 0, 1])
        rotation = np.array([right, np.cross(forward, right), forward])
        local = (xyz - centre) @ rotation.T
        xy = 700 * local[:, :2] / local[:, 2:] + (400, 300)
        good = (local[:, 2] > 0) & (xy > 0).all(axis=1) & (xy < (800, 600)).all(axis=1)
        rows = np.flatnonzero(good)
        noisy = xy[rows] + rng.normal(0, 0.4, (len(rows), 2))
        image = pycolmap.Image(
            name=names()[k], keypoints=noisy, camera_id=1, image_id=k + 1
        )
        pose = np.column_stack([rotation, -rotation @ centre])
        truth.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
        seen.append((rows, noisy))
    write_database(path, truth, seen)
    return truth


def write_database(
    path: Path, truth: pycolmap.Reconstruction, seen: list[tuple[np.ndarray, ...]]
) -> None:
    with pycolmap.Database.open(path) as database:
        database.write_camera(truth.cameras[1], use_camera_id=True)
        add_images(database, names(), truth.cameras[1])
        for key, (_, xy) in enumerate(seen, 1):
            database.write_keypoints(key, xy.astype(np.float32))
        for i in range(NUM_IMAGES):
            for step in range(1, 6):
                j = (i + step) % NUM_IMAGES
                _, row0, row1 = np.intersect1d(
                    seen[i][0], seen[j][0], return_indices=True
                )
                if len(row0) < 15:
                    continue
                index = np.stack([row0, row1], axis=1).astype(np.uint32)
                found = pycolmap.estimate_calibrated_two_view_geometry(
                    *(truth.cameras[1], seen[i][1], truth.cameras[1], seen[j][1]),
                    index,
                )
                database.write_matches(i + 1, j + 1, index)
                database.write_two_view_geometry(i + 1, j + 1, found)


def rotation_errors_deg(
    model: pycolmap.Reconstruction, truth: pycolmap.Reconstruction
) -> list[float]:
    found = pycolmap.compare_reconstructions(
        model, truth, alignment_error="proj_center", max_proj_center_error=1.0
    )
    assert found is not None
    return [error.rotation_error_deg for error in found["errors"]]


@pytest.mark.slow
def test_in_three_parts_the_poses_are_those_of_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    truth = walk(tmp_path / "database.db")
    images = ImageSet(tmp_path, names(), {}, {})
    errors = {}
    for size in (None, 20):
        caplog.clear()
        with caplog.at_level(logging.INFO, "sfmprep.mapping"):
            (model,) = map_images(
                *(tmp_path / "database.db", images, tmp_path / f"models-{size}"),
                MappingConfig(part_size=size),
            )
        assert ("mapped in 3 parts of" in caplog.text) == (size == 20)
        assert model.num_reg_images() == NUM_IMAGES
        errors[size] = rotation_errors_deg(model, truth)
    # no part is worse, nor are those at the seams
    assert np.mean(errors[20]) < 1.2 * np.mean(errors[None]) + 0.005
    assert max(errors[20]) < 1.5 * max(errors[None]) + 0.01


def test_without_verified_pairs_there_is_no_model(tmp_path: Path) -> None:
    camera = pycolmap.Camera.create_from_model_name(1, "SIMPLE_RADIAL", 700, 800, 600)
    camera.has_prior_focal_length = True
    with pycolmap.Database.open(tmp_path / "database.db") as database:
        camera.camera_id = database.write_camera(camera)
        add_images(database, names(), camera)
    found = map_images(
        *(tmp_path / "database.db", ImageSet(tmp_path, names(), {}, {})),
        *(tmp_path / "models", MappingConfig(part_size=20)),
    )
    assert found == []


def test_only_what_is_large_is_cut() -> None:
    assert is_cut(MappingConfig(part_size=20), 41)
    assert not is_cut(MappingConfig(part_size=20), 40)
    assert not is_cut(MappingConfig(part_size=20, type="global"), 41)
    assert not is_cut(MappingConfig(part_size=None), 10**6)
