"""The rung of other features beside the first, for images that are badly held."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import pycolmap
import pytest
from PIL import Image

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import FeaturesConfig, Recipe
from sfmprep.config.load import load_recipe
from sfmprep.mapping.verify import count_inliers
from sfmprep.models.build import build_extractor
from sfmprep.pairing.pairs import pairs_from_file
from sfmprep.pipelines import artefacts, matching, stages
from sfmprep.pipelines.reporting import write_report
from sfmprep.pipelines.run import Run, open_run
from sfmprep.stores.tables import FeatureStore, MatchStore

# so few keypoints that most images are badly held, and enough beside them
BESIDE = "{features: {type: sift, max_keypoints: 800, max_size: 480}, matcher: %s}"
SETTINGS = (
    "features.max_size=480",
    "features.max_keypoints=60",
    f"beside={BESIDE % '{type: nearest, ratio: 0.85}'}",
    "mapping.type=none",
)


@pytest.fixture
def recipe() -> Recipe:
    return load_recipe("sift", SETTINGS)


@pytest.fixture
def images(demo_scene: Path, tmp_path: Path) -> ImageSet:
    """Eight views in a row."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for path in sorted((demo_scene / "images").iterdir())[:8]:
        shutil.copy(path, photos)
    return ImageSet.scan(photos)


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[FeaturesConfig]:
    """The extractors that were made, in order."""
    made: list[FeaturesConfig] = []

    def build(config: FeaturesConfig, **how: object) -> object:
        made.append(config)
        return build_extractor(config)

    monkeypatch.setattr(stages, "build_extractor", build)
    return made


def climb(run: Run) -> None:
    with matching.match_photographs(run, {}) as found:
        stages.fill_database(run, found.features, found.pairs, found.matches)


def test_badly_held_images_get_keypoints_and_matches_of_both_kinds(
    recipe: Recipe, images: ImageSet, tmp_path: Path
) -> None:
    with open_run(images, tmp_path / "out", recipe) as run:
        climb(run)
        place = run.workspace
        before = count_inliers(run.ledger.file("verify"))
        after = count_inliers(run.ledger.file("database"))
        assert sum(after.values()) > 3 * sum(before.values())
        with (
            FeatureStore(place.features) as first,
            FeatureStore(place.features_beside) as second,
            MatchStore(place.matches) as own,
            MatchStore(place.matches_beside) as others,
        ):
            keypoints, matches = artefacts.open_joined(run)
            with keypoints, matches:
                name0, name1 = pair = max(after, key=lambda pair: after[pair])
                joined, part = keypoints.get(name0), first.get(name0)
                assert (joined.xy[: len(part)] == part.xy).all()
                assert (joined.xy[len(part) :] == second.get(name0).xy).all()
                found, lower = matches.get(*pair), own.get(*pair)
                starts = len(first.get(name0)), len(first.get(name1))
                moved = others.get(*pair).index + starts
                assert (found.index[: len(moved)] == moved).all()
                assert (found.index[len(moved) :] == lower.index).all()
        with pycolmap.Database.open(run.ledger.file("database")) as database:
            image = database.read_image_with_name(name0)
            assert len(database.read_keypoints(image.image_id)) == len(joined)
        with artefacts.open_keypoints(run) as features:
            report = write_report(run, [], features, unreadable={}, seconds={})
    nearest, sift = report.rungs
    assert (nearest.name, sift.name) == ("nearest", "sift")
    assert sift.num_verified > sift.num_verified_before


def test_a_photograph_that_lies_on_its_side_is_held(
    images: ImageSet, tmp_path: Path
) -> None:
    # our own features are not made for that, SIFT is
    path = images.root / images.names[3]
    with Image.open(path) as photo:
        turned = photo.transpose(Image.Transpose.ROTATE_90)
    turned.save(path)
    images = ImageSet.scan(images.root)
    beside = f"beside={BESIDE % '{type: nearest, ratio: 0.81}'}"
    settings = [
        *("features.max_size=480", "features.max_keypoints=800", beside),
        *("stronger=null", "refinement=null", "mapping.type=none"),
    ]
    with open_run(images, tmp_path / "out", load_recipe("compact", settings)) as run:
        climb(run)
        before = count_inliers(run.ledger.file("verify"))
        after = count_inliers(run.ledger.file("database"))
        tried = pairs_from_file(run.ledger.file("pairs beside"), images.names)
    assert not [p for p in before if path.name in p and before[p] >= 30]
    assert len([p for p in after if path.name in p and after[p] >= 30]) >= 2
    # nobody else needs it: strong pairs come only among its partners
    weak = [pair for pair in tried if before.get(pair, 0) < 30]
    assert all(path.name in pair for pair in weak)


def test_a_second_run_does_nothing_and_an_image_more_is_added(
    recipe: Recipe, images: ImageSet, tmp_path: Path, built: list[FeaturesConfig]
) -> None:
    photos, out = images.root, tmp_path / "out"
    last = photos / images.names[-1]
    last.rename(tmp_path / last.name)
    assert recipe.beside is not None
    for _ in range(2):
        with open_run(ImageSet.scan(photos), out, recipe) as run:
            climb(run)
        assert built == [recipe.features, recipe.beside.features]
    before = count_inliers(out / "database.db")
    (tmp_path / last.name).rename(last)
    with open_run(ImageSet.scan(photos), out, recipe) as run:
        climb(run)
        with FeatureStore(run.workspace.keypoints_beside) as keypoints:
            assert last.name in keypoints
    after = count_inliers(out / "database.db")
    assert any(last.name in pair for pair in after)
    assert before.keys() <= after.keys()


def test_where_no_image_is_badly_held_no_other_extractor_is_made(
    images: ImageSet, tmp_path: Path, built: list[FeaturesConfig]
) -> None:
    easy = load_recipe(
        "sift", [*SETTINGS, "features.max_keypoints=1500", "beside.min_num_inliers=15"]
    )
    with open_run(images, tmp_path / "out", easy) as run:
        climb(run)
        assert run.ledger.file("pairs beside").read_text() == ""
        with artefacts.open_keypoints(run) as keypoints:
            assert keypoints.path == run.workspace.features
        assert run.ledger.first_undone("database") is None
    assert built == [easy.features]


def test_a_stronger_matcher_goes_on_from_both_kinds(
    images: ImageSet, tmp_path: Path
) -> None:
    stronger = "stronger={matcher: {type: nearest, ratio: 0.95}, min_num_inliers: 200}"
    recipe = load_recipe("sift", [*SETTINGS, stronger])
    with open_run(images, tmp_path / "out", recipe) as run:
        climb(run)
        assert run.ledger.file("weak pairs").read_text()
        beside = count_inliers(run.ledger.file("verify beside"))
        assert count_inliers(run.ledger.file("database")).keys() >= beside.keys()
        keypoints, matches = artefacts.open_joined(run)
        with keypoints, matches:
            assert keypoints.path == run.workspace.keypoints_beside


def test_features_without_weights_are_left_out_and_that_is_said(
    images: ImageSet,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("SFMPREP_OFFLINE", "1")
    monkeypatch.setenv("SFMPREP_WEIGHTS", str(tmp_path))
    recipe = load_recipe(
        "sift", ["beside={features: {type: disk}, matcher: {type: nearest}}"]
    )
    caplog.set_level(logging.INFO)
    with open_run(images, tmp_path / "out", recipe) as run:
        assert run.recipe.beside is None
    assert (
        "images that stay badly held get no disk: its weights are not here and"
        " SFMPREP_OFFLINE is set" in caplog.messages
    )
