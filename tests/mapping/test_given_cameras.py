"""Cameras that are given with poses: what of them is taken, and at which size."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.config import DatabaseConfig
from sfmprep.mapping.given_cameras import take_cameras, with_known_centre
from tests.support.orbit import lens, orbit, orbit_model


def taken(
    tmp_path: Path, given: Mapping[str, pycolmap.Camera], model: str = "SIMPLE_RADIAL"
) -> tuple[pycolmap.Camera, set[int], set[int]]:
    """The camera of a database of 1024 x 768 afterwards, and what was told."""
    path = tmp_path / "orbit.db"
    orbit(path, lens(model, 900), guess_px=900, num_images=3)
    with pycolmap.Database.open(path) as database:
        lenses, focal_lengths = take_cameras(database, given)
        (camera,) = database.read_all_cameras()
    return camera, lenses, focal_lengths


def opencv(size: tuple[int, int], *params: float) -> pycolmap.Camera:
    """With the first of its eight numbers."""
    all_of_them = np.pad(params, (0, 8 - len(params))).tolist()
    return pycolmap.Camera(
        model="OPENCV", width=size[0], height=size[1], params=all_of_them
    )


def test_lens_without_a_size_gets_that_of_the_image(tmp_path: Path) -> None:
    given = opencv((0, 0), 0.7, 0.6, 0.01, -0.02, 0.1)
    camera, lenses, focal_lengths = taken(tmp_path, {"00.jpg": given})
    middle = [512 + 10.24, 384 - 20.48]
    expected = [716.8, 614.4, *middle, 0.1, 0, 0, 0]
    np.testing.assert_allclose(camera.params, expected)
    assert camera.has_prior_focal_length
    assert (lenses, focal_lengths) == ({1}, set())
    assert given.width == 0


def test_lens_is_scaled_to_the_image(tmp_path: Path) -> None:
    camera, lenses, _ = taken(
        tmp_path, {"01.jpg": opencv((2048, 1536), 1400, 1402, 1034, 768, 0.1)}
    )
    np.testing.assert_allclose(camera.params, [700, 701, 517, 384, 0.1, 0, 0, 0])
    assert lenses == {1}


@pytest.mark.parametrize("centre", [(1024, 768), (1023.5, 767.5)])
def test_undistorted_and_centred_tells_a_focal_length_alone(
    tmp_path: Path, centre: tuple[float, float]
) -> None:
    given = {"00.jpg": opencv((2048, 1536), 1400, 1410, *centre)}
    camera, lenses, focal_lengths = taken(tmp_path, given)
    assert camera.model_name == "SIMPLE_RADIAL"
    np.testing.assert_allclose(camera.params, [702.5, 512, 384, 0])
    assert camera.has_prior_focal_length
    assert (lenses, focal_lengths) == (set(), {1})


@pytest.mark.parametrize(
    "numbers", [(1400, 1450, 1024, 768), (1400, 1400, 1030, 768)], ids=["two", "off"]
)
def test_two_focal_lengths_or_a_place_off_the_middle_are_a_lens(
    tmp_path: Path, numbers: tuple[float, ...]
) -> None:
    camera, lenses, _ = taken(tmp_path, {"00.jpg": opencv((2048, 1536), *numbers)})
    assert camera.model_name == "OPENCV"
    assert lenses == {1}


def test_a_pinhole_replaces_a_fisheye_that_was_guessed(tmp_path: Path) -> None:
    camera, lenses, _ = taken(
        tmp_path,
        {"00.jpg": opencv((1024, 768), 700, 700, 512, 384)},
        "SIMPLE_RADIAL_FISHEYE",
    )
    assert camera.model_name == "OPENCV"
    assert lenses == {1}


def test_of_another_shape_it_is_not_used(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    given = {"00.jpg": opencv((1000, 1000), 700, 700, 510, 500)}
    camera, lenses, focal_lengths = taken(tmp_path, given)
    assert camera.mean_focal_length() == 900
    assert not lenses and not focal_lengths
    assert caplog.messages == [
        "the camera given for 00.jpg is of 1000 x 1000 pixels, the image has"
        " 1024 x 768: it is not used"
    ]


def test_the_middle_may_be_off_by_half_a_pixel_of_the_size_it_is_given_at(
    tmp_path: Path,
) -> None:
    given = {"00.jpg": opencv((512, 384), 350, 350, 255.5, 191.5)}
    _, lenses, focal_lengths = taken(tmp_path, given)
    assert (lenses, focal_lengths) == (set(), {1})


def test_a_sphere_is_no_lens(tmp_path: Path) -> None:
    sphere = pycolmap.Camera(
        model="EQUIRECTANGULAR", width=1024, height=768, params=[1024, 768]
    )
    assert taken(tmp_path, {"00.jpg": sphere})[1:] == (set(), set())


def test_known_principal_points() -> None:
    model, _ = orbit_model([lens("SIMPLE_RADIAL", 700)], num_points=20)
    name, other = sorted(image.name for image in model.images.values())[:2]

    def known(given: Mapping[str, pycolmap.Camera], **config: object) -> set[int]:
        return with_known_centre(model, DatabaseConfig.model_validate(config), given)

    off = opencv((2048, 1536), 1400, 1400, 1034, 768)
    assert known({name: off}) == {1}
    assert known({name: opencv((2048, 1536), 1400, 1400, 1024, 768)}) == set()
    assert known({name: opencv((9, 9), 9, 9, 4, 4)}) == set()
    assert known({"other.jpg": off}) == set()
    assert known({}) == set()
    # one that nobody searched lies in the middle, but for tangential distortion
    simple = pycolmap.Camera(
        model="SIMPLE_RADIAL", width=1024, height=768, params=[700, 512, 384, 0.1]
    )
    assert known({name: simple}) == set()
    assert known({name: opencv((1024, 768), 700, 700, 512, 384, 0.1)}) == {1}
    # the first image of a camera decides, as in the database
    assert known({name: simple, other: off}) == set()
    numbers = {"camera_model": "SIMPLE_RADIAL", "camera_params": [700, 520, 384, 0]}
    assert known({}, **numbers) == {1}
