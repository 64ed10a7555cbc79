"""The output folder: when a run may begin or go on in it, and when it may not."""

from __future__ import annotations

import dataclasses
import errno
from pathlib import Path

import pytest

from sfmprep.capture.image_set import ImageInfo, ImageSet
from sfmprep.config import Recipe
from sfmprep.config.load import load_recipe, read_resolved
from sfmprep.errors import ConfigError, ImageError, SfmprepError, StoreError
from sfmprep.files import write_text
from sfmprep.pipelines.workspace import Workspace


@pytest.fixture
def images(tmp_path: Path) -> ImageSet:
    return capture(tmp_path / "photos", {"a.jpg": 10, "ü b.jpg": 20})


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("sift")


def capture(root: Path, sizes: dict[str, int]) -> ImageSet:
    root.mkdir(exist_ok=True, parents=True)
    infos = {
        name: ImageInfo(size=(4, 3), orientation=1, num_bytes=num_bytes)
        for name, num_bytes in sizes.items()
    }
    return ImageSet(root, tuple(infos), infos, {})


def error_of(
    kind: type[SfmprepError], out: Path, recipe: Recipe, images: ImageSet
) -> str:
    with pytest.raises(kind) as caught:
        Workspace(out).open(recipe, images)
    return str(caught.value)


# --------------------------------------------------------------------- going on
def test_a_new_folder_gets_its_recipe_and_can_be_gone_on_with(
    tmp_path: Path, recipe: Recipe, images: ImageSet
) -> None:
    workspace = Workspace(tmp_path / "new" / "out")
    assert workspace.chosen_frontend(recipe) is None
    for _ in range(2):
        workspace.open(recipe, images)
        assert workspace.chosen_frontend(recipe) == recipe.frontends[0]
    found = {p.relative_to(workspace.out).as_posix() for p in workspace.out.rglob("*")}
    assert found == {"recipe.yaml", "work", "work/images.json"}


def test_the_choice_of_an_earlier_run_is_kept_only_if_the_recipe_has_it(
    tmp_path: Path, images: ImageSet
) -> None:
    workspace, splat = Workspace(tmp_path / "out"), load_recipe("splat")
    workspace.open(splat.with_frontend(splat.frontends[2]), images)
    assert workspace.chosen_frontend(splat) == splat.frontends[2]
    assert workspace.chosen_frontend(load_recipe("sift")) is None


def test_a_run_stopped_before_its_manifest_can_go_on(
    tmp_path: Path, recipe: Recipe, images: ImageSet
) -> None:
    workspace = Workspace(tmp_path / "out")
    workspace.out.mkdir()
    write_text(workspace.recipe, recipe.to_yaml())
    workspace.open(recipe, images)
    assert workspace.manifest.is_file()


def test_another_recipe_is_refused_naming_what_differs(
    tmp_path: Path, recipe: Recipe, images: ImageSet
) -> None:
    out = tmp_path / "out"
    Workspace(out).open(recipe, images)
    other = load_recipe(
        "sift", ["features.max_size=800", "pairs.type=exhaustive", "name=other"]
    )
    assert error_of(ConfigError, out, other, images) == (
        f"{out} holds the result of recipe 'sift' with other settings:\n"
        "  features.max_size: 3200 there, 800 now\n"
        "  pairs.exhaustive_up_to: 60 there, None now\n"
        "  pairs.retrieval.min_similarity: -1.0 there, None now\n"
        "  pairs.retrieval.num_clusters: 256 there, None now\n"
        "  pairs.retrieval.num_neighbours: 20 there, None now\n"
        "  pairs.retrieval.type: 'retrieval' there, None now\n"
        "  pairs.type: 'auto' there, 'exhaustive' now\n"
        "Give another output folder, or go on with the old settings: --recipe"
        f" {out / 'recipe.yaml'}"
    )


def test_settings_of_later_stages_may_change(
    tmp_path: Path,
    recipe: Recipe,
    images: ImageSet,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Workspace(tmp_path / "out").open(recipe, images)
    other = load_recipe("sift", ["mapping.type=global", "export.downscales=[2]"])
    caplog.set_level("INFO")

    Workspace(tmp_path / "out").open(other, images)

    assert caplog.messages == [
        "settings that changed since the earlier run: export.downscales: [2, 4, 8]"
        " there, [2] now; mapping.type: 'incremental' there, 'global' now; what depends"
        " on them is done anew"
    ]
    assert read_resolved(tmp_path / "out" / "recipe.yaml") == other


def test_images_that_are_gone_are_named(
    tmp_path: Path,
    recipe: Recipe,
    images: ImageSet,
    caplog: pytest.LogCaptureFixture,
) -> None:
    Workspace(tmp_path / "out").open(recipe, images)
    first, *others = images.names
    fewer = dataclasses.replace(
        images,
        names=tuple(others),
        infos={name: images.infos[name] for name in others},
    )

    Workspace(tmp_path / "out").open(recipe, fewer)

    assert caplog.messages == [
        f"1 images of the earlier run, such as {first}, are not in {images.root} now,"
        " so the result will be without them"
    ]


def test_another_name_or_description_is_no_other_recipe(
    tmp_path: Path, recipe: Recipe, images: ImageSet
) -> None:
    Workspace(tmp_path / "out").open(recipe, images)
    renamed = load_recipe("sift", ["name=other", "description=new"])
    Workspace(tmp_path / "out").open(renamed, images)


# ------------------------------------------------------------------------ the images
def test_new_and_missing_images_are_accepted(
    tmp_path: Path, recipe: Recipe, images: ImageSet
) -> None:
    workspace = Workspace(tmp_path / "out")
    workspace.open(recipe, images)
    workspace.open(recipe, capture(images.root, {"c.jpg": 5}))
    workspace.open(recipe, capture(images.root, {"a.jpg": 10, "c.jpg": 5}))


def test_a_changed_image_is_refused_also_after_it_was_away(
    tmp_path: Path, recipe: Recipe, images: ImageSet
) -> None:
    out = tmp_path / "out"
    Workspace(out).open(recipe, images)
    Workspace(out).open(recipe, capture(images.root, {"a.jpg": 10}))
    changed = capture(images.root, {"a.jpg": 10, "ü b.jpg": 21})
    for _ in range(2):
        assert error_of(ImageError, out, recipe, changed) == (
            f"{images.root / 'ü b.jpg'} changed since {out} was begun (1 such images)."
            " Give another output folder."
        )


# -------------------------------------------------------------------- refused folders
def test_a_folder_of_something_else_is_refused_and_left_alone(
    tmp_path: Path, recipe: Recipe, images: ImageSet
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for name in "dbca":
        (out / name).touch()
    assert error_of(ConfigError, out, recipe, images) == (
        f"{out} is not empty and not an output of sfmprep (it holds a, b, c). Give a"
        " new or empty folder."
    )
    assert sorted(p.name for p in out.iterdir()) == ["a", "b", "c", "d"]


def test_a_file_is_refused(tmp_path: Path, recipe: Recipe, images: ImageSet) -> None:
    (tmp_path / "out").write_text("mine")
    assert error_of(ConfigError, tmp_path / "out", recipe, images) == (
        f"{tmp_path / 'out'} is a file. Give a folder for the output."
    )
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("below", [".", "out", "deep/out"])
def test_results_among_the_photographs_are_refused(
    tmp_path: Path, recipe: Recipe, images: ImageSet, below: str
) -> None:
    link = tmp_path / "link"
    link.symlink_to(images.root)
    for root in (images.root, link):
        out = root / below
        assert error_of(ConfigError, out, recipe, images) == (
            f"{out} lies inside the folder of images {images.root}: the results would"
            " be taken for photographs. Give a folder beside it."
        )
    assert list(images.root.iterdir()) == []


def test_photographs_among_the_results_are_refused(
    tmp_path: Path, recipe: Recipe, images: ImageSet
) -> None:
    out = tmp_path / "out"
    Workspace(out).open(recipe, images)
    inside = capture(out / "images", {"a.jpg": 10})
    assert error_of(ConfigError, out, recipe, inside) == (
        f"the folder of images {out / 'images'} lies inside the results in {out},"
        " which are written anew. Give another output folder."
    )


def test_a_folder_that_cannot_be_made_is_an_error(
    tmp_path: Path, recipe: Recipe, images: ImageSet
) -> None:
    (tmp_path / "file").touch()
    out = tmp_path / "file" / "out"
    assert error_of(StoreError, out, recipe, images) == (
        f"{out} cannot be written (Not a directory). Give an output folder that you may"
        " write to, on a disk with free space."
    )


def test_a_full_disk_is_an_error_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError) as caught:
        write_text(path, "new")
    assert str(caught.value) == (
        f"{path} cannot be written (No space left on device). Give an output folder"
        " that you may write to, on a disk with free space."
    )
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [
        ("summary.json", "old")
    ]


# ---------------------------------------------------------------------------- stages
def test_a_stage_is_done_for_its_inputs_until_it_starts_again(
    tmp_path: Path, recipe: Recipe, images: ImageSet
) -> None:
    workspace = Workspace(tmp_path / "out")
    workspace.open(recipe, images)
    inputs = [{"a": 1, "b": None}, "x"]
    workspace.start("map")
    assert not workspace.is_done("map", inputs)
    assert workspace.done("map") is None
    workspace.finish("map", inputs)
    workspace.finish("export", 3)
    again = Workspace(tmp_path / "out")
    assert again.is_done("map", [{"b": None, "a": 1}, "x"])
    assert not again.is_done("map", [{"a": 2, "b": None}, "x"])
    assert again.done("map") != again.done("export")
    again.start("export")
    assert workspace.is_done("map", inputs)
    workspace.finish("export", 3)
    again.start("map")
    assert not workspace.is_done("map", inputs)
    assert workspace.done("export") is None  # it was made of what is replaced


@pytest.mark.parametrize("content", ["", "{", "3", "\x00"])
def test_damaged_files_are_errors_that_name_them(
    tmp_path: Path, recipe: Recipe, images: ImageSet, content: str
) -> None:
    out = tmp_path / "out"
    workspace = Workspace(out)
    workspace.open(recipe, images)
    stages = out / "work" / "stages.json"
    stages.write_text(content)
    with pytest.raises(StoreError) as caught:
        workspace.done("map")
    assert str(caught.value).startswith(f"{stages} is damaged (")
    assert str(caught.value).endswith(
        f"). Delete {out / 'work'}; the next run makes it again."
    )
    workspace.manifest.write_text(content)
    assert error_of(StoreError, out, recipe, images).startswith(
        f"{workspace.manifest} is damaged ("
    )
    workspace.recipe.write_text(content)
    assert error_of(ConfigError, out, recipe, images).startswith(
        f"recipe file {workspace.recipe}"
    )


def test_the_database_is_in_plain_sight_where_it_is_the_result(
    tmp_path: Path, recipe: Recipe
) -> None:
    workspace = Workspace(tmp_path)
    assert workspace.database(recipe) == tmp_path / "work" / "database.db"
    assert workspace.database(load_recipe("colmap")) == tmp_path / "database.db"


def test_a_workspace_is_frozen(tmp_path: Path) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        Workspace(tmp_path).out = tmp_path  # type: ignore[misc]
