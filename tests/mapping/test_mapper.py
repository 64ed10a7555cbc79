"""Mapping on synthetic captures whose poses are known."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.mapping.adjust import adjust, refine_model
from sfmprep.mapping.failure import explain_failure
from sfmprep.mapping.mapper import map_images, prepared
from sfmprep.mapping.verify import VerifiedPairs, read_verified
from sfmprep.progress import silent

Synthesize = Callable[..., pycolmap.Reconstruction]


@pytest.fixture(autouse=True)
def _quiet_colmap() -> None:
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


def synthesize(
    path: Path,
    *,
    num_images: int = 10,
    noise_px: float = 0.3,
    principal_point: tuple[float, float] = (512.0, 384.0),
    seed: int = 3,
) -> pycolmap.Reconstruction:
    """A verified database of one camera; in it the principal point is the centre."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_frames_per_rig = 1, num_images
    options.num_points3D = 200
    options.camera_params = [1000.0, *principal_point, 0.02]
    options.camera_has_prior_focal_length = True
    noise = pycolmap.SyntheticNoiseOptions()
    noise.point2D_stddev = noise_px
    pycolmap.set_random_seed(seed)
    with pycolmap.Database.open(path) as database:
        truth = pycolmap.synthesize_dataset(options, database)
        pycolmap.synthesize_noise(noise, truth, database)
        camera = database.read_all_cameras()[0]
        camera.params = [1000.0, 512.0, 384.0, 0.0]
        database.update_camera(camera)
    return truth


@pytest.mark.parametrize("told", [None, 1100.0])
def test_focal_lengths_that_are_given_are_not_calibrated(
    tmp_path: Path, told: float | None
) -> None:
    """But those that the configuration tells count before them."""
    path = tmp_path / "database.db"
    synthesize(path)
    images = capture(path)
    with (
        prepared(
            *(path, images, tmp_path / "maps", MappingConfig()),
            *(DatabaseConfig(focal_length=told), None, 0, silent),
            focal_lengths={images.names[0]: 900.0},
        ) as (run, _),
        pycolmap.Database.open(run.database) as database,
    ):
        [camera] = database.read_all_cameras()
    assert camera.mean_focal_length() == (900 if told is None else 1000)
    assert camera.has_prior_focal_length
    with pycolmap.Database.open(path) as database:
        [camera] = database.read_all_cameras()
    assert camera.mean_focal_length() == 1000


def capture(path: Path) -> ImageSet:
    """The images of a database; their files do not exist."""
    with pycolmap.Database.open(path) as database:
        names = tuple(sorted(image.name for image in database.read_all_images()))
    return ImageSet(path.parent, names, {}, {})


def map_database(path: Path, **settings: object) -> list[pycolmap.Reconstruction]:
    config = MappingConfig.model_validate(settings)
    return map_images(path, capture(path), path.parent / "models", config)


def assert_same_poses(
    model: pycolmap.Reconstruction, truth: pycolmap.Reconstruction, max_deg: float
) -> None:
    found = pycolmap.compare_reconstructions(
        model, truth, alignment_error="proj_center", max_proj_center_error=0.2
    )
    assert found is not None
    errors = found["errors"]
    assert len(errors) == truth.num_reg_images()
    assert max(error.rotation_error_deg for error in errors) < max_deg
    assert max(error.proj_center_error for error in errors) < 0.1


def mean_rotation_error_deg(
    model: pycolmap.Reconstruction, truth: pycolmap.Reconstruction
) -> float:
    found = pycolmap.compare_reconstructions(
        model, truth, alignment_error="proj_center"
    )
    assert found is not None
    return float(np.mean([error.rotation_error_deg for error in found["errors"]]))


@pytest.mark.parametrize("mapper", ["incremental", "global"])
def test_poses_are_the_true_ones(mapper: str, tmp_path: Path) -> None:
    truth = synthesize(tmp_path / "database.db")
    (model,) = map_database(tmp_path / "database.db", type=mapper)
    assert model.num_reg_images() == 10
    assert model.num_points3D() > 150
    assert_same_poses(model, truth, 0.2)
    assert [path.name for path in (tmp_path / "models").iterdir()] == ["0"]
    written = pycolmap.Reconstruction(tmp_path / "models" / "0")
    assert written.num_reg_images() == 10


def test_focal_length_is_found_without_a_prior(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    truth = synthesize(path)
    with pycolmap.Database.open(path) as database:
        camera = database.read_all_cameras()[0]
        camera.params = [1.2 * 1024, 512.0, 384.0, 0.0]
        camera.has_prior_focal_length = False
        database.update_camera(camera)
    (model,) = map_database(path)
    assert model.cameras[1].mean_focal_length() == pytest.approx(1000, rel=0.01)
    assert_same_poses(model, truth, 0.5)
    with pycolmap.Database.open(path) as database:  # which keeps the guess
        assert database.read_all_cameras()[0].params[0] == 1.2 * 1024


def test_two_components_give_two_models_largest_first(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    synthesize(path, num_images=4)
    synthesize(tmp_path / "other.db", num_images=7, seed=4)
    with (
        pycolmap.Database.open(tmp_path / "other.db") as other,
        pycolmap.Database.open(path) as database,
        pycolmap.Database.open(tmp_path / "both.db") as both,
    ):
        for image in other.read_all_images():
            image.name = f"other-{image.name}"
            other.update_image(image)
        pycolmap.Database.merge(database, other, both)
    models = map_database(tmp_path / "both.db")
    assert [model.num_reg_images() for model in models] == [7, 4]
    folders = sorted(path.name for path in (tmp_path / "models").iterdir())
    assert folders == ["0", "1"]
    for folder, model in zip(folders, models, strict=True):
        written = pycolmap.Reconstruction(tmp_path / "models" / folder)
        assert written.num_reg_images() == model.num_reg_images()
    names = {models[0].images[k].name for k in models[0].reg_image_ids()}
    assert all(name.startswith("other-") for name in names)


def test_on_one_core_mapping_gives_the_same_bits(tmp_path: Path) -> None:
    database = tmp_path / "a.db"
    synthesize(database)
    cores = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {min(cores)})  # as `--num-threads 1` does
    try:
        (one,), (other,) = (
            map_images(database, capture(database), tmp_path / name, MappingConfig())
            for name in ("first", "second")
        )
    finally:
        os.sched_setaffinity(0, cores)
    for image in one.images.values():
        same = other.images[image.image_id].cam_from_world().matrix()
        assert (image.cam_from_world().matrix() == same).all()
    assert one.point3D_ids() == other.point3D_ids()
    for key in one.point3D_ids():
        assert (one.points3D[key].xyz == other.points3D[key].xyz).all()


def test_nothing_to_map_gives_no_model(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    synthesize(path, num_images=4)
    with pycolmap.Database.open(path) as database:
        database.clear_two_view_geometries()
    assert map_database(path) == []
    assert list((tmp_path / "models").iterdir()) == []


# ------------------------------------------------------------------- principal points
def test_principal_point_that_is_off_is_found(tmp_path: Path) -> None:
    true_point = (512 + 0.02 * 1024, 384 - 0.02 * 768)
    path = tmp_path / "database.db"
    truth = synthesize(path, principal_point=true_point)
    (model,) = map_database(path)
    assert model.cameras[1].params[1:3] == pytest.approx(true_point, abs=3)
    assert_same_poses(model, truth, 0.3)


def test_principal_point_that_is_central_stays_so(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    synthesize(path, num_images=16)
    (model,) = map_database(path)
    assert model.cameras[1].params[1:3] == pytest.approx([512, 384], abs=1)


@pytest.mark.parametrize(
    ("when", "is_moved"), [("always", True), ("auto", True), ("never", False)]
)
def test_principal_point_of_few_images_moves_where_it_may(
    when: str, is_moved: bool, tmp_path: Path
) -> None:
    path = tmp_path / "database.db"
    synthesize(path, num_images=5, principal_point=(532, 384))
    (model,) = map_database(path, refine_principal_point=when)
    moved = model.cameras[1].params[1:3].tolist() != [512, 384]
    assert moved == is_moved


def test_refining_leaves_the_given_model_as_it_is(tmp_path: Path) -> None:
    truth = synthesize(tmp_path / "database.db", principal_point=(532, 384))
    truth.cameras[1].params = [990.0, 512.0, 384.0, 0.0]
    refined = refine_model(truth, MappingConfig())
    assert truth.cameras[1].params.tolist() == [990, 512, 384, 0]
    assert refined.cameras[1].params[1] == pytest.approx(532, abs=3)


def test_last_adjustment_is_not_led_astray_by_a_few_keypoints(tmp_path: Path) -> None:
    truth = synthesize(tmp_path / "database.db", noise_px=0.05)
    rng = np.random.default_rng(0)
    spoiled = pycolmap.Reconstruction(truth)
    for image in spoiled.images.values():
        for point in image.points2D:
            if point.has_point3D() and rng.random() < 0.1:
                point.xy = point.xy + rng.normal(0, 2, 2)
    robust = mean_rotation_error_deg(refine_model(spoiled, MappingConfig()), truth)
    adjust(spoiled)
    assert robust < mean_rotation_error_deg(spoiled, truth) / 2


# -------------------------------------------------------------------- why there is none
def verified(**numbers: int) -> VerifiedPairs:
    names = frozenset(f"{k}" for k in range(numbers.pop("images", 0)))
    nothing = dict.fromkeys(
        ("num_pairs", "num_verified", "num_inliers", "num_rotation_only"), 0
    )
    return VerifiedPairs(**{**nothing, **numbers}, images=names)


@pytest.mark.parametrize(
    ("found", "message"),
    [
        (
            verified(),
            "none of the 10 images of photos matches another: the photographs do not"
            " overlap, are blurred or show no texture. Take them so that neighbours"
            " share two thirds of what they show.",
        ),
        (
            verified(num_pairs=5),
            "5 pairs of images of photos have matches, but no pair agrees on one"
            " geometry: the photographs probably do not overlap. Take them so that"
            " neighbours share two thirds of what they show.",
        ),
        (
            verified(num_pairs=9, num_verified=9, num_rotation_only=5, images=10),
            "5 of 9 verified pairs of photos are explained without any depth: the"
            " camera only turned, or it saw one plane, or the images are copies of each"
            " other. Walk sideways between photographs.",
        ),
        (
            verified(num_pairs=9, num_verified=4, num_rotation_only=1, images=6),
            "4 pairs of images of photos were verified (4 images have none), but no two"
            " of them see the scene from sufficiently different places with enough"
            " matches. Take more photographs, a step apart, or try more keypoints"
            " (--set features.max_keypoints=8192).",
        ),
    ],
    ids=["no matches", "no geometry", "no parallax", "too weak"],
)
def test_failure_is_explained(found: VerifiedPairs, message: str) -> None:
    names = tuple(f"{k}" for k in range(10))
    assert explain_failure(ImageSet(Path("photos"), names, {}, {}), found) == message


def test_failure_counts_come_from_the_database(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    synthesize(path, num_images=4)
    found = read_verified(path)
    assert (found.num_pairs, found.num_verified) == (6, 6)
    assert found.num_rotation_only == 0
    assert found.images == frozenset(capture(path).names)
    assert found.num_inliers > 6 * np.int64(50)
