"""The output folder: when a run may begin or go on in it, and when it may not."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import cv2
import h5py
import numpy as np
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import Recipe
from sfmprep.config.load import load_recipe, read_resolved
from sfmprep.errors import ConfigError, SfmprepError, StoreError
from sfmprep.pipelines import artefacts, stages
from sfmprep.pipelines.choose_pairs import make_pairs
from sfmprep.pipelines.run import Run, open_run
from sfmprep.pipelines.workspace import Workspace
from sfmprep.stores.tables import FeatureStore, MatchStore


def picture(path: Path, seed: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 255, (32, 48, 3), np.uint8)
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), cv2.resize(noise, (96, 64)))


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for seed, name in enumerate(("a.png", "ü b.png")):
        picture(tmp_path / "photos" / name, seed)
    return tmp_path / "photos"


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("sift")


def open_once(photos: Path, out: Path, recipe: Recipe, **options: bool) -> Run:
    with open_run(ImageSet.scan(photos), out, recipe, **options) as run:
        return run


def error_of(kind: type[SfmprepError], photos: Path, out: Path, recipe: Recipe) -> str:
    with pytest.raises(kind) as caught:
        open_once(photos, out, recipe)
    return str(caught.value)


def extract(photos: Path, out: Path, recipe: Recipe) -> None:
    with open_run(ImageSet.scan(photos), out, recipe) as run:
        stages.extract(run)[0].close()


def warnings_in(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.getMessage() for r in caplog.records if r.levelname == "WARNING"]


# --------------------------------------------------------------------- going on
def test_a_new_folder_gets_its_recipe_and_can_be_gone_on_with(
    tmp_path: Path, recipe: Recipe, photos: Path
) -> None:
    out = tmp_path / "new" / "out"
    for _ in range(2):
        open_once(photos, out, recipe)
    found = {path.relative_to(out).as_posix() for path in out.rglob("*")}
    assert found == {"recipe.yaml", "work", "work/images.json", "work/lock"}


def test_a_choice_is_made_when_there_are_features(
    tmp_path: Path, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    out, splat = tmp_path / "out", load_recipe("splat")
    run = open_once(photos, out, splat)
    assert run.recipe.frontends == (splat.frontends[1],)  # no weights are here
    assert read_resolved(out / "recipe.yaml") == splat
    extract(photos, out, splat)
    assert read_resolved(out / "recipe.yaml") == run.recipe
    caplog.clear()
    assert open_once(photos, out, splat).recipe == run.recipe
    assert caplog.messages == ["features: compact + nearest, as in the earlier run"]
    assert open_once(photos, out, load_recipe("sift")).recipe.features.type == "sift"


@pytest.mark.parametrize(
    "left",
    [
        ("work/lock", "work/images.json"),
        ("work/lock", "work/.images.json.part"),
        ("work/lock", "work/images.json", ".recipe.yaml.part"),
        ("work/.stages.json.part", "work/stages.json"),
    ],
)
def test_a_run_killed_before_there_is_a_recipe_goes_on(
    tmp_path: Path, photos: Path, recipe: Recipe, left: tuple[str, ...]
) -> None:
    out = tmp_path / "out"
    for name in left:
        path = out / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    open_once(photos, out, recipe)
    assert read_resolved(out / "recipe.yaml") == recipe


def test_a_run_stopped_before_the_choice_has_made_none(
    tmp_path: Path, photos: Path
) -> None:
    """Killed between the first bytes of a store and the recipe with the choice."""
    out, splat = tmp_path / "out", load_recipe("splat")
    run = open_once(photos, out, splat)
    made = stages.open_store(run, "extract")
    FeatureStore(out / "work" / "features.h5", made).close()
    assert read_resolved(out / "recipe.yaml") == splat
    # not the first choice, whose weights are not here
    assert open_once(photos, out, splat).recipe == run.recipe
    extract(photos, out, splat)


@pytest.mark.parametrize("how", ["cut", "columns"])
def test_a_damaged_store_is_made_again(
    tmp_path: Path,
    recipe: Recipe,
    photos: Path,
    caplog: pytest.LogCaptureFixture,
    how: str,
) -> None:
    out = tmp_path / "out"
    extract(photos, out, recipe)
    path = out / "work" / "features.h5"
    with FeatureStore(path) as store:
        expected = {name: found.xy.tolist() for name, found in store.items()}
    if how == "cut":
        os.truncate(path, 2000)
    else:
        with h5py.File(path, "r+") as file:
            del file["columns"]
    extract(photos, out, recipe)
    assert warnings_in(caplog) == [
        f"{path} is damaged, as by a kill while it was written: 0 items of it can be"
        " read and are kept, others are made again"
    ]
    with FeatureStore(path) as store:
        assert {name: found.xy.tolist() for name, found in store.items()} == expected
    assert {file.name for file in path.parent.glob("features*")} == {"features.h5"}


def test_a_stage_that_is_refused_leaves_the_recipe_as_it_was(
    tmp_path: Path, recipe: Recipe, photos: Path
) -> None:
    out = tmp_path / "out"
    extract(photos, out, recipe)
    before = (out / "recipe.yaml").read_bytes()
    other = load_recipe("sift", ["features.max_keypoints=99"])
    with (
        pytest.raises(StoreError, match="Run `sfmprep extract` first"),
        open_run(ImageSet.scan(photos), out, other, goes_on=True) as run,
    ):
        artefacts.open_features(run)
    assert (out / "recipe.yaml").read_bytes() == before
    seed = load_recipe("sift", ["seed=7"])
    with open_run(ImageSet.scan(photos), out, seed, goes_on=True) as run:
        make_pairs(run, artefacts.open_features(run))
        assert read_resolved(out / "recipe.yaml").seed == 7


@pytest.mark.shared
@pytest.mark.usefixtures("real_weights")
def test_better_weights_that_have_come_are_mentioned(
    tmp_path: Path,
    photos: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out, splat = tmp_path / "out", load_recipe("splat")
    with monkeypatch.context() as patched:
        patched.delenv("SFMPREP_WEIGHTS")
        extract(photos, out, splat)
    caplog.set_level("INFO")
    caplog.clear()
    open_once(photos, out, splat)
    assert caplog.messages == [
        "features: compact + nearest, as in the earlier run",
        "the weights of aliked-n16 + nearest are here now, which the recipe prefers; a"
        " new output folder would use them",
    ]


def test_a_run_stopped_at_once_can_go_on(
    tmp_path: Path, recipe: Recipe, photos: Path
) -> None:
    with Workspace(tmp_path / "out").locked():
        pass
    run = open_once(photos, tmp_path / "out", recipe)
    assert run.workspace.manifest.is_file()


def test_a_later_stage_alone_makes_no_folder(
    tmp_path: Path, recipe: Recipe, photos: Path
) -> None:
    with pytest.raises(StoreError) as caught:
        open_once(photos, tmp_path / "out", recipe, goes_on=True)
    assert str(caught.value) == (
        f"{tmp_path / 'out' / 'work' / 'features.h5'} is missing or incomplete. Run"
        " `sfmprep extract` first."
    )
    assert not (tmp_path / "out").exists()


def test_the_lock_is_held_and_given_back(
    tmp_path: Path, recipe: Recipe, photos: Path
) -> None:
    out = tmp_path / "out"
    with open_run(ImageSet.scan(photos), out, recipe):
        assert error_of(StoreError, photos, out, recipe) == (
            f"{out} is in use by another sfmprep. Wait for it, or stop it."
        )
    open_once(photos, out, recipe)


def test_other_features_are_put_aside_and_come_back(
    tmp_path: Path, recipe: Recipe, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    extract(photos, out, recipe)
    path = out / "work" / "features.h5"
    with FeatureStore(path) as store:
        before = {name: store.num_keypoints(name) for name in store.names()}
    extract(photos, out, load_recipe("sift", ["features.max_keypoints=5"]))
    with FeatureStore(path) as store:
        assert all(store.num_keypoints(name) <= 5 for name in store.names())
    monkeypatch.setattr(stages, "build_extractor", None)  # nothing is to be extracted
    extract(photos, out, recipe)
    with FeatureStore(path) as store:
        assert {name: store.num_keypoints(name) for name in store.names()} == before
    assert len(list((out / "work" / "earlier").iterdir())) == 1


# ------------------------------------------------------------------------ the images
def test_images_that_are_gone_are_named(
    tmp_path: Path, recipe: Recipe, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    picture(photos / "c.png", 3)
    open_once(photos, tmp_path / "out", recipe)
    away = (photos / "a.png").rename(tmp_path / "a.png")
    open_once(photos, tmp_path / "out", recipe)
    assert warnings_in(caplog) == [
        f"1 images of the earlier run, such as a.png, are not in {photos} now,"
        " so the result will be without them"
    ]
    caplog.clear()
    open_once(photos, tmp_path / "out", recipe)  # it was said
    away.rename(photos / "a.png")
    open_once(photos, tmp_path / "out", recipe)
    assert warnings_in(caplog) == []


def test_a_photograph_of_other_content_is_made_anew_also_after_it_was_away(
    tmp_path: Path, recipe: Recipe, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "out"
    picture(photos / "c.png", 3)
    with open_run(ImageSet.scan(photos), out, recipe) as run:
        features, _ = stages.extract(run)
        with features:
            pairs = make_pairs(run, features)
            stages.match(run, pairs, features).close()
            before = {name: features.get(name) for name in features.names()}
    (photos / "a.png").unlink()
    extract(photos, out, recipe)
    # as long as the old file, and as old
    picture(photos / "a.png", 9)
    caplog.clear()
    with open_run(ImageSet.scan(photos), out, recipe) as run:
        with FeatureStore(run.workspace.features) as features:
            assert features.names() == ["c.png", "ü b.png"]
        with MatchStore(run.workspace.matches) as matches:
            assert matches.pairs() == [("c.png", "ü b.png")]
        features, _ = stages.extract(run)
        with features:
            assert not np.array_equal(features.get("a.png").xy, before["a.png"].xy)
            np.testing.assert_array_equal(features.get("c.png").xy, before["c.png"].xy)
    assert warnings_in(caplog) == [
        "1 images or their masks, such as a.png, changed since the earlier run; their"
        " features and matches are made anew"
    ]


def test_equal_photographs_in_another_place_go_on(
    tmp_path: Path, recipe: Recipe, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    extract(photos, tmp_path / "out", recipe)
    shutil.copytree(photos, tmp_path / "copied")  # with new times
    shutil.copytree(tmp_path / "out", tmp_path / "moved")
    for path in (tmp_path / "copied").iterdir():
        path.touch()
    monkeypatch.setattr(stages, "build_extractor", None)
    extract(tmp_path / "copied", tmp_path / "moved", recipe)


def test_an_output_of_an_earlier_version_goes_on(
    tmp_path: Path,
    recipe: Recipe,
    photos: Path,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out = tmp_path / "out"
    extract(photos, out, recipe)
    manifest = out / "work" / "images.json"
    table = json.loads(manifest.read_text("utf-8"))
    table["photographs"] = {  # without the time of change, which came later
        name: [size, modified, sha256]
        for name, (size, modified, _, sha256) in table["photographs"].items()
    }
    manifest.write_text(json.dumps(table), "utf-8")
    with monkeypatch.context() as patch:
        patch.setattr(stages, "build_extractor", None)
        extract(photos, out, recipe)
    assert len(json.loads(manifest.read_text("utf-8"))["photographs"]["a.png"]) == 4
    assert warnings_in(caplog) == []
    manifest.write_text(json.dumps(table), "utf-8")
    picture(photos / "a.png", 9)
    extract(photos, out, recipe)
    assert warnings_in(caplog) == [
        "1 images or their masks, such as a.png, changed since the earlier run; their"
        " features and matches are made anew"
    ]


def test_a_row_that_is_no_digest_is_damage(
    tmp_path: Path, recipe: Recipe, photos: Path
) -> None:
    out = tmp_path / "out"
    open_once(photos, out, recipe)
    manifest = out / "work" / "images.json"
    manifest.write_text('{"photographs": {"a.png": [3, 4, 5, "no sum"]}}')
    assert error_of(StoreError, photos, out, recipe) == (
        f"{manifest} is damaged ('no sum' is no checksum). Delete it; the next run"
        " makes it again."
    )


def test_a_mask_is_known_by_its_content(
    tmp_path: Path, recipe: Recipe, photos: Path, caplog: pytest.LogCaptureFixture
) -> None:
    masks = tmp_path / "masks"
    masks.mkdir()
    white = np.full((64, 96), 255, np.uint8)
    for name in ("a.png.png", "ü b.png.png"):
        cv2.imwrite(str(masks / name), white)

    def names_after_opening() -> list[str]:
        images = ImageSet.scan(photos, mask_root=masks)
        with open_run(images, tmp_path / "out", recipe) as run:
            with FeatureStore(run.workspace.features) as features:
                names = features.names()
            stages.extract(run)[0].close()
        return sorted(names)

    with open_run(
        ImageSet.scan(photos, mask_root=masks), tmp_path / "out", recipe
    ) as run:
        stages.extract(run)[0].close()
    masks = shutil.copytree(masks, tmp_path / "masks elsewhere")
    for path in masks.iterdir():
        path.touch()
    assert names_after_opening() == ["a.png", "ü b.png"]
    white[10:30] = 0
    cv2.imwrite(str(masks / "a.png.png"), white)
    assert names_after_opening() == ["ü b.png"]


# -------------------------------------------------------------------- refused folders
def test_a_folder_of_something_else_is_refused_and_left_alone(
    tmp_path: Path, recipe: Recipe, photos: Path
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in "dbca":
        (out / name).touch()
    assert error_of(ConfigError, photos, out, recipe) == (
        f"{out} is not empty and not an output of sfmprep (it holds a, b, c). Give a"
        " new or empty folder."
    )
    assert sorted(p.name for p in out.iterdir()) == ["a", "b", "c", "d"]


def test_a_file_is_refused(tmp_path: Path, recipe: Recipe, photos: Path) -> None:
    (tmp_path / "out").write_text("mine")
    assert error_of(ConfigError, photos, tmp_path / "out", recipe) == (
        f"{tmp_path / 'out'} is a file. Give a folder for the output."
    )
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("below", [".", "out", "deep/out"])
def test_results_among_the_photographs_are_refused(
    tmp_path: Path, recipe: Recipe, photos: Path, below: str
) -> None:
    link = tmp_path / "link"
    link.symlink_to(photos)
    for root in (photos, link):
        out = root / below
        assert error_of(ConfigError, photos, out, recipe) == (
            f"{out} lies inside the folder of images {photos}: the results would"
            " be taken for photographs. Give a folder beside it."
        )
    assert len(list(photos.iterdir())) == 2


def test_photographs_among_the_results_are_refused(
    tmp_path: Path, recipe: Recipe, photos: Path
) -> None:
    out = tmp_path / "out"
    open_once(photos, out, recipe)
    inside = shutil.copytree(photos, out / "images")
    assert error_of(ConfigError, inside, out, recipe) == (
        f"the folder of images {out / 'images'} lies inside the results in {out},"
        " which are written anew. Give another output folder."
    )


def test_a_folder_that_cannot_be_made_is_an_error(
    tmp_path: Path, recipe: Recipe, photos: Path
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert error_of(StoreError, photos, out, recipe) == (
        f"{out} cannot be written (Not a directory). Give an output folder that you may"
        " write to, on a disk with free space."
    )


def test_a_disk_without_file_locks_is_an_error(
    tmp_path: Path, recipe: Recipe, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.EOPNOTSUPP, "Operation not supported")

    monkeypatch.setattr("sfmprep.pipelines.workspace.FileLock.acquire", refuse)
    out = tmp_path / "out"
    assert error_of(StoreError, photos, out, recipe) == (
        f"{out} lies on a disk that has no file locks (Operation not supported), by"
        " which two runs in one folder are kept apart. Give an output folder on another"
        " disk, such as one of this machine."
    )


# ----------------------------------------------------------------------------- files
@pytest.mark.parametrize("content", ["", "{", "3", "\x00"])
def test_damaged_files_are_errors_that_name_them(
    tmp_path: Path, recipe: Recipe, photos: Path, content: str
) -> None:
    out = tmp_path / "out"
    extract(photos, out, recipe)
    work = out / "work"
    for path in (work / "stages.json", work / "images.json"):
        kept = path.read_text()
        path.write_text(content)
        message = error_of(StoreError, photos, out, recipe)
        assert message.startswith(f"{path} is damaged (")
        assert message.endswith("). Delete it; the next run makes it again.")
        path.write_text(kept)
    (out / "recipe.yaml").write_text(content)
    assert error_of(ConfigError, photos, out, recipe).startswith(
        f"recipe file {out / 'recipe.yaml'}"
    )
