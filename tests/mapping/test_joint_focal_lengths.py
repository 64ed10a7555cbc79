"""Focal lengths of cameras that have no two images of their own."""

from __future__ import annotations

import weakref
from collections.abc import Collection, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

from sfmprep.mapping import calibrate
from sfmprep.mapping.calibrate import calibrate_database
from sfmprep.mapping.focal_length import FocalLength, MatchedViews
from sfmprep.mapping.joint_focal_lengths import find_joint_focal_lengths
from sfmprep.types import Float64
from tests.bench.calibration import write_walk
from tests.support.orbit import HEIGHT, WIDTH, lens, looking

GUESS = 1229.0


def zooms(
    focal: Float64,
    *,
    model: str = "SIMPLE_RADIAL",
    distortion: float = -0.03,
    sway: float = 0.3,
    noise_px: float = 0.3,
    partners: int = 4,
    num_points: int = 400,
    line: bool = False,
) -> tuple[dict[int, pycolmap.Camera], list[MatchedViews]]:
    """An image of each focal length around a cube, matched with those beside it.

    One match in ten is off by up to three pixels; nothing is told.
    """
    rng = np.random.default_rng(0)
    points = rng.uniform(-1, 1, (num_points, 3))
    if line:
        points *= (1, 0, 0)
    cameras, views = {}, []
    for k, pixels in enumerate(focal):
        angle = 2 * np.pi * k / 40
        centre = 2.2 * np.array([np.cos(angle), 0, np.sin(angle)])
        centre += rng.uniform(-sway, sway, 3)
        rotation = looking(rng.uniform(-sway, sway, 3) - centre)
        true = lens(model, pixels, distortion)
        xy = np.asarray(true.img_from_cam((points - centre) @ rotation.T))
        xy = xy + rng.normal(0, noise_px, xy.shape)
        wrong = rng.random(num_points) < 0.05
        xy[wrong] += rng.uniform(-3, 3, (wrong.sum(), 2))
        views.append((xy, ((xy > 0) & (xy < (WIDTH, HEIGHT))).all(axis=1)))
        cameras[k] = lens(model, GUESS)
    pairs = []
    for a, (xy0, seen0) in enumerate(views):
        for b in range(a + 1, min(a + 1 + partners, len(views))):
            xy1, seen1 = views[b]
            both = seen0 & seen1
            pairs.append(
                MatchedViews(
                    camera_ids=(a, b), xy=(xy0[both], xy1[both]), max_error_px=4.0
                )
            )
    return cameras, pairs


def with_prior(camera: pycolmap.Camera, pixels: float) -> pycolmap.Camera:
    made = lens(camera.model_name, pixels)
    made.has_prior_focal_length = True
    return made


@pytest.mark.parametrize("least", [0.6, 1.8])
def test_zooms_that_differ_are_all_found(least: float) -> None:
    """One after the other, with as many longer sides for both, they are 57 % off."""
    focal = np.random.default_rng(1).permutation(np.linspace(least, 1.8, 24)) * WIDTH
    cameras, pairs = zooms(focal)
    found = find_joint_focal_lengths(cameras, pairs, cameras.keys())
    assert all(each.is_known and not each.refused for each in found.values())
    off = [found[k].pixels / true - 1 for k, true in enumerate(focal)]
    assert np.median(np.abs(off)) < 0.06
    assert np.abs(off).max() < 0.1


def test_wrong_prior_is_refused_and_a_right_one_stays() -> None:
    focal = np.linspace(0.6, 1.2, 12) * WIDTH
    cameras, pairs = zooms(focal)
    cameras |= {k: with_prior(cameras[k], focal[k] * 1.04) for k in range(12)}
    cameras[5] = with_prior(cameras[5], 6000)
    found = find_joint_focal_lengths(cameras, pairs, cameras.keys())
    assert [k for k, each in found.items() if each.refused] == [5]
    assert found[5].pixels == pytest.approx(focal[5], rel=0.06)
    assert found[4].pixels == pytest.approx(focal[4] * 1.04, abs=1e-6)
    assert all(each.is_known for each in found.values())


def test_priors_that_are_all_wrong_are_refused() -> None:
    focal = np.full(12, 0.7 * WIDTH)
    cameras, pairs = zooms(focal)
    cameras = {k: with_prior(camera, 1.4 * WIDTH) for k, camera in cameras.items()}
    found = find_joint_focal_lengths(cameras, pairs, cameras.keys())
    assert all(each.refused and each.is_known for each in found.values())
    assert [each.pixels for each in found.values()] == [
        pytest.approx(0.7 * WIDTH, rel=0.08)
    ] * 12


def test_camera_that_is_not_asked_is_held_and_tells_its_partner() -> None:
    cameras, pairs = zooms(np.tile([700.0, 1400.0], 4))
    pairs = [
        replace(pair, camera_ids=(pair.camera_ids[0] % 2, pair.camera_ids[1] % 2))
        for pair in pairs
    ]
    cameras = {0: with_prior(cameras[0], 700), 1: cameras[1]}
    found = find_joint_focal_lengths(cameras, pairs, [1])
    assert found.keys() == {1}
    assert found[1].is_known
    assert found[1].pixels == pytest.approx(1400, rel=0.05)


def test_guess_that_is_not_asked_tells_nothing() -> None:
    cameras, pairs = zooms(np.array([700.0, 1400.0]))
    assert find_joint_focal_lengths(cameras, pairs, [1]) == {}


def test_axes_that_meet_tell_no_focal_length() -> None:
    cameras, pairs = zooms(np.full(8, 700.0), sway=0.0, distortion=0.0)
    found = find_joint_focal_lengths(cameras, pairs, cameras.keys())
    assert not any(each.is_known for each in found.values())
    assert {each.pixels for each in found.values()} == {GUESS}


@pytest.mark.parametrize("case", ["line", "fisheye", "few", "none"])
def test_pairs_that_cannot_tell_are_passed_over(case: str) -> None:
    model = "SIMPLE_RADIAL_FISHEYE" if case == "fisheye" else "SIMPLE_RADIAL"
    number = 25 if case == "few" else 400
    cameras, pairs = zooms(
        np.full(4, 700.0), model=model, num_points=number, line=case == "line"
    )
    if case == "none":
        pairs = []
    with np.errstate(all="raise"):
        found = find_joint_focal_lengths(cameras, pairs, cameras.keys())
    assert not any(each.is_known for each in found.values())


def test_pairs_are_read_one_by_one() -> None:
    cameras, pairs = zooms(np.full(6, 700.0))
    waiting = []

    def read() -> Iterator[MatchedViews]:
        for pair in pairs:
            copy = MatchedViews(
                camera_ids=pair.camera_ids,
                xy=(pair.xy[0].copy(), pair.xy[1].copy()),
                max_error_px=4.0,
            )
            waiting.append(weakref.ref(copy))
            yield copy
            del copy
            assert sum(ref() is not None for ref in waiting) <= 2

    assert find_joint_focal_lengths(cameras, read(), cameras.keys()).keys() == set(
        cameras
    )


def test_database_with_a_camera_an_image_is_calibrated(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "sfmprep.mapping.calibrate")
    path = tmp_path / "database.db"
    true = write_walk(path, num_images=14, num_cameras=14, zoom=(0.6, 1.8))
    steps: list[object] = []
    totals: list[int | None] = []

    def progress(items: Any, *, desc: str, total: int | None = None) -> Any:
        assert desc == "calibrate"
        totals.append(total)
        for item in items:
            steps.append(item)
            yield item

    calibrate_database(path, max_error_px=4.0, progress=progress)
    with pycolmap.Database.open(path) as database:
        cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
    for key, focal in true.items():
        assert cameras[key].has_prior_focal_length
        assert cameras[key].mean_focal_length() == pytest.approx(focal, rel=0.08)
    assert totals == [0, len(steps)]
    pixels = [camera.mean_focal_length() for camera in cameras.values()]
    assert caplog.messages == [
        "14 cameras, such as that of 00000.jpg: the matches tell focal lengths of"
        f" {min(pixels):.0f} to {max(pixels):.0f} px"
    ]


def test_camera_unsure_by_its_own_pairs_is_told_by_those_with_others(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Such as reduced copies beside photographs whose focal length is known."""
    path = tmp_path / "database.db"
    true = write_walk(path, num_images=14, num_cameras=2, zoom=(0.6, 1.2))

    def unsure(*_: object, known: Collection[int], **__: object) -> object:
        assert not known
        return {
            1: FocalLength(pixels=true[1], is_known=True),
            2: FocalLength(pixels=400, is_known=False, refused=True),
        }

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(calibrate, "find_focal_lengths", unsure)
        calibrate_database(path, max_error_px=4.0)
    with pycolmap.Database.open(path) as database:
        camera = database.read_camera(2)
    assert camera.has_prior_focal_length
    assert camera.mean_focal_length() == pytest.approx(true[2], rel=0.08)
    assert [r.getMessage() for r in caplog.records if r.levelname == "WARNING"] == [
        "00001.jpg and 6 other images of its camera: the focal length of 1229 px that"
        " EXIF tells is contradicted by the matches;"
        f" {camera.mean_focal_length():.0f} px, which fit them, are used"
    ]
