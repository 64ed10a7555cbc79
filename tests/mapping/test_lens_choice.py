"""Which lens model is chosen for lenses that are known."""

from __future__ import annotations

import pycolmap
import pytest

from sfmprep.config import MappingConfig
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.mapping.adjust import refine_model
from sfmprep.mapping.lens_choice import choose_lenses
from tests.support.orbit import lens, orbit_model

OFF = (527, 372)


@pytest.mark.parametrize(
    ("camera", "expected"),
    [
        (lens("SIMPLE_RADIAL", 800, -0.1), "SIMPLE_RADIAL"),
        # the decentring of OPENCV is not taken for a principal point that is off
        (lens("SIMPLE_RADIAL", 800, -0.1, centre=OFF), "SIMPLE_RADIAL"),
        (lens("RADIAL", 700, -0.25, 0.08, centre=OFF), "RADIAL"),
        (lens("OPENCV", 700, -0.28, 0.1, 0.003, -0.002), "OPENCV"),
        (lens("RADIAL_FISHEYE", 480, -0.06, 0.06), "RADIAL_FISHEYE"),
    ],
)
def test_lens_is_the_one_that_took_the_photographs(
    camera: pycolmap.Camera, expected: str
) -> None:
    model, truth = orbit_model([camera])
    chosen = choose_lenses(model)
    assert chosen.cameras[1].model_name == expected
    refined = refine_model(chosen, MappingConfig())
    assert refined.cameras[1].model_name == expected
    found = refined.cameras[1].mean_focal_length()
    assert found == pytest.approx(camera.mean_focal_length(), rel=0.01)
    assert evaluate_model(refined, truth).auc[1] > 93
    assert model.cameras[1].model_name.startswith("SIMPLE_RADIAL")


def test_each_camera_has_its_own_lens() -> None:
    cameras = [lens("RADIAL", 700, -0.25, 0.08), lens("SIMPLE_RADIAL", 800, -0.1)]
    model, _ = orbit_model(cameras)
    chosen = choose_lenses(model)
    assert chosen.cameras[1].model_name == "RADIAL"
    assert chosen.cameras[2].model_name == "SIMPLE_RADIAL"


@pytest.mark.parametrize(("num_images", "known"), [(7, []), (8, [1])])
def test_cameras_of_few_images_and_known_ones_are_not_asked(
    num_images: int, known: list[int]
) -> None:
    model, _ = orbit_model([lens("RADIAL", 700, -0.25, 0.08)], num_images=num_images)
    assert choose_lenses(model, known).cameras[1].model_name == "SIMPLE_RADIAL"


def test_in_large_models_a_block_tells_the_lens(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cameras = [lens("RADIAL", 700, -0.25, 0.08), lens("SIMPLE_RADIAL", 800, -0.1)]
    model, _ = orbit_model(cameras)
    monkeypatch.setattr("sfmprep.mapping.lens_choice._MAX_IMAGES", 10)
    monkeypatch.setattr("sfmprep.mapping.lens_choice._BLOCK_IMAGES", 30)
    chosen = choose_lenses(model)
    assert chosen.cameras[1].model_name == "RADIAL"
    assert chosen.cameras[2].model_name == "SIMPLE_RADIAL"
    assert chosen.num_reg_images() == model.num_reg_images()
