"""Cameras that were zoomed in between, from matches to poses."""

from __future__ import annotations

from pathlib import Path

import pycolmap
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.mapping import split_cameras as module
from sfmprep.mapping.mapper import continue_models, map_images
from sfmprep.mapping.runs import Run
from sfmprep.mapping.split_cameras import cameras_apart, split_cameras
from sfmprep.mapping.verify import verify_matches
from sfmprep.pairing.pairs import exhaustive_pairs
from tests.support.orbit import lens, orbit


@pytest.mark.parametrize("zoom", [1.08, 1.3])
def test_a_camera_that_was_zoomed_is_two(
    zoom: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "database.db"
    truth = orbit(
        *(path, lens("SIMPLE_RADIAL", 800)),
        guess_px=850,
        num_images=15,
        num_points=300,
        zoom=zoom,
    )
    names = tuple(sorted(truth))
    verify_matches(path, exhaustive_pairs(names), DatabaseConfig())
    images = ImageSet(tmp_path, names, {}, {})
    (model,) = map_images(path, images, tmp_path / "split", MappingConfig())
    assert model.num_reg_images() == 15
    cameras = {
        image.name: model.cameras[image.camera_id] for image in model.images.values()
    }
    assert len({camera.camera_id for camera in cameras.values()}) == 2
    for k, name in enumerate(names):
        true = 800 * zoom if k % 3 == 2 else 800
        assert cameras[name].mean_focal_length() == pytest.approx(true, rel=0.01)
    assert evaluate_model(model, truth).auc[1] > 95

    # what goes on from it has both cameras as well
    (after,) = continue_models(
        *([model], path, images, tmp_path / "after", MappingConfig())
    )
    assert evaluate_model(after, truth).auc[1] > 95
    assert len({image.camera_id for image in after.images.values()}) == 2

    monkeypatch.setattr(
        "sfmprep.mapping.mapper.split_zooms", lambda _, models, __: models
    )
    shared = map_images(path, images, tmp_path / "shared", MappingConfig())[0]
    assert evaluate_model(shared, truth).auc[1] < 60


@pytest.mark.parametrize("every", [True, False])
def test_images_are_not_lost_for_cameras_of_their_own(
    every: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where all would begin anew, nor where some do not come back."""
    path = tmp_path / "database.db"
    camera = lens("OPENCV", 800)
    truth = orbit(path, camera, guess_px=800, num_images=8, num_points=200)
    names = tuple(sorted(truth))
    verify_matches(path, exhaustive_pairs(names), DatabaseConfig())
    zoomed = dict.fromkeys(names if every else names[:3], lens("SIMPLE_RADIAL", 900))
    asked = []

    def go_on(run: Run, models: list[pycolmap.Reconstruction]) -> list[object]:
        asked.append(models[0].num_reg_images())
        return []

    monkeypatch.setattr(module, "find_zoomed", lambda *_: zoomed)
    monkeypatch.setattr(module, "find_two_zooms", lambda *_: [])
    monkeypatch.setattr(module, "go_on", go_on)
    (model,) = map_images(
        *(path, ImageSet(tmp_path, names, {}, {})),
        *(tmp_path / "models", MappingConfig()),
    )
    assert model.num_reg_images() == 8
    assert asked == ([] if every else [5])
    assert {image.camera_id for image in model.images.values()} == {1}


def test_images_that_share_a_camera_get_those_of_a_model(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    orbit(path, lens("SIMPLE_RADIAL", 800), guess_px=850, num_images=4, num_points=50)
    longer = lens("SIMPLE_RADIAL", 900)
    split_cameras(path, {"01.jpg": longer, "03.jpg": lens("SIMPLE_RADIAL", 900)})
    with pycolmap.Database.open(path) as database:
        images = {image.name: image for image in database.read_all_images()}
        cameras = {c.camera_id: c for c in database.read_all_cameras()}
        for name, image in images.items():
            frame = database.read_frame(image.frame_id)
            assert frame.has_data(image.data_id)
            rig = database.read_rig(frame.rig_id)
            assert rig.ref_sensor_id == cameras[image.camera_id].sensor_id
            focal = 900 if name in ("01.jpg", "03.jpg") else 850
            assert cameras[image.camera_id].mean_focal_length() == focal
    assert len(cameras) == 2  # with the same numbers they share one
    assert cameras_apart(path, pycolmap.Reconstruction()) == {}
