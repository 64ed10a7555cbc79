"""Planted outliers are found with a reason; sound captures of any shape lose none."""

from __future__ import annotations

import logging

import numpy as np
import pycolmap
import pytest

from sfmprep.config import OutlierConfig
from sfmprep.errors import ReconstructionError
from sfmprep.geometry.uncertainty import PoseUncertainty, pose_uncertainties
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.outliers import find_outliers, without_images

CONFIG = OutlierConfig()


@pytest.fixture(autouse=True)
def _quiet_colmap() -> None:
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


def synthesize(num_images: int = 9, num_points: int = 150) -> pycolmap.Reconstruction:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig = 1, num_images
    options.num_points3D = num_points
    pycolmap.set_random_seed(1)
    model = pycolmap.synthesize_dataset(options)
    noise = pycolmap.SyntheticNoiseOptions()
    noise.point2D_stddev = 0.5
    pycolmap.synthesize_noise(noise, model)
    return model


def place(model: pycolmap.Reconstruction, image_id: int, centre: np.ndarray) -> str:
    """Moves a camera without anything else."""
    image = model.images[image_id]
    pose = image.cam_from_world()
    pose.translation = -pose.rotation.matrix() @ centre
    model.frames[image.frame_id].rig_from_world = pose
    return str(image.name)


def keep_points(model: pycolmap.Reconstruction, image_id: int, count: int) -> str:
    image = model.images[image_id]
    seen = [row for row, p in enumerate(image.points2D) if p.has_point3D()]
    for row in seen[count:]:
        model.delete_observation(image_id, row)
    return str(image.name)


def test_sound_model_loses_nothing() -> None:
    model = synthesize()
    assert (
        find_outliers(
            ModelArrays.of(model),
            CONFIG,
            pose_uncertainties(model, ModelArrays.of(model)),
        )
        == {}
    )


def test_images_of_one_frame_support_each_other() -> None:
    model = synthesize()
    alone, held = keep_points(model, 1, 3), keep_points(model, 2, 3)
    other = str(model.images[3].name)
    arrays = ModelArrays.of(model)
    bad = PoseUncertainty(rotation_stddev_deg=90, position_stddev=1)
    good = PoseUncertainty(rotation_stddev_deg=0.1, position_stddev=1)
    told = {held: bad, other: good}
    assert find_outliers(arrays, CONFIG, told).keys() == {alone, held}
    frames = {held: (0, "1.jpg"), other: (0, "1.jpg")}
    assert find_outliers(arrays, CONFIG, told, frames).keys() == {alone}


def test_image_with_few_points_is_named_with_its_number() -> None:
    model = synthesize()
    name = keep_points(model, 3, 9)
    assert find_outliers(ModelArrays.of(model), CONFIG, {}) == {
        name: "its pose rests on 9 points, 20 are needed"
    }


def test_uncertain_rotation_is_named_with_its_angle() -> None:
    model = synthesize()
    name = str(model.images[4].name)
    bad = PoseUncertainty(rotation_stddev_deg=2.31, position_stddev=0.1)
    assert find_outliers(ModelArrays.of(model), CONFIG, {name: bad}) == {
        name: "its rotation is uncertain by 2.3 degrees, 1 are allowed"
    }
    lenient = CONFIG.model_copy(update={"max_rotation_stddev_deg": None})
    assert find_outliers(ModelArrays.of(model), lenient, {name: bad}) == {}


def test_camera_far_outside_is_named_with_its_distance() -> None:
    model = synthesize()
    name = place(model, 5, np.array([400.0, 0, 0]))
    found = find_outliers(ModelArrays.of(model), CONFIG, {})
    assert found.keys() == {name}
    assert "times the size of the capture away from all other cameras" in found[name]


def test_two_cameras_that_are_far_outside_together_are_both_found() -> None:
    model = synthesize()
    names = {place(model, i, np.array([500.0, i, 0])) for i in (2, 7)}
    assert find_outliers(ModelArrays.of(model), CONFIG, {}).keys() == names


def test_long_corridor_away_from_a_dense_room_is_no_outlier() -> None:
    model = synthesize(num_images=40)
    for step, image_id in enumerate(range(29, 41)):
        place(model, image_id, np.array([15.0 * (step + 1), 0, 0]))
    assert find_outliers(ModelArrays.of(model), CONFIG, {}) == {}


def test_all_cameras_at_one_spot_are_no_outliers() -> None:
    model = synthesize()
    for image_id in list(model.reg_image_ids()):
        place(model, image_id, np.zeros(3))
    assert find_outliers(ModelArrays.of(model), CONFIG, {}) == {}


def test_never_more_than_a_third_and_the_worst_go_first(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = synthesize(num_images=6)
    for image_id, count in ((1, 15), (2, 4), (3, 12), (4, 6)):
        keep_points(model, image_id, count)
    with caplog.at_level(logging.WARNING):
        found = find_outliers(ModelArrays.of(model), CONFIG, {})
    assert found.keys() == {model.images[2].name, model.images[4].name}
    assert "4 of 6 images are outliers by the thresholds" in caplog.text


@pytest.mark.parametrize("num_images", [2, 3])
def test_two_images_always_stay(num_images: int) -> None:
    model = synthesize(num_images=num_images)
    for image_id in list(model.reg_image_ids()):
        keep_points(model, image_id, 3)
    assert len(find_outliers(ModelArrays.of(model), CONFIG, {})) == num_images - 2


def test_empty_model_has_no_outliers() -> None:
    assert find_outliers(ModelArrays.of(pycolmap.Reconstruction()), CONFIG, {}) == {}


def test_left_out_image_takes_its_lonely_points_along() -> None:
    model = synthesize()
    name = str(model.images[3].name)
    before = model.num_points3D()
    for image_id in list(model.reg_image_ids())[2:]:
        if image_id != 3:
            model.delete_observation(image_id, 0)
    left = without_images(model, [name])
    assert model.num_reg_images() == 9 and model.images[3].has_pose
    assert left.num_reg_images() == 8 and not left.images[3].has_pose
    assert left.num_points3D() <= before
    assert all(
        len(point.track.elements) >= 2
        and all(e.image_id != 3 for e in point.track.elements)
        for point in left.points3D.values()
    )
    assert left.is_valid()


def test_unknown_image_cannot_be_left_out() -> None:
    with pytest.raises(ReconstructionError, match="'no.jpg' is not among the 9 reg"):
        without_images(synthesize(), ["no.jpg"])
