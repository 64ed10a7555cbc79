"""A finished result: photographs located in it, and others added to it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest

from sfmprep.cli.commands import run
from sfmprep.dataset.sharpness import relative_sharpness
from sfmprep.errors import ConfigError, StoreError
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import read_reference
from sfmprep.known_poses.read import read_poses
from sfmprep.pipelines import map_stages
from sfmprep.pipelines.artefacts import read_result
from sfmprep.pipelines.localise import localise, write_located
from sfmprep.types import Float64

SETTINGS = (
    *("--set", "features.max_size=480", "features.max_keypoints=1500"),
    "export.downscales=[2]",
)


def world_of(out: Path) -> Float64:
    """Its matrix [4, 4], which is a similarity again but for rounding when read."""
    text = (out / "world_from_sfm.json").read_text("utf-8")
    return np.array(json.loads(text)["world_from_sfm"])


def sharpness_in(out: Path) -> dict[str, float]:
    """Of the photographs of a report that it is known of."""
    report = json.loads((out / "report.json").read_text("utf-8"))
    return {
        each["name"]: each["sharpness"]
        for each in report["images"]
        if each["sharpness"] is not None
    }


def test_photographs_are_located_or_unknown(
    demo_scene: Path,
    demo_result: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of a result that is read only, with a file that is no photograph."""
    one = demo_scene / "images" / "0003.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (360, 480, 3), np.uint8)
    cv2.imwrite(str(tmp_path / "noise.png"), noise)
    (tmp_path / "broken.jpg").write_bytes(b"no")
    files = [
        str(path) for path in (one, tmp_path / "noise.png", tmp_path / "broken.jpg")
    ]
    before = {p: p.stat().st_mtime_ns for p in demo_result.rglob("*") if p.is_file()}
    table = tmp_path / "poses.csv"
    assert (
        run(["localise", str(demo_result), *files, "--json", "--save", str(table)]) == 3
    )
    assert {p: p.stat().st_mtime_ns for p in before} == before
    found = json.loads(capsys.readouterr().out)
    verdicts = {Path(each["name"]).name: each["verdict"] for each in found}
    assert verdicts == {
        "0003.jpg": "found",
        "noise.png": "unknown",
        "broken.jpg": "unknown",
    }
    each = next(each for each in found if each["verdict"] == "found")
    model = pycolmap.Reconstruction(demo_result / "sparse" / "0")
    image = next(i for i in model.images.values() if i.name == "0003.jpg")
    off = np.linalg.norm(np.array(each["centre"]) - image.projection_center())
    assert off < 0.02 and each["position_stddev"] < 0.02
    reread = read_poses(table, axes="opencv", direction="world_from_cam")
    np.testing.assert_allclose(reread.cam_from_world()[1][0], each["centre"], atol=1e-9)


def test_a_model_that_is_not_what_was_written_is_named(
    demo_result: Path, demo_scene: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    shutil.copytree(demo_result / "work", out / "work")
    shutil.copy(demo_result / "recipe.yaml", out)
    path = out / "work" / "models" / "0" / "images.bin"
    path.write_bytes(path.read_bytes()[:-1] + b"\1")
    for read in (
        lambda: localise(out, [demo_scene / "images"]),
        lambda: read_result(out),
    ):
        with pytest.raises(StoreError) as caught:
            read()
        assert str(caught.value).startswith(f"{path} is not what was written there: ")


def test_what_cannot_be_localised_in(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        localise(tmp_path, [tmp_path])
    assert str(caught.value) == (
        f"{tmp_path} is not an output of sfmprep with its work folder: there is no"
        " recipe.yaml, or no work/features.h5. Run `sfmprep reconstruct` first."
    )
    with pytest.raises(ConfigError) as caught:
        write_located([], tmp_path / "a.xyz")
    assert str(caught.value) == (
        f"{tmp_path / 'a.xyz'}: expected a name that ends in .json, .csv, .txt or .tum."
    )


@pytest.mark.parametrize("stop", ["_register", "export_models"])
@pytest.mark.parametrize("options", [[], ["--adjust"]])
def test_a_stopped_add_goes_on(
    demo_scene: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    stop: str,
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(demo_scene / "images", images)
    (images / "0004.jpg").rename(tmp_path / "0004.jpg")
    run(["reconstruct", str(images), str(out), "--recipe", "sift", *SETTINGS])
    world = world_of(out)
    (tmp_path / "0004.jpg").rename(images / "0004.jpg")

    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(f"sfmprep.pipelines.add.{stop}", stopped)
        assert run(["add", str(images), str(out), *options]) == 130
    assert not (out / "world_from_sfm.json").exists()
    assert run(["add", str(images), str(out), *options]) == 0
    np.testing.assert_allclose(world_of(out), world, atol=1e-12)
    assert pycolmap.Reconstruction(out / "sparse" / "0").num_reg_images() == 8
    added = json.loads((out / "report.json").read_text("utf-8"))["added"]
    assert (added["num_earlier"], added["num_added"]) == (7, 1)
    assert bool(added["max_share"]) == bool(options)
    assert not (out / "work" / "adding").exists()


def test_too_few_are_left_to_add_to(
    demo_scene: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(demo_scene / "images", images)
    for number in (6, 7):
        (images / f"000{number}.jpg").rename(tmp_path / f"000{number}.jpg")
    run(["reconstruct", str(images), str(out), "--recipe", "sift", *SETTINGS])
    for number in range(5):
        (images / f"000{number}.jpg").unlink()
    for number in (6, 7):
        (tmp_path / f"000{number}.jpg").rename(images / f"000{number}.jpg")
    capsys.readouterr()
    assert run(["add", str(images), str(out)]) == 2
    last = capsys.readouterr().err.splitlines()[-1]
    assert "1 of the 6 photographs of the largest model in " in last
    assert (out / "world_from_sfm.json").exists()


def test_added_photograph_leaves_the_rest_as_it_is(
    demo_scene: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    shutil.copytree(demo_scene / "images", images)
    (images / "0004.jpg").rename(tmp_path / "0004.jpg")
    begin = [str(images), str(out), "--recipe", "sift", *SETTINGS]
    assert run(["add", str(images), str(out)]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(
            "out holds no finished dataset to add to. Run `sfmprep reconstruct` first."
        )
    )
    run(["reconstruct", *begin])
    before = pycolmap.Reconstruction(out / "sparse" / "0")
    assert run(["add", str(images), str(out)]) == 2
    assert (
        capsys.readouterr()
        .err.splitlines()[-1]
        .endswith(
            "out already. Put the new ones into that folder, or add --adjust to adjust"
            " what is there."
        )
    )
    (tmp_path / "0004.jpg").rename(images / "0004.jpg")
    known = sharpness_in(out)
    asked = []

    def spy(*given: Any, names: set[str], **options: Any) -> dict[str, float]:
        asked.append(names)
        return relative_sharpness(*given, names=names, **options)

    monkeypatch.setattr(map_stages, "relative_sharpness", spy)
    assert run(["add", str(images), str(out)]) == 0
    after = pycolmap.Reconstruction(out / "sparse" / "0")
    assert after.num_reg_images() == 8
    assert len(known) == 7 and asked == [{"0004.jpg"}]
    assert sharpness_in(out) == {**known, "0004.jpg": pytest.approx(1, abs=0.2)}
    places = {i.name: i.projection_center() for i in after.images.values()}
    for image in before.images.values():
        np.testing.assert_allclose(
            places[image.name], image.projection_center(), atol=1e-6
        )
    truth = read_reference(demo_scene / "reference.json")
    assert evaluate_model(after, truth).auc[3] > 90
    said = " ".join(capsys.readouterr().out.split())
    assert (
        "the poses of the 7 earlier photographs stayed as these told them; `sfmprep add"
        " --adjust` moves them to what all tell, and what was trained with them has to"
        " be trained again"
    ) in said
    assert run(["status", str(images), str(out)]) == 0
    assert "would run" not in capsys.readouterr().out

    # nothing is new, and all that is there is adjusted
    world = world_of(out)
    assert run(["add", str(images), str(out), "--adjust"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "the poses of the 8 earlier photographs moved by " in said
    report = json.loads((out / "report.json").read_text("utf-8"))["added"]
    assert report["num_earlier"] == 8 and report["num_added"] == 0
    assert 0 <= report["median_share"] <= report["max_share"] < 0.05
    assert 0 <= report["median_rotation_deg"] <= report["max_rotation_deg"] < 1
    np.testing.assert_allclose(world_of(out), world, atol=1e-12)
    adjusted = pycolmap.Reconstruction(out / "sparse" / "0")
    assert adjusted.num_reg_images() == 8
    extent = np.ptp(list(places.values()), axis=0).max()
    for image in adjusted.images.values():
        off = np.linalg.norm(image.projection_center() - places[image.name])
        assert off < 0.05 * extent
    assert evaluate_model(adjusted, truth).auc[3] > 90
    assert run(["status", str(images), str(out)]) == 0
    assert "would run" not in capsys.readouterr().out
    assert run(["report", str(images), str(out)]) == 0
    assert "8 earlier photographs moved" in " ".join(capsys.readouterr().out.split())
    again = ["export", str(images), str(out), "--set", "export.downscales=[]"]
    assert run(again) == 0
    assert json.loads((out / "report.json").read_text("utf-8"))["added"] is None

    # a folder of an earlier sfmprep lacks what the models are worth
    for verdict in (out / "work").glob("*_consistency.json"):
        verdict.unlink()
    assert run(["add", str(images), str(out)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.endswith(" is to be made again. Run `sfmprep reconstruct` first.")
