"""Focal lengths of EXIF that are not believed stand in the report."""

from __future__ import annotations

from pathlib import Path

import pycolmap
import pytest
from PIL import Image

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig
from sfmprep.report.focal_lengths import doubtful_focal_lengths
from tests.support.orbit import lens, orbit

IN_35MM = 0xA405


def photographs(folder: Path, told: list[int]) -> ImageSet:
    """Black JPEGs of 720 x 480 pixels with a focal length on 35 mm film."""
    folder.mkdir()
    for k, focal in enumerate(told):
        exif = Image.Exif()
        exif.get_ifd(0x8769)[IN_35MM] = focal
        Image.new("RGB", (720, 480)).save(folder / f"{k}.jpg", exif=exif)
    return ImageSet.scan(folder)


def test_focal_length_of_no_lens_is_told(tmp_path: Path) -> None:
    images = photographs(tmp_path / "images", [1, 1, 32, 2000])
    (found,) = doubtful_focal_lengths(images, DatabaseConfig(), None, [])
    assert found.code == "exif_refused"
    assert found.text == (
        "0.jpg: EXIF tells a focal length of 1 mm on 35 mm film, with which it would"
        " see 175 degrees; lenses see 1.5 to 140. It was not used. So it is"
        " with 1 other camera."
    )
    assert found.images == ["0.jpg", "1.jpg", "3.jpg"]
    assert not found.blocks_training


def test_what_is_known_is_not_asked(tmp_path: Path) -> None:
    images = photographs(tmp_path / "images", [1])
    config = DatabaseConfig(focal_length=600)
    assert doubtful_focal_lengths(images, config, None, []) == []


@pytest.mark.parametrize(("is_prior", "told"), [(True, 1300), (False, 1300)])
def test_prior_that_the_model_contradicts_is_told(
    is_prior: bool, told: float, tmp_path: Path
) -> None:
    path = tmp_path / "database.db"
    names = sorted(
        orbit(
            *(path, lens("SIMPLE_RADIAL", 650)),
            guess_px=told,
            is_prior=is_prior,
            num_images=3,
            num_points=20,
        )
    )
    images = ImageSet(tmp_path, (), {}, {})
    model = pycolmap.Reconstruction()
    model.add_camera_with_trivial_rig(lens("SIMPLE_RADIAL", 651))
    for k, name in enumerate(names, 1):
        image = pycolmap.Image(name=name, camera_id=1, image_id=k)
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d())
    found = doubtful_focal_lengths(images, DatabaseConfig(), path, [model])
    assert [(f.code, f.text, f.images) for f in found] == (
        [
            (
                "exif_contradicted",
                "EXIF tells a focal length of 1300 px for 3 photographs, but 651 px fit"
                " them and were used.",
                names,
            )
        ]
        if is_prior
        else []
    )
