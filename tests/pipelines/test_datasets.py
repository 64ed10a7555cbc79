"""Several models of one capture: each a dataset that a trainer opens by itself."""

from __future__ import annotations

import shutil
from pathlib import Path

import pycolmap
import pytest

from sfmprep.cli.commands import run
from sfmprep.config.load import load_recipe
from sfmprep.errors import ConfigError
from sfmprep.mapping.outliers import without_images
from sfmprep.pipelines import apart, datasets
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.report.schema import Report

SETTINGS = (
    *("features.max_size=480", "features.max_keypoints=1500", "export.downscales=[2]"),
    *("seed=1", "export.seed.max_error_px=4"),
)


@pytest.fixture
def photos(demo_scene: Path) -> Path:
    return demo_scene / "images"


@pytest.fixture
def result(demo_result: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A result whose next mapping gives models of its first 6 and last 5."""
    out = Path(shutil.copytree(demo_result, tmp_path / "out"))
    whole = pycolmap.Reconstruction(out / "work" / "models" / "0")
    names = sorted(image.name for image in whole.images.values())
    parts = [without_images(whole, names[6:]), without_images(whole, names[:3])]
    monkeypatch.setattr(apart, "map_images", lambda *_, **__: parts)
    return out


def reconstructed(photos: Path, out: Path, *settings: str) -> Report:
    return reconstruct(photos, out, load_recipe("sift", [*SETTINGS, *settings]))


def names_in(dataset: Path) -> list[str]:
    model = pycolmap.Reconstruction(dataset / "sparse" / "0")
    return sorted(image.name for image in model.images.values())


def test_each_model_that_is_worth_it_is_a_dataset(
    photos: Path, result: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    report = reconstructed(photos, result)
    names = sorted(path.name for path in photos.iterdir())
    second = result / "submodels" / "1"
    assert (names_in(result), names_in(second)) == (names[:6], names[3:])
    for dataset in (result, second):
        images = sorted(path.name for path in (dataset / "images").iterdir())
        assert images == names_in(dataset)
        assert (dataset / "transforms.json").is_file()
    # Brush scans the tree: the model of most images, and the first cloud of this name
    clouds = [f / "sparse" / "0" / "points3D.ply" for f in (result, second)]
    assert clouds[0].read_bytes() != clouds[1].read_bytes()
    assert (result / "init.ply").read_bytes() == clouds[0].read_bytes()

    (other,) = report.other_models
    assert (other.number, other.num_images, other.folder) == (1, 5, "submodels/1")
    assert [i.name for i in report.images if i.model == 1] == names[6:]
    assert report.verdict == (
        "6 of 8 photographs (75%) are in the dataset, and 5 in a further one: each can"
        " be trained, but they share no frame. See below why."
    )
    page = (result / "report.html").read_text("utf-8")
    assert f"<code>{second}</code>" in page

    with monkeypatch.context() as patched:  # nothing is left to do
        patched.setattr(datasets, "export_dataset", None)
        reconstructed(photos, result)
    shutil.rmtree(second)
    reconstructed(photos, result)
    assert names_in(second) == names[3:]


def test_model_that_is_asked_for_is_a_dataset_and_no_other_stays(
    photos: Path,
    result: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sfmprep.report.findings._MIN_IMAGES", (6, 20))
    (other,) = reconstructed(photos, result).other_models
    assert other.reason == "fewer than 6 photographs"
    assert not (result / "submodels").exists()
    export = ["export", str(photos), str(result), "--model"]
    capsys.readouterr()
    assert run([*export, "1"]) == 0
    assert capsys.readouterr().out == (
        f"dataset: {result}\nanother dataset: {result}/submodels/1, 5 images\n"
    )
    assert len(names_in(result / "submodels" / "1")) == 5
    assert run([*export, "0"]) == 0
    assert not (result / "submodels").exists()
    assert not (result / "init.ply").exists()
    assert run([*export, "2"]) == 2
    assert capsys.readouterr().err.splitlines()[-1] == (
        "sfmprep: error: export.models: there is no model 2, there are 2, 0 to 1."
        " `sfmprep report` lists them."
    )


def test_second_model_that_cannot_be_exported_harms_nothing(
    photos: Path,
    result: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    export_dataset = datasets.export_dataset

    def fails_below(model, images, out, *args, **options):  # type: ignore[no-untyped-def]
        if out.name == "1":
            raise ConfigError("too few with GPS")
        return export_dataset(model, images, out, *args, **options)

    monkeypatch.setattr(datasets, "export_dataset", fails_below)
    report = reconstructed(photos, result, "export.models=[1]")
    assert "model 1 has no dataset: too few with GPS" in caplog.messages
    assert report.trainable and report.other_models[0].folder is None
