"""Focal lengths and lenses on synthetic captures whose cameras are known."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.mapping.mapper import map_images
from sfmprep.mapping.verify import verify_matches
from sfmprep.pairing.pairs import exhaustive_pairs

WIDTH, HEIGHT = 1024, 768


@pytest.fixture(autouse=True)
def _quiet_colmap() -> None:
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


def orbit(
    path: Path,
    camera: pycolmap.Camera,
    *,
    guess_px: float,
    num_images: int = 14,
    noise_px: float = 0.3,
    num_wrong: int = 0,
    is_prior: bool = False,
) -> None:
    """A database of a camera that goes half around points, as near as they are wide.

    Matches, not verified, are there for all pairs; in the database the focal length is
    `guess_px`, the principal point the middle, and the lens has no distortion.
    """
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (400, 3))
    with pycolmap.Database.open(path) as database:
        stored = pycolmap.Camera.create_from_model_id(
            0, camera.model, guess_px, camera.width, camera.height
        )
        stored.has_prior_focal_length = is_prior
        stored.camera_id = database.write_camera(stored)
        rig = pycolmap.Rig()
        rig.add_ref_sensor(stored.sensor_id)
        rig_id = database.write_rig(rig)
        rows = {}
        for k, angle in enumerate(np.linspace(0, np.pi, num_images)):
            image = pycolmap.Image(name=f"{k:02}.jpg", camera_id=stored.camera_id)
            image.image_id = database.write_image(image)
            frame = pycolmap.Frame()
            frame.rig_id = rig_id
            frame.add_data_id(image.data_id)
            database.write_frame(frame)
            in_camera = looking(angle, 0.2 * (-1) ** k)(points)
            xy = np.asarray(camera.img_from_cam(in_camera))
            xy = xy + rng.normal(0, noise_px, xy.shape)
            inside = ((xy > 0) & (xy < [camera.width, camera.height])).all(1)
            wrong = rng.permutation(len(points))[:num_wrong]
            xy[wrong] = rng.uniform(0, HEIGHT, (num_wrong, 2))
            rows[image.image_id] = inside | np.isin(np.arange(len(points)), wrong)
            database.write_keypoints(image.image_id, xy.astype(np.float32))
        for id0 in rows:
            for id1 in rows:
                if id0 < id1:
                    both = np.flatnonzero(rows[id0] & rows[id1]).astype(np.uint32)
                    database.write_matches(id0, id1, np.stack([both, both], 1))


def looking(angle: float, height: float):
    """The map into a camera on a circle of radius 1.6 that looks at the middle."""
    centre = np.array([1.6 * np.cos(angle), height, 1.6 * np.sin(angle)])
    forward = -centre / np.linalg.norm(centre)
    right = np.cross([0, 1, 0], forward)
    right /= np.linalg.norm(right)
    rotation = np.stack([right, np.cross(forward, right), forward])
    return lambda points: (points - centre) @ rotation.T


def lens(model: str, focal: float, *extra: float) -> pycolmap.Camera:
    camera = pycolmap.Camera.create_from_model_name(1, model, focal, WIDTH, HEIGHT)
    params = np.array(camera.params)
    params[list(camera.extra_params_idxs())[: len(extra)]] = extra
    camera.params = params.tolist()
    return camera


def run(path: Path, **settings: object) -> list[pycolmap.Reconstruction]:
    """Verifies and maps."""
    config = DatabaseConfig.model_validate(settings)
    with pycolmap.Database.open(path) as database:
        names = tuple(sorted(image.name for image in database.read_all_images()))
    verify_matches(path, exhaustive_pairs(names), config)
    images = ImageSet(path.parent, names, {}, {})
    return map_images(
        path, images, path.parent / "models", MappingConfig(), cameras=config
    )


# ---------------------------------------------------------------------------- fisheye
@pytest.mark.parametrize("model", ["SIMPLE_RADIAL_FISHEYE", "OPENCV_FISHEYE"])
@pytest.mark.parametrize("guess", [1.2, 0.25])
def test_fisheye_lens_of_unknown_focal_length_is_mapped(
    model: str, guess: float, tmp_path: Path
) -> None:
    path = tmp_path / "database.db"
    orbit(path, lens(model, 450, 0.02), guess_px=guess * WIDTH, num_wrong=60)
    (found,) = run(path)
    assert found.num_reg_images() == 14
    camera = found.cameras[1]
    assert camera.model_name == model
    assert camera.mean_focal_length() == pytest.approx(450, rel=0.01)
    assert camera.params[-4:] == pytest.approx([0.02, 0, 0, 0], abs=0.05) or (
        camera.params[-1] == pytest.approx(0.02, abs=0.01)
    )
