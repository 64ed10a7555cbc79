"""The second rung: a stronger matcher for pairs that stay weak and matter."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import MatcherConfig, Recipe
from sfmprep.config.load import load_recipe
from sfmprep.mapping.database import update_database
from sfmprep.mapping.verify import verify_matches
from sfmprep.models.build import build_matcher
from sfmprep.pipelines import artefacts, matching, stages
from sfmprep.pipelines.run import Run, open_run
from sfmprep.stores.tables import MatchStore

# a ratio test so strict that many pairs stay weak, and one that lets nearly all through
SETTINGS = (
    "features.max_size=480",
    "features.max_keypoints=400",
    "matcher.ratio=0.5",
    "stronger={matcher: {type: nearest, ratio: 0.9}, min_num_inliers: 80}",
    "mapping.type=none",
)


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("sift", SETTINGS)


@pytest.fixture
def images(demo_scene: Path) -> ImageSet:
    return ImageSet.scan(demo_scene / "images")


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[MatcherConfig]:
    """The matchers that were made, in order."""
    made: list[MatcherConfig] = []

    def build(config: MatcherConfig, **how: object) -> object:
        made.append(config)
        return build_matcher(config)

    monkeypatch.setattr(stages, "build_matcher", build)
    return made


def with_stronger(recipe: Recipe, **changes: object) -> Recipe:
    assert recipe.stronger is not None
    stronger = recipe.stronger.model_copy(update=changes)
    return recipe.model_copy(update={"stronger": stronger})


def database_rows(path: Path) -> dict[tuple[str, str], tuple[int, Sequence[object]]]:
    """How many matches each pair has, and its inliers."""
    with pycolmap.Database.open(path) as database:
        images = {image.name: image.image_id for image in database.read_all_images()}
        rows = {}
        for name0, id0 in sorted(images.items()):
            for name1, id1 in sorted(images.items()):
                if name0 < name1 and database.exists_matches(id0, id1):
                    geometry = database.read_two_view_geometry(id0, id1)
                    rows[name0, name1] = (
                        len(database.read_matches(id0, id1)),
                        geometry.inlier_matches.tolist(),
                    )
    return rows


def climb(run: Run) -> None:
    with matching.match_photographs(run, {}) as found:
        stages.fill_database(run, found.features, found.pairs, found.matches)


def test_weak_pairs_are_tried_and_all_else_is_taken_over(
    recipe: Recipe, images: ImageSet, tmp_path: Path
) -> None:
    with open_run(images, tmp_path / "out", recipe) as run:
        climb(run)
        place = run.workspace
        with (
            MatchStore(place.stronger_matches) as upper,
            MatchStore(place.matches) as lower,
        ):
            tried = set(upper.pairs())
            assert tried
            assert tried < set(lower.pairs())
        first = database_rows(run.ledger.file("verify"))
        last = database_rows(run.ledger.file("database"))
        for pair in first.keys() - tried:
            assert last[pair] == first[pair]
        gained = [len(last[p][1]) - len(first[p][1]) for p in tried & first.keys()]
        assert np.median(gained) > 0
        # what was taken over is what verification of all pairs would give
        features, matches = artefacts.open_joined(run)
        pairs = artefacts.read_pairs(run)
        anew = tmp_path / "anew.db"
        with features, matches:
            update_database(anew, images, features, matches, pairs, recipe.database)
        verify_matches(anew, pairs, recipe.database, seed=recipe.seed)
        assert database_rows(anew) == last


def test_a_second_run_does_nothing_and_one_image_more_costs_one_image(
    recipe: Recipe, images: ImageSet, tmp_path: Path, built: list[MatcherConfig]
) -> None:
    photos, out = tmp_path / "photos", tmp_path / "out"
    shutil.copytree(images.root, photos)
    last = photos / images.names[-1]
    last.rename(tmp_path / last.name)
    with open_run(ImageSet.scan(photos), out, recipe) as run:
        climb(run)
    before = database_rows(out / "database.db")
    assert recipe.stronger is not None
    assert built == [recipe.matcher, recipe.stronger.matcher]
    with open_run(ImageSet.scan(photos), out, recipe) as run:
        climb(run)
    assert len(built) == 2
    (tmp_path / last.name).rename(last)
    with open_run(ImageSet.scan(photos), out, recipe) as run:
        climb(run)
        with MatchStore(run.workspace.stronger_matches) as upper:
            tried = set(upper.pairs())
    after = database_rows(out / "database.db")
    assert any(last.name in pair for pair in after)
    for pair in before.keys() - tried:
        assert after[pair] == before[pair]


def test_where_nothing_is_weak_no_stronger_matcher_is_made(
    images: ImageSet, tmp_path: Path, built: list[MatcherConfig]
) -> None:
    easy = with_stronger(
        load_recipe("sift", [*SETTINGS, "matcher.ratio=0.9"]), min_num_inliers=15
    )
    with open_run(images, tmp_path / "out", easy) as run:
        climb(run)
        assert run.ledger.file("weak pairs").read_text() == ""
    assert built == [easy.matcher]


def test_another_stronger_matcher_matches_the_weak_pairs_alone(
    recipe: Recipe, images: ImageSet, tmp_path: Path, built: list[MatcherConfig]
) -> None:
    out = tmp_path / "out"
    assert recipe.stronger is not None
    tighter = recipe.stronger.matcher.model_copy(update={"ratio": 0.8})
    other = with_stronger(recipe, matcher=tighter)
    without = recipe.model_copy(update={"stronger": None})
    for each in (recipe, other, without):
        with open_run(images, out, each) as run:
            climb(run)
    assert built == [recipe.matcher, recipe.stronger.matcher, tighter]


def test_a_stronger_matcher_without_weights_is_left_out_and_that_is_said(
    images: ImageSet, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    recipe = load_recipe(
        "sift", ["stronger={matcher: {type: lightglue, model: sift-lightglue}}"]
    )
    with open_run(images, tmp_path / "out", recipe) as run:
        assert run.recipe.stronger is None
    assert (
        "pairs that stay weak are not tried by sift-lightglue: its weights are not here"
        " and SFMPREP_OFFLINE is set"
    ) in caplog.messages
