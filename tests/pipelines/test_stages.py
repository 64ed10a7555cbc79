"""What a second run with other settings does again, on the demo scene."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pycolmap
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.cli.commands import run
from sfmprep.config import Recipe
from sfmprep.config.load import load_recipe
from sfmprep.errors import ReconstructionError, StoreError
from sfmprep.executors.isolated import run_isolated
from sfmprep.export.install import set_dataset_aside
from sfmprep.pairing import retrieval
from sfmprep.pipelines import (
    apart,
    datasets,
    map_stages,
    reporting,
    stages,
)
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.pipelines.status import stages_of
from sfmprep.report.schema import Report

SETTINGS = (
    "features.max_size=480",
    "features.max_keypoints=1500",
    "export.downscales=[2]",
)


@pytest.fixture(autouse=True)
def _quiet_colmap() -> None:
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


@pytest.fixture
def result(demo_result: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(demo_result, tmp_path / "out"))


@pytest.fixture
def photos(demo_scene: Path) -> Path:
    return demo_scene / "images"


@pytest.fixture
def ran(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of what did work, in order."""
    done: list[str] = []
    for name in (
        *("extract_features", "similar_partners", "match_features", "update_database"),
        *("map_images", "find_outliers", "export_dataset"),
    ):
        places = {
            "similar_partners": retrieval,
            "map_images": apart,
            "find_outliers": map_stages,
            "export_dataset": datasets,
        }
        place = places.get(name, stages)
        function = getattr(place, name)

        def note(*args, _name=name, _function=function, **options):
            done.append(_name)
            return _function(*args, **options)

        monkeypatch.setattr(place, name, note)
    yield done


def recipe(*settings: str) -> Recipe:
    return load_recipe("sift", (*SETTINGS, *settings))


def pairs_of(result: Path) -> str:
    return (result / "work" / "pairs.txt").read_text()


def test_nothing_is_built_or_done_twice(
    result: Path, photos: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stages, "build_extractor", None)
    monkeypatch.setattr(stages, "build_matcher", None)
    reconstruct(photos, result, recipe())
    assert ran == []


def test_pairs_are_those_of_the_settings_whatever_was_between(
    result: Path, photos: Path, ran: list[str]
) -> None:
    retrieval, sequential = (
        recipe(f"pairs={kind}", "mapping.type=none")
        for kind in (
            "{type: retrieval, num_neighbours: 2}",
            "{type: sequential, window: 1}",
        )
    )
    found = []
    for each in (retrieval, sequential, retrieval):
        reconstruct(photos, result, each)
        found.append(pairs_of(result))
    assert found[0] == found[2] != found[1]
    assert ran.count("similar_partners") == 2
    assert "extract_features" not in ran
    assert "match_features" not in ran  # all pairs were matched before


def test_other_outliers_do_not_map_again(
    result: Path, photos: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    mapped = (result / "work" / "mapped.zip").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(
            map_stages, "find_outliers", lambda *_: {"0003.jpg": "a reason"}
        )
        reconstruct(photos, result, recipe("export.outliers.min_num_points=30"))
    assert ran == ["export_dataset"]
    assert (result / "work" / "mapped.zip").read_bytes() == mapped
    # in no folder below is a model with more images: some trainers take the largest
    for found in result.rglob("images.bin"):
        assert pycolmap.Reconstruction(found.parent).num_reg_images() == 7
    reconstruct(photos, result, recipe())
    again = pycolmap.Reconstruction(result / "work" / "models" / "0")
    assert again.num_reg_images() == 8


def test_another_seed_goes_on_with_the_features(
    result: Path, photos: Path, ran: list[str]
) -> None:
    reconstruct(photos, result, recipe("seed=1"))
    assert ran == ["update_database", "map_images", "find_outliers", "export_dataset"]


def test_another_matcher_goes_on_with_the_features(
    result: Path, photos: Path, ran: list[str]
) -> None:
    reconstruct(photos, result, recipe("matcher.ratio=0.7", "mapping.type=none"))
    assert ran == ["match_features", "update_database"]


def test_a_failed_run_leaves_no_dataset_of_another(
    result: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> list[object]:
        return []

    before = (result / "transforms.json").read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(apart, "map_images", fail)
        with pytest.raises(ReconstructionError):
            reconstruct(photos, result, recipe("seed=1"))
    assert {path.name for path in result.iterdir()} == {
        *("recipe.yaml", "report.json", "report.html", "work"),
    }
    aside = result / "work" / "earlier" / "dataset"
    assert (aside / "transforms.json").read_bytes() == before
    assert (aside / "sparse" / "0" / "images.bin").is_file()
    reconstruct(photos, result, recipe())
    assert (result / "transforms.json").is_file()
    assert not aside.exists()


def test_a_report_that_fails_hides_no_error(
    result: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def full(*_: object) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(apart, "map_images", lambda *_, **__: [])
    monkeypatch.setattr(reporting, "write_text", full)
    with pytest.raises(ReconstructionError):
        reconstruct(photos, result, recipe("seed=1"))
    assert caplog.messages[-1] == "the report could not be written: the disk is full"


def test_a_report_made_again_remembers_why_there_is_no_dataset(
    result: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise StoreError("the disk is full")

    def again(*settings: str) -> Report:
        chosen = [*SETTINGS, "seed=1", *settings]
        args = [str(photos), str(result), "--recipe", "sift", "--set", *chosen]
        assert run(["report", *args]) == 3
        report = Report.model_validate_json((result / "report.json").read_text())
        assert (report.trainable, report.next_steps) == (False, [])
        assert report.verdict == report.failure
        return report

    with monkeypatch.context() as patched:
        patched.setattr(datasets, "export_dataset", fail)
        with pytest.raises(StoreError):
            reconstruct(photos, result, recipe("seed=1"))
    assert again().failure == "the disk is full"
    assert again().failure == "the disk is full"
    other = again("export.jpeg_quality=50")
    assert other.failure == "There is no dataset yet. Run `sfmprep export`."
    assert other.result is not None
    assert again("mapping.min_model_size=4").failure == (
        f"There are no poses yet: {result / 'work' / 'mapped.zip'} is out of date"
        " (mapping.min_model_size was 3 and is 4). Run `sfmprep map` first."
    )


def test_a_moved_folder_goes_on(
    result: Path, photos: Path, tmp_path: Path, ran: list[str]
) -> None:
    moved = shutil.move(result, tmp_path / "elsewhere")
    elsewhere = shutil.copytree(photos, tmp_path / "photos elsewhere")
    for path in elsewhere.iterdir():
        path.touch()
    reconstruct(elsewhere, Path(moved), recipe())
    assert ran == []


@pytest.mark.parametrize(
    ("name", "again"),
    [
        ("database.db", "update_database"),
        ("mapped.zip", "map_images"),
        ("models/0/images.bin", "find_outliers"),
        ("models/0/points3D.bin", "find_outliers"),
        ("poses.json", "find_outliers"),
    ],
)
def test_a_bit_that_flipped_is_seen_and_what_was_damaged_made_again(
    name: str,
    again: str,
    result: Path,
    photos: Path,
    ran: list[str],
    caplog: pytest.LogCaptureFixture,
) -> None:
    path = result / "work" / name
    whole = path.read_bytes()
    middle = len(whole) // 2
    path.write_bytes(whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :])
    [found] = [
        stage.why
        for stage in stages_of(ImageSet.scan(photos), result, recipe())
        if not stage.is_done
    ]
    assert found == [f"work/{name} was changed"]
    reconstruct(photos, result, recipe())
    assert ran[:1] == [again]
    # what did not come out otherwise is kept, and so is what was made of it
    assert path.read_bytes()[100:] == whole[100:] or len(ran) > 1
    assert (
        f"{path} is not what was written there: it was changed, or its disk loses what"
        " it holds. It is made again; have the disk looked at if nobody changed it."
    ) in caplog.messages
    ran.clear()
    reconstruct(photos, result, recipe())
    assert ran == []


def test_what_was_made_of_models_that_are_others_now_is_made_again(
    result: Path, photos: Path, ran: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (result / "work" / "mapped.zip").unlink()
    reconstruct(photos, result, recipe())
    assert ran[0] == "map_images"
    (result / "work" / "mapped.zip").unlink()
    ran.clear()

    def disturbed(*args, _mapped=apart.map_images, **options):
        models = _mapped(*args, **options)
        models[0].transform(pycolmap.Sim3d(2.0, pycolmap.Rotation3d(), [0, 0, 0]))
        return models

    monkeypatch.setattr(apart, "map_images", disturbed)
    reconstruct(photos, result, recipe())
    assert ran == ["map_images", "find_outliers", "export_dataset"]


def test_status_says_what_would_run_again(
    result: Path, photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ImageSet.scan(photos)
    assert all(stage.is_done for stage in stages_of(images, result, recipe()))
    before = (result / "work" / "stages.json").read_text()
    seed = [str(photos), str(result), "--recipe", "sift", "--set", *SETTINGS, "seed=1"]
    assert run(["status", *seed]) == 0
    printed = capsys.readouterr().out.replace(str(result), "OUT")
    assert printed.splitlines()[:7] == [
        "extract            done  OUT/work/features.h5",
        "pairs              -     OUT/work/pairs.txt",
        "                         would run: seed was 0 and is 1",
        "match              -     OUT/work/matches.h5",
        "                         would run: pairs changed",
        "database           -     OUT/work/database.db",
        "                         would run: seed was 0 and is 1",
    ]
    assert (result / "work" / "stages.json").read_text() == before
    assert (result / "transforms.json").is_file()


def test_status_of_what_is_no_output(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["status", str(photos), str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        f"sfmprep: error: {tmp_path} is not an output of sfmprep: it has no"
        " recipe.yaml.\n"
    )


def test_a_mapper_that_dies_is_an_error_with_a_report(
    result: Path, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What COLMAP does where one of its checks fails."""
    monkeypatch.setattr(apart, "run_isolated", run_isolated)
    monkeypatch.setattr(map_stages, "map_into", die)
    with pytest.raises(ReconstructionError) as caught:
        reconstruct(photos, result, recipe("seed=1"))
    assert str(caught.value) == (
        "the process of COLMAP was ended by SIGABRT. It said: Check failed: a planted"
        " one. Features, matches and database are kept: the same command goes on from"
        " there. If it happens again, report it with the database, or try --set"
        " mapping.type=global."
    )
    report = Report.model_validate_json((result / "report.json").read_text())
    assert report.failure == str(caught.value)
    assert (result / "work" / "features.h5").is_file()


def die(*_: object, **__: object) -> None:
    pycolmap.logging.fatal("Check failed: a planted one")


def test_a_database_that_is_the_result_is_not_the_one_to_map(
    result: Path, photos: Path, ran: list[str]
) -> None:
    reconstruct(photos, result, recipe("mapping.type=none", "database.max_error_px=2"))
    assert (result / "database.db").is_file()
    assert ran == ["update_database"]
    reconstruct(photos, result, recipe("database.max_error_px=2"))
    assert ran[1:3] == ["update_database", "map_images"]


def test_a_dataset_set_aside_outlives_one_that_was_only_begun(
    result: Path, tmp_path: Path
) -> None:
    away = tmp_path / "away"
    whole = (result / "transforms.json").read_bytes()
    set_dataset_aside(result, away)
    (result / "sparse").mkdir()
    (result / "dataset.json").write_text('{"generator": "sfmprep", "images": {}}')
    set_dataset_aside(result, away)
    assert not (result / "sparse").exists() and not (result / "dataset.json").exists()
    assert (away / "transforms.json").read_bytes() == whole
