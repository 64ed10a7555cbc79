"""Bad and odd input through the command line: exit codes and messages."""

from __future__ import annotations

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from sfmprep.cli.commands import run
from sfmprep.stores.tables import FeatureStore

SMALL = ("features.max_size=480", "features.max_keypoints=1500")
SETTINGS = ("--set", *SMALL, "export.downscales=[2]")

Fail = Callable[..., str]


@pytest.fixture
def fail(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Fail:
    """Runs a command that must fail; returns its message, `TMP` for the folder."""

    def fail(exit_code: int, *args: object) -> str:
        capsys.readouterr()
        assert run([str(arg) for arg in args]) == exit_code
        printed = capsys.readouterr()
        assert printed.out == ""
        assert "Traceback" not in printed.err
        _, _, message = printed.err.replace(str(tmp_path), "TMP").partition(
            "sfmprep: error: "
        )
        return message

    return fail


@pytest.fixture
def photos(demo_scene: Path, tmp_path: Path) -> Path:
    """A folder with the demo scene's images that a test may change."""
    return Path(shutil.copytree(demo_scene / "images", tmp_path / "photos"))


def reconstruct(images: Path, out: Path, *more: str, recipe: str = "sift") -> list[str]:
    return ["reconstruct", f"{images}", f"{out}", "--recipe", recipe, *SETTINGS, *more]


def run_well(capsys: pytest.CaptureFixture[str], images: Path, out: Path) -> str:
    """Reconstructs without error and returns what is printed on stdout."""
    assert run(reconstruct(images, out)) == 0
    return capsys.readouterr().out


def noise(seed: int) -> NDArray[np.uint8]:
    grain = np.random.default_rng(seed).integers(0, 255, (60, 80, 3))
    large = cv2.resize(
        grain.astype(np.uint8), (480, 360), interpolation=cv2.INTER_CUBIC
    )
    return np.asarray(large, np.uint8)


# -------------------------------------------------------------------- which images
def test_folder_without_images(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert fail(1, *reconstruct(tmp_path / "empty", tmp_path / "out")) == (
        "no image in TMP/empty or its sub-folders. Expected files that end in .jpg"
        " .jpeg .jpe .jfif .mpo .png .tif .tiff .bmp .webp .heic .heif .avif .jp2;"
        " hidden ones do not count.\n"
    )
    assert not (tmp_path / "out").exists()


def test_missing_folder(fail: Fail, tmp_path: Path) -> None:
    assert fail(1, *reconstruct(tmp_path / "nowhere", tmp_path / "out")) == (
        "the image folder TMP/nowhere does not exist. Check the path for typing"
        " errors.\n"
    )


def test_one_image(fail: Fail, photos: Path, tmp_path: Path) -> None:
    for path in sorted(photos.iterdir())[1:]:
        path.unlink()
    assert fail(1, *reconstruct(photos, tmp_path / "out")) == (
        "TMP/photos holds one image that can be used, 0000.jpg; poses need at least"
        " two. Take twenty or more, a step apart.\n"
    )


def test_two_identical_files(fail: Fail, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "twins").mkdir()
    for name in ("a.jpg", "b.jpg"):
        shutil.copy(photos / "0000.jpg", tmp_path / "twins" / name)
    assert fail(1, *reconstruct(tmp_path / "twins", tmp_path / "out")) == (
        "TMP/twins holds one image that can be used, a.jpg; poses need at least two."
        " Take twenty or more, a step apart.\n"
    )


def test_two_identical_images(fail: Fail, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "twins").mkdir()
    pixels = cv2.imread(str(photos / "0000.jpg"))
    for name in ("a.jpg", "b.png"):
        cv2.imwrite(str(tmp_path / "twins" / name), pixels)
    assert fail(1, *reconstruct(tmp_path / "twins", tmp_path / "out")) == (
        "most verified pairs of images of TMP/twins are copies of each other: their"
        " matches lie at the same places in both. Take each photograph from a place of"
        " its own, a step from the last.\n"
    )


def test_images_without_overlap(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "noise").mkdir()
    for seed in range(3):
        cv2.imwrite(f"{tmp_path}/noise/{seed}.png", noise(seed))
    command = reconstruct(tmp_path / "noise", tmp_path / "out")
    message = (
        "none of the 3 images of TMP/noise matches another: the photographs do not"
        " overlap, are blurred or show no texture. Take them so that neighbours share"
        " two thirds of what they show.\n"
    )
    assert fail(1, *command) == message
    assert fail(1, *command) == message  # the same command says the same again


def test_camera_that_only_turns(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = cv2.imread(str(photos / "0000.jpg"))
    assert source is not None
    from_pixel = np.linalg.inv([[450, 0, 240], [0, 450, 180], [0, 0, 1.0]])
    to_pixel = np.array([[450, 0, 160], [0, 450, 120], [0, 0, 1.0]])
    (tmp_path / "turned").mkdir()
    for k, (pan, tilt) in enumerate([(-8, -4), (-4, 2), (0, -1), (4, 3)]):
        rotation = cv2.Rodrigues(np.radians([tilt, pan, 0.0]))[0]
        turned = cv2.warpPerspective(
            source, to_pixel @ rotation @ from_pixel, (320, 240)
        )
        cv2.imwrite(f"{tmp_path}/turned/{k}.png", turned)
    # COLMAP sometimes finds a model of so few views: then it must not pass for good
    code = run(reconstruct(tmp_path / "turned", tmp_path / "out"))
    said = capsys.readouterr().err.splitlines()[-1]
    assert code == 3 or said == (
        f"sfmprep: error: 6 of 6 verified pairs of {tmp_path}/turned are explained"
        " without any depth: the camera only turned, or it saw one plane, or the images"
        " are copies of each other. Walk sideways between photographs."
    )


def test_unreadable_files_are_reported_by_name(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = (photos / "0003.jpg").read_bytes()
    (photos / "0003.jpg").write_bytes(whole[: len(whole) // 2])
    (photos / "notes.jpg").write_text("no image")
    # a good header and end, with nonsense between them, is found only on decoding
    spoilt = bytearray(cv2.imencode(".png", noise(0))[1].tobytes())
    start = spoilt.index(b"IDAT") + 4
    spoilt[start : start + 2000] = bytes(2000)
    (photos / "spoilt.png").write_bytes(spoilt)
    shutil.copy(photos / "0001.jpg", photos / "0001 (1).jpg")  # which does not count
    assert run(reconstruct(photos, tmp_path / "out")) == 0
    out, said = capsys.readouterr()
    assert "0001 (1).jpg is left out: its content is that of 0001.jpg, which is" in said
    assert said.count("spoilt.png") == 1
    assert "have no features" not in said
    assert "7 of 10 images registered (70%)\n" in out
    assert [line for line in out.splitlines() if "left out" in line] == [
        "  left out: 0003.jpg: It cannot be used: truncated JPEG, it has no end marker;"
        " copy the file again.",
        "  left out: notes.jpg: It cannot be used: its content is none of JPEG, PNG,"
        " TIFF, BMP, WebP, HEIC, AVIF, JPEG 2000.",
        "  left out: spoilt.png: It cannot be used: damaged PNG, or a variant that"
        " OpenCV cannot decode; save it anew as an ordinary JPEG or PNG.",
    ]
    again = run_well(capsys, photos, tmp_path / "out")
    assert again.split("extract")[0] == out.split("extract")[0]


def test_all_files_undecodable(fail: Fail, tmp_path: Path) -> None:
    (tmp_path / "texts").mkdir()
    for name in ("a.jpg", "b.jpg"):
        (tmp_path / "texts" / name).write_text("no image")
    assert fail(1, *reconstruct(tmp_path / "texts", tmp_path / "out")) == (
        "none of the 2 image files in TMP/texts can be read:\n"
        "  'a.jpg': its content is none of JPEG, PNG, TIFF, BMP, WebP, HEIC,"
        " AVIF, JPEG 2000\n"
        "  'b.jpg': its content is none of JPEG, PNG, TIFF, BMP, WebP, HEIC,"
        " AVIF, JPEG 2000\n"
        "Copy them from the camera again, or give another folder.\n"
    )


def test_odd_names_folders_and_kinds_of_pixels_mix(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Spaces and umlauts, the same names in two folders, depths of 8 and 16 bits."""
    for k, path in enumerate(sorted(photos.iterdir())):
        folder = photos / ("links", "über Eck")[k % 2]
        folder.mkdir(exist_ok=True)
        path = path.rename(folder / f"Küche {k // 2}.JPG")
        if k >= 4:
            continue
        colour = cv2.imread(str(path))
        assert colour is not None
        grey = cv2.cvtColor(colour, cv2.COLOR_BGR2GRAY)
        alpha = np.full(grey.shape, 128, np.uint8)
        kind = (
            colour.astype(np.uint16) * 257,
            grey,
            np.dstack([colour, alpha]),
            grey.astype(np.uint16) * 257,
        )[k]
        cv2.imwrite(str(path.with_suffix(".png")), kind)
        path.unlink()
    out = run_well(capsys, photos, tmp_path / "out")
    assert "8 of 8 images registered" in out
    listed = json.loads((tmp_path / "out" / "dataset.json").read_text("utf-8"))
    names = {new: entry["original"] for new, entry in listed["images"].items()}
    kinds = ("png", "JPG")  # the first two of each folder are PNG now
    assert names == {
        f"{plain}-Kueche_{k}.{kinds[k // 2].lower()}": f"{folder}/Küche {k}"
        f".{kinds[k // 2]}"
        for plain, folder in (("links", "links"), ("ueber_Eck", "über Eck"))
        for k in range(4)
    }
    assert {p.name for p in (tmp_path / "out" / "images").iterdir()} == set(names)


# ---------------------------------------------------------------- where it is to go
def test_output_that_holds_other_files(
    fail: Fail, photos: Path, tmp_path: Path
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("precious")
    assert fail(2, *reconstruct(photos, tmp_path / "out")) == (
        "TMP/out is not empty and not an output of sfmprep (it holds thesis.tex). Give"
        " a new or empty folder.\n"
    )
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["thesis.tex"]


def test_output_that_is_a_file(fail: Fail, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "out").write_text("precious")
    assert fail(2, *reconstruct(photos, tmp_path / "out")) == (
        "TMP/out is a file. Give a folder for the output.\n"
    )


def test_output_that_cannot_be_made(fail: Fail, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    assert fail(1, *reconstruct(photos, tmp_path / "file" / "out")) == (
        "TMP/file/out cannot be written (Not a directory). Give an output folder that"
        " you may write to, on a disk with free space.\n"
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_output_without_permission(fail: Fail, photos: Path, tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0o555)
    assert fail(1, *reconstruct(photos, tmp_path / "locked" / "out")) == (
        "TMP/locked/out cannot be written (Permission denied). Give an output folder"
        " that you may write to, on a disk with free space.\n"
    )


def test_output_inside_the_images(fail: Fail, photos: Path) -> None:
    assert fail(2, *reconstruct(photos, photos / "out")) == (
        "TMP/photos/out lies inside the folder of images TMP/photos: the results would"
        " be taken for photographs. Give a folder beside it.\n"
    )
    assert not (photos / "out").exists()


def test_full_disk_is_reported_and_survived(photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = ["extract", *reconstruct(photos, out)[1:]]

    # more than the temporary files of SIFT, less than the features of all images
    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2_000_000, 2_000_000))

    full = subprocess.run(
        [sys.executable, "-m", "sfmprep", *command],
        preexec_fn=limit,
        capture_output=True,
        text=True,
        check=False,
    )
    assert (full.returncode, full.stdout) == (1, "")
    assert full.stderr.replace(str(tmp_path), "TMP").splitlines()[-1] == (
        "sfmprep: error: TMP/out/work/features.h5: the disk is full (File too large)."
        " Free some space and run the same command again: it goes on from the last"
        " complete item."
    )
    with FeatureStore(out / "work" / "features.h5") as features:
        begun = len(features.names())
    assert run(command) == 0
    with FeatureStore(out / "work" / "features.h5") as features:
        assert begun < len(features.names()) == 8


# --------------------------------------------------------------------- the settings
def test_unknown_key_of_a_setting(fail: Fail, photos: Path, tmp_path: Path) -> None:
    arguments = reconstruct(photos, tmp_path / "out")[:5]
    message = fail(2, *arguments, "--set", "features.max_keypoint=3")
    assert message == (
        "recipe sift with --set features.max_keypoint=3: unknown key"
        " 'features.max_keypoint'. Did you mean 'max_keypoints'? Keys here: type,"
        " max_keypoints, max_size.\n"
    )


def test_unknown_key_of_a_recipe_file(fail: Fail, photos: Path, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.yaml"
    recipe.write_text("features: {type: sift, size: 3}\nmatcher: {type: nearest}\n")
    message = fail(2, "reconstruct", photos, tmp_path / "out", "--recipe", recipe)
    assert message == (
        "recipe file TMP/mine.yaml: unknown key 'features.size'. Did you mean"
        " 'max_size'? Keys here: type, max_keypoints, max_size.\n"
    )


def test_value_of_the_wrong_type(fail: Fail, photos: Path, tmp_path: Path) -> None:
    arguments = reconstruct(photos, tmp_path / "out")[:5]
    message = fail(2, *arguments, "--set", "features.max_keypoints=many")
    assert message == (
        "recipe sift with --set features.max_keypoints=many: features.max_keypoints ="
        " 'many': Input should be a valid integer, unable to parse string as an"
        " integer.\n"
    )


def test_setting_without_value(fail: Fail, photos: Path, tmp_path: Path) -> None:
    arguments = reconstruct(photos, tmp_path / "out")[:5]
    assert fail(2, *arguments, "--set", "features") == (
        "--set 'features' is not KEY=VALUE; an example: --set"
        " features.max_keypoints=2048\n"
    )


def test_unknown_recipe(fail: Fail, photos: Path, tmp_path: Path) -> None:
    assert fail(2, *reconstruct(photos, tmp_path / "out", recipe="splatt")) == (
        "no recipe is called 'splatt'. Did you mean 'splat'? Recipes: accurate,"
        " colmap, compact, fast, film, pointmap, sift, splat, superpoint, textureless;"
        " or give the path of a .yaml file.\n"
    )


def test_unknown_device(fail: Fail, photos: Path, tmp_path: Path) -> None:
    message = fail(2, *reconstruct(photos, tmp_path / "out", "--device", "gpu"))
    assert message.startswith("--device gpu: torch cannot use it (Expected one of cpu")
    assert message.endswith("See `sfmprep doctor`.\n")
    assert not (tmp_path / "out").exists()


def test_device_that_is_not_here(fail: Fail, photos: Path, tmp_path: Path) -> None:
    message = fail(2, *reconstruct(photos, tmp_path / "out", "--device", "cuda:99"))
    assert message.startswith("--device cuda:99: torch cannot use it (")


@pytest.mark.parametrize(
    "args", [["reconstrukt"], [], ["reconstruct"], ["doctor", "--fast"]]
)
def test_wrong_call(args: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(args) == 2
    error = capsys.readouterr().err
    assert "--help" in error and "Traceback" not in error


# ---------------------------------------------------------------------- the weights
def test_missing_weights_without_network(
    fail: Fail, photos: Path, tmp_path: Path
) -> None:
    assert fail(1, *reconstruct(photos, tmp_path / "out", recipe="fast")) == (
        "weights of xfeat are not here and SFMPREP_OFFLINE forbids the download of"
        " https://github.com/verlab/accelerated_features/raw/main/weights/xfeat.pt. Put"
        " xfeat.pt or xfeat.safetensors into the folder SFMPREP_WEIGHTS names, or run"
        " `sfmprep weights fetch xfeat` where there is a network.\n"
    )


def test_splat_without_weights_uses_those_of_the_package_and_says_so(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small = ["features.max_keypoints=512", "mapping.type=none"]
    assert run([*reconstruct(photos, tmp_path / "out", recipe="splat"), *small]) == 0
    printed = capsys.readouterr()
    assert " of 28 pairs verified\n" in printed.out
    assert printed.err.splitlines()[1] == (
        "features: compact + nearest, then compact-lightglue (weights: Apache-2.0),"
        " because the weights of aliked-n16 are not here and SFMPREP_OFFLINE is set"
    )


def test_corrupted_weights(
    fail: Fail, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SFMPREP_WEIGHTS", str(tmp_path))
    (tmp_path / "xfeat.safetensors").write_bytes(b"spoilt")
    message = (
        "weights of xfeat: TMP/xfeat.safetensors has sha256"
        " 8d2430f944e87cdd2cead2f9836072b7029fcc34948c286d321af07e6cfdb151 but expected"
        " 9e89ca7b3b043fb8604fbcdc76364e69c391f48499d1d9eb21fff21042229d02. Delete it,"
        " or, if it is a file of your own, name it in the recipe (`weights: PATH`).\n"
    )
    assert fail(1, *reconstruct(photos, tmp_path / "out", recipe="fast")) == message
    assert run(["doctor"]) == 0  # which says so, and goes on


# ------------------------------------------------------------------ damaged results
@pytest.fixture
def result(demo_result: Path, tmp_path: Path) -> Path:
    """A result that a test may damage."""
    return Path(shutil.copytree(demo_result, tmp_path / "out"))


def test_damaged_results(
    fail: Fail, photos: Path, result: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    work = result / "work"
    damage(work / "models" / "0" / "images.bin")
    assert fail(1, "export", photos, result).splitlines()[-1] == (
        "TMP/out/work/models is missing or incomplete. Run `sfmprep map` first."
    )
    assert not (work / "models").exists()  # it is made again

    damage(work / "stages.json")
    assert fail(1, *reconstruct(photos, result)).startswith(
        "TMP/out/work/stages.json is damaged ("
    )
    (work / "stages.json").unlink()

    damage(work / "features.h5")
    assert run(reconstruct(photos, result)) == 0
    assert (
        f"warning: {work}/features.h5 is damaged, as by a kill while it was written:"
        " 0 items of it can be read and are kept, others are made again\n"
    ) in capsys.readouterr().err

    damage(result / "recipe.yaml")
    assert fail(2, *reconstruct(photos, result)).startswith(
        "recipe file TMP/out/recipe.yaml"
    )


def damage(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 3])
