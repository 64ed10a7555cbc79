"""The second round: what models propose is matched, and mapping goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import Recipe
from sfmprep.config.load import load_recipe
from sfmprep.mapping.models import read_packed
from sfmprep.mapping.verify import read_verified
from sfmprep.pairing.pairs import Pairs, exhaustive_pairs, pairs_from_file
from sfmprep.pipelines import artefacts, map_stages, poses
from sfmprep.pipelines.apart import apart, refine_into
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.pipelines.run import open_run
from sfmprep.pipelines.workspace import Workspace

SETTINGS = (
    "features.max_size=480",
    "features.max_keypoints=600",
    "export.downscales=[2]",
    "mapping.min_num_matches=15",
)


@pytest.fixture
def images(demo_scene: Path) -> ImageSet:
    return ImageSet.scan(demo_scene / "images")


def with_pairs(path: Path, pairs: Pairs, *settings: str) -> Recipe:
    pairs.write(path)
    source = f"pairs={{type: file, path: {path}}}"
    return load_recipe("sift", [*SETTINGS, source, *settings])


def test_views_that_should_see_the_same_are_matched(
    images: ImageSet, tmp_path: Path
) -> None:
    every = exhaustive_pairs(images.names)
    few = Pairs.of(every.items[::2])
    recipe = with_pairs(tmp_path / "few.txt", few)
    out = tmp_path / "out"
    reconstruct(images.root, out, recipe)
    place = Workspace(out)
    second = pairs_from_file(place.second_pairs, images.names)
    assert second
    assert set(second).isdisjoint(few)
    assert set(second) <= set(every)
    assert not place.lost_pairs.read_text()
    before = read_verified(place.work / "database.db")
    after = read_verified(place.second_database)
    assert after.num_verified > before.num_verified
    with open_run(images, out, recipe) as run:
        assert artefacts.result_database(run) == place.second_database
        features, matches = artefacts.open_result(run)
        with features, matches:
            assert set(matches.pairs()) >= {*few, *second}


def test_an_image_without_a_pose_gets_one(images: ImageSet, tmp_path: Path) -> None:
    lost = images.names[3]
    every = exhaustive_pairs(images.names)
    first_and_lost = (images.names[0], lost)
    few = Pairs.of(p for p in every if lost not in p or p == first_and_lost)
    recipe = with_pairs(tmp_path / "few.txt", few, "mapping.min_num_matches=15")
    report = reconstruct(images.root, tmp_path / "out", recipe)
    assert all(image.model == 0 for image in report.images)


def test_where_nothing_is_proposed_nothing_is_done(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = load_recipe("sift", [*SETTINGS, "pairs={type: exhaustive}"])
    monkeypatch.setattr(poses, "_match", None)
    out = tmp_path / "out"
    reconstruct(images.root, out, recipe)
    place = Workspace(out)
    assert place.second_pairs.read_text() == ""
    assert not place.second_database.exists()
    assert place.mapped_on.read_bytes() == place.mapped.read_bytes()
    with open_run(images, out, recipe) as run:
        assert all(run.ledger.is_done(stage) for stage in ("second pairs", "map on"))


def test_cameras_that_only_turned_have_no_second_round(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Pairs.of(exhaustive_pairs(images.names).items[::2])
    asked: list[set[str]] = []

    def only_turns(models: object, names: set[str]) -> bool:
        asked.append(names)
        return True

    monkeypatch.setattr(poses, "only_turns", only_turns)
    out = tmp_path / "out"
    reconstruct(images.root, out, with_pairs(tmp_path / "few.txt", few))
    assert asked and asked[0] <= set(images.names)
    assert Workspace(out).second_pairs.read_text() == ""


def test_a_recipe_can_leave_the_second_round_out(
    images: ImageSet, tmp_path: Path
) -> None:
    few = Pairs.of(exhaustive_pairs(images.names).items[::2])
    recipe = with_pairs(tmp_path / "few.txt", few, "second_round=null")
    out = tmp_path / "out"
    reconstruct(images.root, out, recipe)
    assert not Workspace(out).second_pairs.exists()
    assert not Workspace(out).mapped_on.exists()


def test_what_is_refined_are_the_models_of_the_last_round(
    images: ImageSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few = Pairs.of(exhaustive_pairs(images.names).items[::2])
    refined: list[Path] = []

    def run_here(function: Callable[..., object], *args: Any, **how: Any) -> object:
        if function is refine_into:
            refined.append(args[1])
        return apart(function, *args, **how)

    monkeypatch.setattr(map_stages, "apart", run_here)
    for setting in ("second_round={}", "second_round=null"):
        out = tmp_path / setting
        recipe = with_pairs(tmp_path / "few.txt", few, "refinement={}", setting)
        reconstruct(images.root, out, recipe)
    with_second, without = (path.name for path in refined)
    assert (with_second, without) == ("mapped_on.zip", "mapped.zip")


@pytest.mark.parametrize(("most", "is_refined"), [("7", False), ("8", True)])
def test_captures_of_more_images_are_not_refined(
    most: str,
    is_refined: bool,
    images: ImageSet,
    demo_result: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refined: list[object] = []
    name = "sfmprep.pipelines.apart.refine_keypoints"
    monkeypatch.setattr(name, lambda *given, **_: refined.append(given))
    recipe = load_recipe("splat", [f"refinement.most_images={most}"])
    packed = tmp_path / "refined.zip"
    mapped = demo_result / "work" / "mapped.zip"
    refine_into(packed, mapped, tmp_path / "dense.h5", None, images, recipe)
    assert bool(refined) == is_refined
    assert read_packed(packed)[0].num_reg_images() == 8
