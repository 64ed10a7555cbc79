"""What `sfmprep settings` says, derived from the records of a recipe."""

from __future__ import annotations

from pathlib import Path

import pytest

from sfmprep.cli.commands import run
from sfmprep.cli.options import Options
from sfmprep.config import Recipe
from sfmprep.config.describe import describe, settings
from sfmprep.config.load import load_recipe
from sfmprep.errors import ConfigError


def test_every_leaf_of_a_recipe_is_described() -> None:
    def leaves(tree: dict[str, object], prefix: str = "") -> set[str]:
        found = set()
        for key, value in tree.items():
            if isinstance(value, dict):
                found |= leaves(value, f"{prefix}{key}.")
            else:
                found.add(prefix + key)
        return found

    recipe: Recipe = load_recipe("textureless")
    known = {setting.key for setting in settings()}
    keys = leaves(recipe.model_dump(mode="json", exclude={"otherwise"}))
    ways = "retrieval", "sequential", "spatial", "temporal"
    of_one_value = {f"pairs.{way}.type" for way in ways}
    assert keys - {"name", "description"} - of_one_value <= known
    assert all(setting.text and setting.allowed for setting in settings())


def test_setting_of_several_types() -> None:
    assert describe("features.max_size") == (
        "features.max_size\n"
        "  Longer side in pixels that larger images are reduced to.\n"
        "  for type: aliked, compact, d2net, disk, r2d2, sift, superpoint, xfeat\n"
        "  values: a whole number above 0\n"
        "  default: 1600 (aliked, compact, d2net, disk, superpoint, xfeat), 1024"
        " (r2d2), 3200 (sift)"
    )


def test_setting_that_is_a_choice() -> None:
    assert describe("mapping.refine_principal_point").splitlines()[2:] == [
        "  values: auto, always, never",
        "  default: auto",
    ]
    assert describe("pairs.type").splitlines()[1] == (
        "  auto: Exhaustive for small captures; else by likeness, film, time and"
        " GPS together."
    )


def test_section_shows_all_of_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["settings", "refinement"]) == 0
    assert capsys.readouterr().out == (
        "refinement\n"
        "  Sub-pixel refinement of the keypoints, or null.\n"
        "  values: {} for on, or null\n"
        "  default: null\n"
        "\n"
        "refinement.max_move_px\n"
        "  No keypoint moves further, pixels of the image that its features saw.\n"
        "  values: a number above 0\n"
        "  default: 3.0\n"
        "\n"
        "refinement.most_images\n"
        "  Captures of more images are left as they are, or null for none.\n"
        "  values: a whole number above 0, or null\n"
        "  default: null\n"
    )


def test_near_misses_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["settings", "mapping.typ"]) == 2
    assert capsys.readouterr().err == (
        "sfmprep: error: no setting is called 'mapping.typ'. Did you mean"
        " 'mapping.type'? See `sfmprep settings`.\n"
    )
    with pytest.raises(ConfigError, match="Did you mean 'database.focal_length'?"):
        describe("focal_length")


def test_the_end_of_a_key_is_enough_to_be_near() -> None:
    with pytest.raises(ConfigError, match=r"'ratoi'\. Did you mean 'matcher\.ratio'"):
        describe("ratoi")


def test_option_that_is_a_setting_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reconstruct", "in", "out", "--max-keypoints", "3"]) == 2
    assert capsys.readouterr().err.endswith(
        "--max-keypoints is a setting: --set features.max_keypoints=VALUE. See"
        " `sfmprep settings features.max_keypoints`.\n"
    )


def test_one_wrong_value_is_told_once() -> None:
    with pytest.raises(ConfigError) as caught:
        load_recipe("splat", ["features.max_keypoints=0"])
    assert str(caught.value) == (
        "recipe splat with --set features.max_keypoints=0: features.max_keypoints = 0:"
        " Input should be greater than 0."
    )


def test_flags_are_settings(tmp_path: Path) -> None:
    recipe = Options(
        pairs="sequential",
        camera_model="OPENCV",
        single_camera=True,
        mapper="global",
        max_size=800,
    ).load("splat")
    assert recipe.pairs.type == "sequential"
    assert recipe.database.camera_model == "OPENCV"
    assert recipe.database.cameras == "single"
    assert recipe.mapping.type == "global"
    assert [f.features.max_size for f in recipe.frontends] == [800, 800]
    file = tmp_path / "my pairs.txt"
    file.write_text("a.jpg b.jpg\n")
    assert Options(pairs=str(file)).load("splat").pairs.path == file


def test_pairs_that_are_neither_a_way_nor_a_file() -> None:
    with pytest.raises(ConfigError) as caught:
        Options(pairs="sequental").load("splat")
    assert str(caught.value) == (
        "--pairs sequental: it is none of auto, exhaustive, sequential, retrieval,"
        " spatial, temporal, and no such file is there. Did you mean 'sequential'?"
    )


def test_threads_below_one_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["extract", "in", "out", "--num-threads", "0"]) == 2
    assert capsys.readouterr().err == (
        "sfmprep: error: --num-threads 0: give 1 or more.\n"
    )
