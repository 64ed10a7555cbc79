"""Captures that are not one scene seen from many places: what becomes of them."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfmprep.cli.commands import run
from sfmprep.demo.courtyard import render_demo_scene
from tests.support.made_once import made_once
from tests.support.orbit import looking

SETTINGS = (
    "features.max_size=480",
    "features.max_keypoints=1500",
    "export.downscales=[2]",
)
NOT_WORTH_IT = 3  # exit code


@pytest.fixture(scope="session")
def other_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight photographs of another courtyard, some of whose posters are the same."""
    return made_once(
        tmp_path_factory,
        "other-demo-scene",
        lambda folder: render_demo_scene(folder, num_images=8, size=(480, 360), seed=5),
    )


def reconstructed(
    photos: Path, capsys: pytest.CaptureFixture[str], *, code: int = 0
) -> tuple[dict[str, Any], str]:
    """The report of a run, and what it said."""
    out = photos.parent / "out"
    command = ["reconstruct", photos, out, "--recipe", "sift", "--set", *SETTINGS]
    assert run([str(word) for word in command]) == code
    report = json.loads((out / "report.json").read_text("utf-8"))
    return report, capsys.readouterr().err


def warning(report: dict[str, Any], code: str) -> str:
    return next(w["text"] for w in report["warnings"] if w["code"] == code)


def test_two_photographs_of_one_place(
    demo_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for name in ("0002.jpg", "0003.jpg"):
        shutil.copy(demo_scene / "images" / name, tmp_path / "photos")
    report, _ = reconstructed(tmp_path / "photos", capsys, code=NOT_WORTH_IT)
    assert report["result"]["num_registered"] == 2
    assert warning(report, "few_images") == (
        "The dataset has 2 photographs: a splat looks right only from near where they"
        " were taken."
    )


def test_two_captures_in_one_folder_are_two_datasets(
    demo_scene: Path,
    other_scene: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(demo_scene / "images", photos / "first")
    shutil.copytree(other_scene / "images", photos / "second")
    report, _ = reconstructed(photos, capsys)
    assert report["result"]["num_registered"] == 8
    (other,) = report["other_models"]
    assert (other["num_images"], other["folder"]) == (8, "submodels/1")
    models = [tmp_path / "out" / folder for folder in ("", other["folder"])]
    found = []
    for folder in models:
        model = pycolmap.Reconstruction(folder / "sparse" / "0")
        found += [{image.name[:5] for image in model.images.values()}]
        assert model.num_reg_images() == 8
    assert sorted(found, key=str) == [{"first"}, {"secon"}]
    # they share posters, and were laid on each other
    text = warning(report, "look_alikes")
    assert "show different places that look alike" in text
    for pair in report["consistency"]["left_out"]:
        names = [pair["pair"][end].split("/")[0] for end in ("name0", "name1")]
        assert names == ["first", "second"]
    assert not report["consistency"]["overlaid"]


def test_a_photograph_of_another_scene_stays_out_and_says_why(
    demo_scene: Path,
    other_scene: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    photos = tmp_path / "photos"
    shutil.copytree(demo_scene / "images", photos)
    shutil.copy(other_scene / "images" / "0003.jpg", photos / "0003b.jpg")
    report, _ = reconstructed(photos, capsys)
    assert report["result"]["num_registered"] == 8
    (stray,) = (image for image in report["images"] if image["status"] != "registered")
    assert stray["name"] == "0003b.jpg"
    assert stray["reason"]


def test_a_focal_length_in_exif_that_is_three_times_too_long(
    demo_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "photos").mkdir()
    for path in sorted((demo_scene / "images").iterdir()):
        image = Image.open(path)
        exif = image.getexif()
        exif[271], exif[272] = "Maker", "Model"
        exif.get_ifd(0x8769).update({37386: 22.0, 41989: 88})  # as if of 1220 px
        image.save(tmp_path / "photos" / path.name, quality=95, exif=exif)
    report, _ = reconstructed(tmp_path / "photos", capsys)
    known = json.loads((demo_scene / "reference.json").read_text("utf-8"))
    true = known["images"]["0000.jpg"]["K"][0][0]
    (camera,) = report["cameras"]
    assert camera["focal_length_px"] == pytest.approx(true, rel=0.01)
    texts = [w["text"] for w in report["warnings"]]
    told = [text for text in texts if text.startswith("EXIF tells a focal length")]
    assert told == [
        "EXIF tells a focal length of 1220 px for 8 photographs, but"
        f" {camera['focal_length_px']:.0f} px fit them and were used."
    ]


def test_one_plane(
    demo_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    photograph_plane(demo_scene / "images" / "0000.jpg", tmp_path / "photos")
    report, said = reconstructed(tmp_path / "photos", capsys)
    assert report["result"]["num_registered"] == 6
    assert (
        "the verified pairs do not tell the focal length for sure; a guess of 384 px is"
        " used, and poses may be wrong"
    ) in said
    # all of them together do
    assert report["cameras"][0]["focal_length_px"] == pytest.approx(450, rel=0.03)


def photograph_plane(picture: Path, folder: Path) -> None:
    """Photographs of a picture that hangs on nothing, from six places."""
    folder.mkdir()
    pixels = cv2.imread(str(picture))
    assert pixels is not None
    height, width = pixels.shape[:2]
    lens = np.array([[450, 0, 160], [0, 450, 120], [0, 0, 1.0]])
    on_plane = np.array([[4 / width, 0, -2], [0, 3 / height, -1.5], [0, 0, 1]])
    for k in range(6):
        centre = np.array([0.4 * k - 1, 0.3 * np.sin(k), 0.2 * np.cos(2 * k) - 4])
        rotation = looking(np.array([0.1 * k - 0.2, 0, 0]) - centre)
        from_plane = np.column_stack([rotation[:, :2], -rotation @ centre])
        seen = cv2.warpPerspective(
            *(pixels, lens @ from_plane @ on_plane, (320, 240)),
            borderValue=(128, 128, 128),
        )
        cv2.imwrite(str(folder / f"{k}.png"), seen)
