"""The last bundle adjustment: principal points, one coordinate at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.evaluation.reference import CameraPose
from sfmprep.mapping.adjust import adjust, noise_px, refine_model
from sfmprep.mapping.mapper import map_images
from sfmprep.mapping.verify import verify_matches
from sfmprep.pairing.pairs import exhaustive_pairs
from tests.support.orbit import lens, orbit, orbit_model


def map_orbit(
    folder: Path, offset: tuple[float, float], sway: float = 0.0
) -> tuple[pycolmap.Reconstruction, dict[str, CameraPose]]:
    """An orbit, level without `sway`; its principal point is `offset` off."""
    camera = lens("SIMPLE_RADIAL", 800)
    camera.params = [800.0, 512 + offset[0], 384 + offset[1], 0.0]
    path = folder / "database.db"
    truth = orbit(
        *(path, camera),
        guess_px=800,
        is_prior=True,
        sway=sway,
        num_images=15,
        turn=5.5,
        num_points=250,
    )
    verify_matches(path, exhaustive_pairs(sorted(truth)), DatabaseConfig())
    images = ImageSet(folder, tuple(sorted(truth)), {}, {})
    (model,) = map_images(path, images, folder / "models", MappingConfig())
    return model, truth


def rotation_error_deg(
    model: pycolmap.Reconstruction, truth: dict[str, CameraPose]
) -> float:
    """The mean angle to the true rotations, after the best rotation of the world."""
    images = [model.images[k] for k in model.reg_image_ids()]
    own = np.array([i.cam_from_world().rotation.matrix() for i in images])
    true = np.array([truth[i.name].rotation for i in images])
    u, _, vt = np.linalg.svd(np.einsum("vji,vjk->ik", own, true))
    between = own @ (u @ vt) @ true.transpose(0, 2, 1)
    cosine = (np.trace(between, axis1=1, axis2=2) - 1) / 2
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))).mean())


def test_only_the_coordinate_moves_that_is_off(tmp_path: Path) -> None:
    """In a level orbit y is hardly told: moved with x, it would spoil the poses."""
    model, truth = map_orbit(tmp_path, (15, 0))
    assert model.cameras[1].params[1] == pytest.approx(527, abs=1.5)
    assert model.cameras[1].params[2] == 384
    assert rotation_error_deg(model, truth) < 0.06


def test_both_coordinates_move_where_both_are_told(tmp_path: Path) -> None:
    model, truth = map_orbit(tmp_path, (15, -25), sway=0.3)
    assert model.cameras[1].params[1:3] == pytest.approx([527, 359], abs=3)
    assert rotation_error_deg(model, truth) < 0.06


def test_principal_point_is_bounded(tmp_path: Path) -> None:
    """A picture that was cut off at one side is no lens that is off by so much."""
    model, _ = map_orbit(tmp_path, (140, 0))
    assert model.cameras[1].params[1:3].tolist() == [512, 384]


def test_what_keypoints_err_by_moves_no_principal_point(tmp_path: Path) -> None:
    """2 of 1024 pixels, however surely the photographs tell them."""
    model, _ = map_orbit(tmp_path, (2, 0))
    assert model.cameras[1].params[1:3].tolist() == [512, 384]


def test_views_that_tell_no_principal_point_leave_it() -> None:
    """Three through a long lens: freed, it would run away and take the focal length."""
    camera = lens("SIMPLE_RADIAL", 2500)
    model, _ = orbit_model([camera], num_points=400, noise_px=1.0)
    for image_id in model.reg_image_ids()[3:]:
        model.deregister_frame(model.images[image_id].frame_id)
    auto, always = (
        refine_model(
            model, MappingConfig.model_validate({"refine_principal_point": when})
        ).cameras[1]
        for when in ("auto", "always")
    )
    assert auto.params[1:3] == pytest.approx([512, 384], abs=2)
    assert auto.params[0] == pytest.approx(2500, rel=0.02)
    assert np.hypot(*(always.params[1:3] - [512, 384])) > 50


def test_known_principal_points_stay_and_the_rest_of_the_lens_does_not() -> None:
    """Photographs that would move it by 15 pixels; only `always` still may."""
    model, _ = orbit_model([lens("SIMPLE_RADIAL", 700)], num_points=400, noise_px=0.3)
    camera = model.cameras[1]
    camera.params = [690, 527, 384, 0.01]
    for when, expected in (("auto", 527), ("always", 512)):
        config = MappingConfig.model_validate({"refine_principal_point": when})
        found = refine_model(model, config, known_centres={1}).cameras[1]
        assert found.params[1] == pytest.approx(
            expected, abs=0 if when == "auto" else 2
        )
        assert found.params[0] == pytest.approx(700, rel=0.01)
    free = refine_model(model, MappingConfig()).cameras[1]
    assert free.params[1] == pytest.approx(512, abs=2)


@pytest.mark.parametrize("num_images", [2, 20])
def test_two_images_tell_the_noise_of_keypoints_as_well(num_images: int) -> None:
    camera = lens("SIMPLE_RADIAL", 700)
    model, _ = orbit_model([camera], num_images=num_images, noise_px=0.5)
    adjust(model, refine="none")
    assert noise_px(model) == pytest.approx(0.5, rel=0.3)


def test_with_a_tolerance_it_ends_sooner() -> None:
    """Near where it would have ended, or far from it where that is allowed."""
    pycolmap.set_random_seed(0)
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig, options.num_points3D = 1, 8, 200
    errors = []
    for tolerance in (1e-9, 1e-4, 0.9):
        pycolmap.set_random_seed(0)
        model = pycolmap.synthesize_dataset(options)
        noise = pycolmap.SyntheticNoiseOptions()
        noise.point2D_stddev, noise.rig_from_world_translation_stddev = 0.3, 0.05
        pycolmap.synthesize_noise(noise, model)
        adjust(model, loss_scale=1.0, tolerance=tolerance)
        errors.append(model.compute_mean_reprojection_error())
    assert errors[1] == pytest.approx(errors[0], rel=0.02)
    assert errors[2] > 1.05 * errors[0]


@pytest.mark.parametrize(("num_images", "is_moved"), [(2, False), (3, True)])
def test_principal_points_of_cameras_of_two_images_stay(
    num_images: int, is_moved: bool
) -> None:
    """Told as well as anywhere, yet turns of two images do nearly the same."""
    cameras = [lens("SIMPLE_RADIAL", 700) for _ in range(6)]
    for camera in cameras:
        camera.params = [700.0, 532, 384, 0.0]
    model, _ = orbit_model(
        cameras, num_images=6 * num_images, num_points=400, noise_px=0.2
    )
    refined = refine_model(model, MappingConfig())
    moved = [
        bool(np.any(refined.cameras[key].params[1:3] != [512, 384]))
        for key in range(1, 7)
    ]
    assert moved == [is_moved] * 6


def test_what_nothing_holds_any_more_is_dropped() -> None:
    """Five points of two wrong keypoints each: a robust loss lets go of them."""
    model, _ = orbit_model([lens("SIMPLE_RADIAL", 700)], num_points=400, noise_px=0.3)
    for point_id in sorted(model.points3D)[:5]:
        point = model.points3D[point_id]
        track = pycolmap.Track()
        for element, off in zip(point.track.elements[:2], (60, -60), strict=True):
            track.add_element(element.image_id, element.point2D_idx)
            seen = model.images[element.image_id].points2D[element.point2D_idx]
            seen.xy = seen.xy + off
        xyz = point.xyz.copy()
        model.delete_point3D(point_id)
        model.add_point3D(xyz, track)
    refined = refine_model(model, MappingConfig())
    assert refined.num_points3D() == model.num_points3D() - 5
    assert max(point.error for point in refined.points3D.values()) < 4
