"""Images that are added to a finished model, and single photographs located in one."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.mapping.add import add_images, adjust_whole, bring_back
from sfmprep.mapping.adjust import adjust
from sfmprep.mapping.localise import Sightings, locate
from sfmprep.mapping.mapper import map_images
from sfmprep.mapping.outliers import without_images
from sfmprep.mapping.verify import verify_matches
from sfmprep.pairing.pairs import exhaustive_pairs
from sfmprep.types import Float64
from tests.support.orbit import lens, orbit

CAMERAS = DatabaseConfig(focal_length=650, camera_model="SIMPLE_PINHOLE")


@pytest.fixture(autouse=True)
def _quiet_colmap() -> None:
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


def test_added_image_is_as_good_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    truth = orbit(
        *(path, lens("SIMPLE_PINHOLE", 650)),
        guess_px=650,
        is_prior=True,
        num_images=7,
        num_points=150,
        turn=1.5,
    )
    names = tuple(sorted(truth))
    verify_matches(path, exhaustive_pairs(names), DatabaseConfig(), num_threads=1)
    images = ImageSet(tmp_path, names, {}, {})
    (whole,) = map_images(
        *(path, images, tmp_path / "a", MappingConfig()), cameras=CAMERAS
    )
    before = without_images(whole, ["03.jpg"])
    kept = {i.name: i.projection_center() for i in before.images.values() if i.has_pose}
    for image in before.images.values():  # as refinement does
        for point in image.points2D:
            point.xy = point.xy + 0.1
    (after,) = add_images(
        *([before], path, images, tmp_path / "b", MappingConfig()), cameras=CAMERAS
    )
    assert after.num_reg_images() == 7 and len(kept) == 6
    for image in after.images.values():
        if image.name in kept:
            off = image.projection_center() - kept[image.name]
            assert np.abs(off).max() < 1e-9
    camera = next(iter(after.cameras.values()))
    np.testing.assert_array_equal(
        camera.params, next(iter(before.cameras.values())).params
    )
    assert (
        evaluate_model(after, truth).auc[1] > 0.95 * evaluate_model(whole, truth).auc[1]
    )


def test_the_model_that_is_added_to_stays_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where another one is larger."""
    path = tmp_path / "database.db"
    truth = orbit(
        path, lens("SIMPLE_PINHOLE", 650), guess_px=650, is_prior=True, num_images=8
    )
    names = tuple(sorted(truth))
    verify_matches(path, exhaustive_pairs(names), DatabaseConfig(), num_threads=1)
    images = ImageSet(tmp_path, names, {}, {})
    (whole,) = map_images(
        *(path, images, tmp_path / "a", MappingConfig()), cameras=CAMERAS
    )
    small = without_images(whole, names[2:])
    monkeypatch.setattr(  # nothing joins
        "sfmprep.mapping.add.map_incrementally", lambda *_, onwards, **__: [onwards]
    )
    found = add_images(
        *([small, whole], path, images, tmp_path / "b", MappingConfig()),
        cameras=CAMERAS,
    )
    sizes = [model.num_reg_images() for model in found]
    assert sizes == [2, 8]


def test_adjusted_model_is_what_all_images_tell(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    truth = orbit(path, lens("SIMPLE_RADIAL", 650, centre=(545, 384)), guess_px=650)
    names = tuple(sorted(truth))
    verify_matches(path, exhaustive_pairs(names), DatabaseConfig(), num_threads=1)
    (whole,) = map_images(
        path, ImageSet(tmp_path, names, {}, {}), tmp_path / "a", MappingConfig()
    )
    (key,) = whole.cameras
    spoiled = [660, 480, 384, *whole.cameras[key].params[3:]]
    wrong = pycolmap.Reconstruction(whole)
    wrong.cameras[key].params = spoiled
    adjust(wrong, refine="none")
    assert evaluate_model(wrong, truth).auc[1] < 50
    told = adjust_whole(wrong, MappingConfig(), DatabaseConfig())
    np.testing.assert_allclose(
        told.cameras[key].params, whole.cameras[key].params, atol=0.5
    )
    auc = evaluate_model(told, truth).auc[1]
    assert auc > evaluate_model(whole, truth).auc[1] - 1
    np.testing.assert_array_equal(wrong.cameras[key].params, spoiled)
    for known in (
        DatabaseConfig(refine="none"),
        DatabaseConfig(camera_model="SIMPLE_RADIAL", camera_params=[660, 480, 384, 0]),
    ):
        kept = adjust_whole(wrong, MappingConfig(), known).cameras[key].params
        np.testing.assert_array_equal(kept[1:3], [480, 384])


def test_principal_point_that_fewer_images_told_goes_on_from_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With all images it comes out as of all at once, without a search."""
    path = tmp_path / "database.db"
    camera = lens("SIMPLE_RADIAL", 650, centre=(545, 354))
    truth = orbit(path, camera, guess_px=650, sway=0.3)
    names = tuple(sorted(truth))
    verify_matches(path, exhaustive_pairs(names), DatabaseConfig(), num_threads=1)
    (whole,) = map_images(
        path, ImageSet(tmp_path, names, {}, {}), tmp_path / "a", MappingConfig()
    )
    (key,) = whole.cameras
    told = np.array(whole.cameras[key].params)
    assert (np.abs(told[1:3] - [512, 384]) > 20).all()
    fewer = pycolmap.Reconstruction(whole)
    fewer.cameras[key].params = [*told[:1], told[1] - 6, told[2] + 6, *told[3:]]
    adjust(fewer, loss_scale=1.0, fixed=[key])
    monkeypatch.setattr("sfmprep.mapping.add.refine_model", None)
    found = adjust_whole(fewer, MappingConfig(), DatabaseConfig())
    np.testing.assert_allclose(found.cameras[key].params, told, atol=0.7)
    at_once, auc = (evaluate_model(each, truth).auc[1] for each in (whole, found))
    assert auc > at_once - 1 > evaluate_model(fewer, truth).auc[1]


def test_model_is_brought_back_by_most_of_its_poses(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    truth = orbit(path, lens("SIMPLE_PINHOLE", 650), guess_px=650, is_prior=True)
    names = tuple(sorted(truth))
    verify_matches(path, exhaustive_pairs(names), DatabaseConfig(), num_threads=1)
    images = ImageSet(tmp_path, names, {}, {})
    (after,) = map_images(
        *(path, images, tmp_path / "a", MappingConfig()), cameras=CAMERAS
    )
    earlier = without_images(after, [names[0]])
    turn = pycolmap.Rotation3d(np.array([0.3, -0.2, 0.1]))
    earlier.transform(pycolmap.Sim3d(3.0, turn, np.array([5.0, 1.0, -2.0])))
    odd = next(i for i in earlier.images.values() if i.name == names[1])
    pose = odd.cam_from_world()
    away = pycolmap.Rigid3d(pose.rotation, pose.translation + [2.0, 0, 0])
    earlier.frames[odd.frame_id].set_cam_from_world(odd.camera_id, away)
    moved = bring_back(after, earlier)
    assert moved is not None
    places = {i.name: i.projection_center() for i in after.images.values()}
    for image in earlier.images.values():
        if image.has_pose and image.name != odd.name:
            np.testing.assert_allclose(
                places[image.name], image.projection_center(), atol=1e-3
            )
    assert len(moved.share) == len(names) - 1
    assert np.median(moved.share) < 1e-4 and np.argmax(moved.share) == 0
    assert moved.share[0] > 0.05 and moved.rotation_deg.max() < 1e-2

    alone = without_images(earlier, names[2:])
    before = places[names[1]]
    assert bring_back(after, alone) is None
    two = without_images(earlier, names[3:])
    first, second = (i for i in two.images.values() if i.name in names[1:3])
    pose = first.cam_from_world()
    beside = pycolmap.Rigid3d(pose.rotation, pose.translation + [1e-15, 0, 0])
    two.frames[second.frame_id].set_cam_from_world(second.camera_id, beside)
    assert bring_back(after, two) is None
    image = next(i for i in after.images.values() if i.name == names[1])
    np.testing.assert_array_equal(image.projection_center(), before)


# ------------------------------------------------------------------- one photograph
def sightings(
    count: int, *, wrong: int = 0, images: int = 3, noise_px: float = 0.3
) -> tuple[Sightings, Float64, Float64]:
    """What a camera at (1, 2, -5) sees of points around the origin, some wrongly."""
    rng = np.random.default_rng(0)
    xyz = rng.uniform(-1, 1, (count, 3))
    rotation = pycolmap.Rotation3d(np.array([0.1, -0.05, 0.02])).matrix()
    centre = np.array([0.3, 0.2, -4.0])
    xy = np.asarray(CAMERA.img_from_cam((xyz - centre) @ rotation.T))
    xy = xy + rng.normal(0, noise_px, xy.shape)
    xy[:wrong] = rng.uniform(0, 700, (wrong, 2))
    seen = Sightings(
        keypoint=np.arange(count), xy=xy, xyz=xyz, image=np.arange(count) % images
    )
    return seen, np.asarray(rotation), centre


CAMERA = lens("SIMPLE_PINHOLE", 650)
CAMERA.has_prior_focal_length = True


def test_photograph_is_found() -> None:
    seen, rotation, centre = sightings(200, wrong=60)
    found = locate("a.jpg", seen, [CAMERA], max_error_px=4)
    assert (found.verdict, found.reason) == ("found", "")
    assert 135 <= found.num_inliers <= 145 and found.num_matches == 200
    assert found.rotation is not None and found.centre is not None
    np.testing.assert_allclose(found.rotation, rotation, atol=2e-3)
    np.testing.assert_allclose(found.centre, centre, atol=5e-3)
    world = pycolmap.Sim3d(2.0, pycolmap.Rotation3d(np.array([0, 0, 1.0])), np.ones(3))
    moved = found.moved(world)
    assert moved.centre is not None and moved.rotation is not None
    np.testing.assert_allclose(
        moved.centre, np.asarray(world * found.centre), atol=1e-9
    )
    turn = np.asarray(world.rotation.matrix())
    np.testing.assert_allclose(moved.rotation @ turn, found.rotation, atol=1e-9)
    assert moved.position_stddev == 2 * (found.position_stddev or 0)


def test_uncertainty_is_the_spread_of_poses() -> None:
    found, centres = [], []
    for seed in range(30):
        seen, _, _ = sightings(60, noise_px=0)
        noise = np.random.default_rng(seed).normal(0, 1.0, seen.xy.shape)
        seen.xy[:] += noise
        each = locate("a.jpg", seen, [CAMERA], max_error_px=8)
        found.append(each.position_stddev)
        centres.append(each.centre)
    spread = np.sqrt(np.linalg.eigvalsh(np.cov(np.array(centres).T))[-1])
    assert np.median(found) == pytest.approx(spread, rel=0.4)


def test_unknown_focal_length_is_estimated() -> None:
    seen, _, centre = sightings(200)
    guess = lens("SIMPLE_PINHOLE", 1200)
    guess.has_prior_focal_length = False
    found = locate("a.jpg", seen, [guess], max_error_px=4)
    assert found.verdict == "found"
    assert found.camera is not None and found.centre is not None
    assert found.camera.mean_focal_length() == pytest.approx(650, rel=0.02)
    np.testing.assert_allclose(found.centre, centre, atol=0.1)


def test_what_is_not_known_or_doubtful() -> None:
    nothing, _, _ = sightings(0)
    found = locate("a.jpg", nothing, [CAMERA], max_error_px=4)
    assert (found.verdict, found.rotation) == ("unknown", None)
    assert found.reason == "0 of its keypoints match points of the model, too few"
    chance, _, _ = sightings(60, wrong=60)
    found = locate("a.jpg", chance, [CAMERA], max_error_px=4)
    assert found.verdict == "unknown"
    assert found.reason.endswith("are needed to rule out chance")
    few, _, _ = sightings(20)
    found = locate("a.jpg", few, [CAMERA], max_error_px=4)
    assert (found.verdict, found.reason) == ("doubtful", "only 20 keypoints agree")
    alone, _, _ = sightings(60, images=1)
    found = locate("a.jpg", alone, [CAMERA], max_error_px=4)
    assert found.reason == "one image of the model alone tells it"
