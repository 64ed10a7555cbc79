"""Focal lengths and lenses on synthetic captures whose cameras are known."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.mapping import focal_length, mapper
from sfmprep.mapping.calibrate import calibrate_database
from sfmprep.mapping.focal_length import (
    MatchedViews,
    find_focal_lengths,
    with_focal_length,
)
from sfmprep.mapping.lenses import is_plausible
from sfmprep.mapping.mapper import map_images
from sfmprep.mapping.verify import verify_matches
from sfmprep.pairing.pairs import exhaustive_pairs
from sfmprep.types import Float64
from tests.support.orbit import WIDTH, lens, orbit


@pytest.fixture(autouse=True)
def _quiet_colmap() -> None:
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


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
def test_fisheye_lens_of_unknown_focal_length_is_mapped(
    model: str, tmp_path: Path
) -> None:
    path = tmp_path / "database.db"
    orbit(
        *(path, lens(model, 450, 0.02)),
        guess_px=1.2 * WIDTH,
        num_images=10,
        num_points=250,
        num_wrong=40,
    )
    (found,) = run(path)
    assert found.num_reg_images() == 10
    camera = found.cameras[1]
    assert camera.model_name == model
    assert camera.mean_focal_length() == pytest.approx(450, rel=0.01)
    assert camera.params[-4:] == pytest.approx([0.02, 0, 0, 0], abs=0.05) or (
        camera.params[-1] == pytest.approx(0.02, abs=0.01)
    )


def test_held_coefficients_are_found_once_all_poses_are(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    orbit(path, lens("OPENCV", 800, -0.2, 0.08, 0.002), guess_px=800, is_prior=True)
    (found,) = run(path)
    assert found.num_reg_images() == 14
    assert found.cameras[1].params[4:] == pytest.approx(
        [-0.2, 0.08, 0.002, 0], abs=0.01
    )


def test_lens_that_runs_away_is_none() -> None:
    before = lens("OPENCV_FISHEYE", 450)
    assert is_plausible(lens("OPENCV_FISHEYE", 450, 0.02), before)
    assert not is_plausible(lens("OPENCV_FISHEYE", 450, 0.02, -0.5), before)  # folds
    assert not is_plausible(lens("OPENCV_FISHEYE", 900), before)


def test_lens_before_may_be_none() -> None:
    """What a lens was does not count, also where it shows no ray at the corners."""
    before = lens("SIMPLE_RADIAL", 450, -0.5)
    assert np.isnan(before.cam_ray_from_img(np.array([[0.0, 0.0]]))).all()
    assert is_plausible(lens("SIMPLE_RADIAL", 450, -0.05), before)
    assert not is_plausible(before, before)


def test_fisheye_lens_may_see_no_corner() -> None:
    """Its half sphere ends inside the image."""
    small = lens("SIMPLE_RADIAL_FISHEYE", 200)
    assert is_plausible(small, small)


# --------------------------------------------------------------------------- pinholes
@pytest.mark.parametrize("guess_px", [325, 1300, 6000])
def test_wrong_prior_is_refused(
    guess_px: float, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "database.db"
    orbit(
        path,
        lens("SIMPLE_RADIAL", 650),
        guess_px=guess_px,
        is_prior=True,
        num_images=6,
    )
    camera = calibrated(path)
    assert camera.mean_focal_length() == pytest.approx(650, rel=0.03)
    assert camera.has_prior_focal_length
    (message,) = caplog.messages
    assert message == (
        f"00.jpg and 5 other images of its camera: the focal length of {guess_px} px"
        " that EXIF tells is contradicted by the matches;"
        f" {camera.mean_focal_length():.0f} px, which fit them, are used"
    )


def test_right_prior_stays(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "database.db"
    orbit(
        path,
        lens("SIMPLE_RADIAL", 650, 0.05),
        guess_px=680,
        is_prior=True,
        num_images=6,
    )
    caplog.set_level("INFO")
    assert calibrated(path).mean_focal_length() == 680
    assert caplog.messages == [
        "00.jpg and 5 other images of its camera: the matches do not contradict the"
        " focal length of 680 px that EXIF tells"
    ]


def test_prior_keeps_the_ratio_of_x_and_y() -> None:
    camera = pycolmap.Camera(
        model="PINHOLE", width=1024, height=768, params=[600, 800, 512, 384]
    )
    changed = with_focal_length(camera, 1400)
    assert changed.params.tolist() == [1200, 1600, 512, 384]
    assert changed.has_prior_focal_length


def two_cameras(
    is_prior: tuple[bool, bool], told: tuple[float, float], sway: float = 0.3
) -> tuple[dict[int, pycolmap.Camera], list[MatchedViews]]:
    """Two zooms, 600 and 1200 px, that share pairs and have none of their own."""
    rng = np.random.default_rng(0)
    cameras, true, pairs = {}, (600.0, 1200.0), []
    for k in range(2):
        cameras[k] = lens("SIMPLE_PINHOLE", told[k])
        cameras[k].has_prior_focal_length = is_prior[k]
    for _ in range(10):
        points = rng.uniform(-1, 1, (200, 3)) * (1.2, 0.9, 1) + (0, 0, 4)
        xy = []
        for focal in true:
            turn = rng.uniform(-sway, sway, 3)
            seen = points - (*rng.uniform(-0.8, 0.8, 2), rng.uniform(-0.5, 0.5))
            seen = seen @ pycolmap.Rotation3d(turn * (0.5, 0.5, 1)).matrix().T
            xy.append(focal * seen[:, :2] / seen[:, 2:] + rng.normal(0, 0.3, (200, 2)))
        pairs.append(
            MatchedViews(
                camera_ids=(0, 1), xy=(xy[0] + 512, xy[1] + 512), max_error_px=4.0
            )
        )
    return cameras, pairs


def test_prior_of_the_partner_is_used() -> None:
    """As many longer sides for both would be wrong: they are two zooms."""
    cameras, pairs = two_cameras((True, False), (600, 1229))
    found = find_focal_lengths(cameras, pairs)
    assert found[0].pixels == 600
    assert not found[0].refused
    assert found[1].is_known
    assert found[1].pixels == pytest.approx(1200, rel=0.05)


def test_guess_is_no_truth_for_the_partner(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the pairs of one camera do not tell is not held for another one's."""
    trusted: list[set[int]] = []

    def costs(*args: object) -> Float64:
        trusted.append(set(args[3]))  # type: ignore[call-overload]
        return np.ones(len(args[4]))  # type: ignore[arg-type]

    monkeypatch.setattr(focal_length, "_costs", costs)
    cameras, pairs = two_cameras((False, False), (1229, 1229))
    found = find_focal_lengths(cameras, pairs)
    assert not found[0].is_known
    assert all(not keys for keys in trusted)


@pytest.mark.parametrize("is_prior", [True, False])
def test_search_goes_downhill_from_what_is_expected(
    is_prior: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From what EXIF tells, or what another camera of the size has; else in a grid."""
    asked: dict[int, list[float]] = {}

    def costs(_: object, key: int, *rest: object) -> Float64:
        pixels = np.asarray(rest[2])
        asked.setdefault(key, []).extend(pixels)
        return 0.2 + np.abs(np.log(pixels / 700)) ** 2

    monkeypatch.setattr(focal_length, "_costs", costs)
    cameras, pairs = two_cameras((is_prior, is_prior), (800, 800))
    found = find_focal_lengths(cameras, pairs[:1])
    few, all_of_grid = 12, 21
    assert [len(set(asked[key])) for key in (0, 1)] == (
        [few, few] if is_prior else [all_of_grid, few]
    )
    told = 800.0 if is_prior else pytest.approx(700, rel=0.02)
    assert [found[key].pixels for key in (0, 1)] == [told, told]
    assert all(each.is_known for each in found.values())


def test_prior_that_is_best_by_far_is_asked_no_further(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: set[float] = set()

    def costs(_: object, __: int, *rest: object) -> Float64:
        pixels = np.asarray(rest[2])
        asked.update(pixels)
        return 0.2 + np.abs(np.log(pixels / 700)) ** 2

    monkeypatch.setattr(focal_length, "_costs", costs)
    cameras, pairs = two_cameras((True, True), (720, 720))
    found = find_focal_lengths(cameras, pairs[:1])
    assert len(asked) == 5
    assert all(each.is_known and each.pixels == 720 for each in found.values())


def test_where_the_expected_is_no_minimum_all_of_the_grid_is_tried(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Far too long focal lengths all fit alike, and so a little better by chance."""

    def costs(_: object, __: int, *rest: object) -> Float64:
        pixels = np.asarray(rest[2])
        low = 0.3 + np.abs(np.log(pixels / 500)) ** 2
        flat = np.where(np.abs(pixels - 5000) < 50, 0.98, 1.0)
        return np.where(pixels > 1500, flat, np.minimum(low, 1))

    monkeypatch.setattr(focal_length, "_costs", costs)
    cameras, pairs = two_cameras((True, True), (5000, 5000))
    found = find_focal_lengths(cameras, pairs[:1])
    assert [found[key].pixels for key in (0, 1)] == [
        pytest.approx(500, rel=0.02),
        pytest.approx(500, rel=0.02),
    ]
    assert all(each.refused for each in found.values())


@pytest.mark.parametrize(
    ("least", "expected"), [(560, pytest.approx(560, rel=0.02)), (100, 1200)]
)
def test_guess_is_what_fits_best_where_that_is_a_minimum(
    monkeypatch: pytest.MonkeyPatch, least: float, expected: object
) -> None:
    """Shallow: a tenth more at 1.3 times that. An end of the grid is no minimum."""

    def costs(_: object, __: int, *rest: object) -> Float64:
        return 0.7 + np.abs(np.log(np.asarray(rest[2]) / least)) ** 2

    monkeypatch.setattr(focal_length, "_costs", costs)
    cameras, pairs = two_cameras((False, False), (1200, 1200))
    found = find_focal_lengths(cameras, pairs[:1])
    assert [found[key].pixels for key in (0, 1)] == [expected, expected]
    assert not any(each.is_known or each.refused for each in found.values())


def test_progress_counts_what_every_camera_needs() -> None:
    cameras, pairs = two_cameras((True, True), (600, 1200))
    totals: list[int | None] = []
    steps: list[object] = []

    def progress(items: Any, *, desc: str, total: int | None = None) -> Any:
        totals.append(total)
        for item in items:
            steps.append(item)
            yield item

    find_focal_lengths(cameras, pairs[:2], progress=progress)
    assert totals == [len(steps)] == [2 * 2 * 2]


def test_known_camera_is_not_asked(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    orbit(path, lens("SIMPLE_RADIAL", 650), guess_px=1300, is_prior=True)
    assert calibrated(path, known=[1]).mean_focal_length() == 1300


def test_guess_stays_a_guess_where_pairs_do_not_tell(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "database.db"
    orbit(path, lens("SIMPLE_RADIAL", 650), guess_px=900, sway=0, num_images=6)
    camera = calibrated(path)
    assert camera.mean_focal_length() == 900
    assert not camera.has_prior_focal_length
    assert caplog.messages == [
        "00.jpg and 5 other images of its camera: the verified pairs do not tell the"
        " focal length for sure; a guess of 900 px is used, and poses may be wrong. If"
        " it is known: --set database.focal_length=PIXELS"
    ]


def test_camera_without_a_pair_stays_a_guess(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    orbit(path, lens("SIMPLE_RADIAL", 650), guess_px=900, num_images=4)
    with pycolmap.Database.open(path) as database:
        other = pycolmap.Camera.create_from_model_name(0, "PINHOLE", 500, 640, 480)
        other.camera_id = database.write_camera(other)
        database.write_image(pycolmap.Image(name="x.jpg", camera_id=other.camera_id))
    assert calibrated(path).has_prior_focal_length
    with pycolmap.Database.open(path) as database:
        left = database.read_camera(other.camera_id)
    assert not left.has_prior_focal_length
    assert left.mean_focal_length() == 500


def test_matches_that_verification_dropped_do_not_come_back(tmp_path: Path) -> None:
    """A strip pasted into every picture matches itself, without any motion."""
    path = tmp_path / "database.db"
    orbit(path, lens("SIMPLE_RADIAL", 650), guess_px=900, num_images=6)
    add_strip(path, num_keypoints=80)
    assert calibrated(path).mean_focal_length() == pytest.approx(650, rel=0.03)


def add_strip(path: Path, num_keypoints: int) -> None:
    """Keypoints at the same place in every image, all of them matched."""
    strip = np.random.default_rng(1).uniform((0, 740), (1024, 768), (num_keypoints, 2))
    with pycolmap.Database.open(path) as database:
        images = [image.image_id for image in database.read_all_images()]
        keypoints = {k: database.read_keypoints(k)[:, :2] for k in images}
        pairs = {
            (a, b): database.read_matches(a, b) for a in images for b in images if a < b
        }
        database.clear_keypoints()
        database.clear_matches()
        for k, xy in keypoints.items():
            both = np.concatenate([xy, strip]).astype(np.float32)
            database.write_keypoints(k, both)
        for (a, b), index in pairs.items():
            rows = np.arange(num_keypoints, dtype=np.uint32) + len(keypoints[a])
            database.write_matches(a, b, np.concatenate([index, np.c_[rows, rows]]))


# -------------------------------------------------------------------- known intrinsics
def test_known_lens_is_held_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    params = [450.0, 512.0, 384.0, 0.02]
    orbit(path, lens("SIMPLE_RADIAL_FISHEYE", 450, 0.02), guess_px=450, num_images=6)
    set_camera(path, params)
    (model,) = run(path, camera_params=params, refine="none")
    assert model.num_reg_images() == 6
    assert model.cameras[1].params.tolist() == params


def test_only_the_focal_length_moves_where_asked(tmp_path: Path) -> None:
    path = tmp_path / "database.db"
    orbit(path, lens("SIMPLE_RADIAL", 650, 0.02), guess_px=650, num_images=8)
    set_camera(path, [620, 512.0, 384.0, 0.02])
    (model,) = run(path, camera_params=[620, 512.0, 384.0, 0.02], refine="focal")
    focal, *rest = model.cameras[1].params
    assert focal == pytest.approx(650, rel=0.01)
    assert rest == [512, 384, 0.02]


def set_camera(path: Path, params: list[float]) -> None:
    with pycolmap.Database.open(path) as database:
        camera = database.read_all_cameras()[0]
        camera.params, camera.has_prior_focal_length = params, True
        database.update_camera(camera)


def calibrated(path: Path, known: Collection[int] = ()) -> pycolmap.Camera:
    """The first camera after verification and calibration."""
    with pycolmap.Database.open(path) as database:
        names = [image.name for image in database.read_all_images()]
    verify_matches(path, exhaustive_pairs(names), DatabaseConfig())
    calibrate_database(path, known=known, max_error_px=4.0)
    with pycolmap.Database.open(path) as database:
        return database.read_camera(1)


# ----------------------------------------------------------- contradicted by the model
@pytest.mark.parametrize("kind", ["incremental", "global"])
def test_wrong_calibration_cuts_no_link(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that are missing come back with the focal length of the model."""

    def misled(path: Path, **_: object) -> None:
        with pycolmap.Database.open(path) as database:
            camera = database.read_camera(1)
            database.update_camera(with_focal_length(camera, 2000))

    path = tmp_path / "database.db"
    orbit(path, lens("SIMPLE_RADIAL", 650, 0.02), guess_px=900)
    monkeypatch.setattr(mapper, "calibrate_database", misled)
    told: list[float] = []
    own = mapper._first_models

    def first_of_few(run: Any) -> list[pycolmap.Reconstruction]:
        with pycolmap.Database.open(run.database) as database:
            told.append(database.read_camera(1).mean_focal_length())
        found: list[pycolmap.Reconstruction] = own(run)
        if len(told) == 1:
            found[0].deregister_frame(found[0].images[1].frame_id)
        return found

    monkeypatch.setattr(mapper, "_first_models", first_of_few)
    with pycolmap.Database.open(path) as database:
        names = tuple(sorted(image.name for image in database.read_all_images()))
    verify_matches(path, exhaustive_pairs(names), DatabaseConfig())
    (model,) = map_images(
        *(path, ImageSet(tmp_path, names, {}, {}), tmp_path / "models"),
        MappingConfig.model_validate({"type": kind}),
    )
    assert told == [2000, pytest.approx(650, rel=0.15)]
    assert model.num_reg_images() == 14
    assert model.cameras[1].mean_focal_length() == pytest.approx(650, rel=0.01)
