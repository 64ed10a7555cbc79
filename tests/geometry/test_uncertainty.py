"""Uncertainties against what noise really does to poses and points."""

from __future__ import annotations

import numpy as np
import pycolmap
import pytest

from sfmprep.config import MappingConfig
from sfmprep.geometry import uncertainty
from sfmprep.geometry.uncertainty import (
    noise_px,
    point_uncertainties,
    pose_uncertainties,
    principal_point_deviations,
)
from sfmprep.geometry.views import ModelArrays, Views
from sfmprep.mapping.mapper import refine_model


@pytest.fixture(autouse=True)
def _quiet_colmap() -> None:
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


def synthesize(
    *, num_images: int = 8, num_points: int = 80, track_length: int = 5
) -> pycolmap.Reconstruction:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig = 1, num_images
    options.num_points3D, options.track_length = num_points, track_length
    options.camera_params = [1000.0, 512.0, 384.0, 0.02]
    pycolmap.set_random_seed(1)
    return pycolmap.synthesize_dataset(options)


def noisy(
    truth: pycolmap.Reconstruction, seed: int, stddev: float = 0.5
) -> pycolmap.Reconstruction:
    """Bundle adjusted after noise on the keypoints, in the frame of the truth."""
    model = pycolmap.Reconstruction(truth)
    noise = pycolmap.SyntheticNoiseOptions()
    noise.point2D_stddev = stddev
    pycolmap.set_random_seed(seed)
    pycolmap.synthesize_noise(noise, model)
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    pycolmap.bundle_adjustment(model, options)
    model.transform(
        pycolmap.estimate_sim3d(Views.of(model).centres, Views.of(truth).centres)
    )
    return model


def test_uncertainty_of_poses_is_the_spread_of_poses() -> None:
    truth = synthesize()
    names, centres = Views.of(truth).names, Views.of(truth).centres
    runs = [noisy(truth, seed) for seed in range(100, 180)]
    views = [Views.of(model) for model in runs]
    spread = np.sqrt(((np.stack([v.centres for v in views]) - centres) ** 2).sum(2))
    turns = np.array(
        [
            [
                np.degrees(np.arccos(np.clip((np.trace(a @ b.T) - 1) / 2, -1, 1)))
                for a, b in zip(v.rotations, Views.of(truth).rotations, strict=True)
            ]
            for v in views
        ]
    )
    found = pose_uncertainties(runs[0], ModelArrays.of(runs[0]))
    for row, name in enumerate(names):
        # Three axes together are between one and the root of three of the largest.
        position = np.sqrt((spread[:, row] ** 2).mean())
        rotation = np.sqrt((turns[:, row] ** 2).mean())
        assert 0.5 * position < found[name].position_stddev < 1.3 * position
        assert 0.5 * rotation < found[name].rotation_stddev_deg < 1.3 * rotation


def test_no_camera_is_perfect_by_definition() -> None:
    model = noisy(synthesize(), 5)
    found = pose_uncertainties(model, ModelArrays.of(model)).values()
    rotations = [u.rotation_stddev_deg for u in found]
    positions = [u.position_stddev for u in found]
    assert min(rotations) > 0.5 * np.median(rotations)
    assert min(positions) > 0.3 * np.median(positions)


def test_uncertainty_does_not_depend_on_the_world_frame() -> None:
    model = noisy(synthesize(), 6)
    before = pose_uncertainties(model, ModelArrays.of(model))
    model.transform(
        pycolmap.Sim3d(
            7.0, pycolmap.Rotation3d(np.array([0.3, -1.0, 0.5])), np.array([40, -9, 3])
        )
    )
    after = pose_uncertainties(model, ModelArrays.of(model))
    for name, old in before.items():
        assert after[name].rotation_stddev_deg == pytest.approx(
            old.rotation_stddev_deg, rel=0.02
        )
        assert after[name].position_stddev == pytest.approx(
            7 * old.position_stddev, rel=0.02
        )


def test_weak_camera_is_uncertain_and_does_not_spoil_the_others() -> None:
    model = noisy(synthesize(num_points=200), 7)
    before = pose_uncertainties(model, ModelArrays.of(model))
    weak = model.images[min(model.reg_image_ids())]
    seen = [row for row, p in enumerate(weak.points2D) if p.has_point3D()]
    for row in seen[4:]:
        model.delete_observation(weak.image_id, row)
    after = pose_uncertainties(model, ModelArrays.of(model))
    assert (
        after[weak.name].rotation_stddev_deg > 4 * before[weak.name].rotation_stddev_deg
    )
    for name in before.keys() - {weak.name}:
        assert after[name].rotation_stddev_deg < 1.2 * before[name].rotation_stddev_deg
        assert after[name].position_stddev < 1.2 * before[name].position_stddev


def test_noise_is_that_of_the_keypoints() -> None:
    model = noisy(synthesize(num_points=300), 8, stddev=0.7)
    assert noise_px(ModelArrays.of(model)) == pytest.approx(0.7, rel=0.1)


def test_noise_after_a_robust_adjustment_is_not_that_of_wrong_matches() -> None:
    model = noisy(synthesize(num_points=300), 8, stddev=0.7)
    rng = np.random.default_rng(0)
    for image in model.images.values():
        for row in rng.choice(image.num_points2D(), image.num_points2D() // 20, False):
            point = image.points2D[int(row)]
            point.xy = point.xy + 30 * rng.normal(size=2)
    config = MappingConfig(refine_principal_point="never")
    adjusted = refine_model(model, config)
    assert noise_px(ModelArrays.of(adjusted)) == pytest.approx(0.7, rel=0.1)


def test_noise_of_nothing_and_of_exact_keypoints_is_zero() -> None:
    assert noise_px(ModelArrays.of(pycolmap.Reconstruction())) == 0
    assert noise_px(ModelArrays.of(synthesize())) < 1e-9


def test_uncertainty_of_points_is_their_spread_with_fixed_poses() -> None:
    model = synthesize(num_points=400, track_length=3)
    views = Views.of(model)
    noise = pycolmap.SyntheticNoiseOptions()
    noise.point2D_stddev = 0.5
    moved = pycolmap.Reconstruction(model)
    pycolmap.set_random_seed(3)
    pycolmap.synthesize_noise(noise, moved)
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_focal_length = options.refine_extra_params = False
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in views.ids.tolist():
        config.add_image(image_id)
        config.set_constant_rig_from_world_pose(moved.images[image_id].frame_id)
    pycolmap.create_default_ceres_bundle_adjuster(options, config, moved).solve()
    expected = point_uncertainties(ModelArrays.of(moved))
    ratios = []
    for point_id, point in moved.points3D.items():
        truth = model.points3D[point_id].xyz
        seen = [e.image_id for e in point.track.elements]
        nearest = min(
            np.linalg.norm(truth - c)
            for i, c in zip(views.ids, views.centres, strict=True)
            if i in seen
        )
        error = np.linalg.norm(point.xyz - truth) / nearest
        ratios.append(error / expected[point_id])
    # The length of three axes over the largest stddev: between 1 and 3 on average.
    assert 0.8 < np.mean(np.square(ratios)) < 3


def with_free_centre(model: pycolmap.Reconstruction) -> pycolmap.Reconstruction:
    """Adjusted once more, its principal point free."""
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_principal_point = True
    pycolmap.bundle_adjustment(model, options)
    return model


def test_uncertainty_of_principal_points_is_their_spread() -> None:
    truth = synthesize(num_points=150)
    runs = [with_free_centre(noisy(truth, seed)) for seed in range(100, 160)]
    (key,) = truth.cameras
    spread = np.std([model.cameras[key].params[1:3] for model in runs], axis=0)
    found = [principal_point_deviations(model)[key] for model in runs[:5]]
    assert np.mean(found, axis=0) == pytest.approx(spread, rel=0.25)
    assert principal_point_deviations(runs[0], fixed={key}) == {}


def test_of_many_images_principal_points_are_told_by_a_block(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = with_free_centre(noisy(synthesize(num_images=12, num_points=300), 0))
    (key,) = model.cameras
    whole = principal_point_deviations(model)[key]
    monkeypatch.setattr(uncertainty, "MAX_IMAGES", 11)
    monkeypatch.setattr(uncertainty, "_BLOCK_IMAGES", 6)
    block = principal_point_deviations(model)[key]
    assert (whole < block).all()  # fewer images tell it
    assert (block < 4 * whole).all()


def test_two_images_tell_no_principal_point() -> None:
    model = noisy(synthesize(num_images=3, track_length=2), 0)
    assert set(principal_point_deviations(model)) == set(model.cameras)
    weak = max(model.reg_image_ids())
    for row, point in enumerate(model.images[weak].points2D):
        if point.has_point3D():
            model.delete_observation(weak, row)
    model.deregister_frame(model.images[weak].frame_id)
    assert principal_point_deviations(model) == {}
    assert principal_point_deviations(pycolmap.Reconstruction()) == {}


def test_of_many_images_uncertainties_are_those_in_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = noisy(synthesize(num_images=12, num_points=300), 0)
    arrays = ModelArrays.of(model)
    whole = pose_uncertainties(model, arrays)
    monkeypatch.setattr(uncertainty, "MAX_IMAGES", 11)
    monkeypatch.setattr(uncertainty, "_BLOCK_IMAGES", 12)
    one_block = pose_uncertainties(model, arrays)
    assert one_block.keys() == whole.keys()
    for name, found in one_block.items():  # COLMAP holds three other points still
        assert found.rotation_stddev_deg == pytest.approx(
            whole[name].rotation_stddev_deg, rel=0.01
        )
        assert found.position_stddev == pytest.approx(
            whole[name].position_stddev, rel=0.01
        )
    monkeypatch.setattr(uncertainty, "_BLOCK_IMAGES", 6)
    in_two = pose_uncertainties(model, arrays)
    assert in_two.keys() == whole.keys()
    for name, found in in_two.items():  # fewer others hold it
        ratio = found.rotation_stddev_deg / whole[name].rotation_stddev_deg
        assert 0.7 < ratio < 4


def test_without_points_there_is_no_uncertainty(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model = synthesize()
    model.delete_all_points2D_and_points3D()
    assert pose_uncertainties(model, ModelArrays.of(model)) == {}
    assert "cannot be computed" in caplog.text
    assert point_uncertainties(ModelArrays.of(model)) == {}
    model = pycolmap.Reconstruction()
    assert pose_uncertainties(model, ModelArrays.of(model)) == {}
    assert point_uncertainties(ModelArrays.of(model)) == {}
