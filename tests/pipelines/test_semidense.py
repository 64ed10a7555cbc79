"""The pipeline with semi-dense matching, on a matcher that knows the demo scene."""

from __future__ import annotations

import shutil
from pathlib import Path

import pycolmap
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.cli.commands import run
from sfmprep.config import Recipe, XFeatStarConfig
from sfmprep.config.load import load_recipe
from sfmprep.errors import StoreError, WeightsError
from sfmprep.pipelines import artefacts, semidense, stages
from sfmprep.pipelines.choose_pairs import make_pairs
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.pipelines.run import open_run
from sfmprep.pipelines.workspace import Workspace
from sfmprep.report.schema import Report
from sfmprep.stores.tables import DenseStore
from tests.support.flow_matcher import Flow

SETTINGS = (
    "features.max_size=480",
    "features.max_keypoints=600",
    "export.downscales=[2]",
    "dense={matcher: {type: xfeat-star, max_size: 480}, pairs: all}",
    "refinement={}",
)


@pytest.fixture(autouse=True)
def _quiet_colmap() -> None:
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Recipe:
    monkeypatch.setattr(semidense, "build_dense_matcher", lambda *_, **__: Flow())
    monkeypatch.setattr(XFeatStarConfig, "needed_weights", lambda _: [])
    return load_recipe("sift", SETTINGS)


@pytest.fixture
def images(demo_scene: Path, tmp_path: Path) -> ImageSet:
    """Five neighbours."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted((demo_scene / "images").iterdir())[:5]:
        shutil.copy(path, folder)
    return ImageSet.scan(folder)


def counts(report: Report) -> list[tuple[str, int | None, int | None]]:
    return [(each.name, each.num_keypoints, each.num_points) for each in report.images]


def changed(recipe: Recipe, **dense: object) -> Recipe:
    assert recipe.dense is not None
    return recipe.model_copy(update={"dense": recipe.dense.model_copy(update=dense)})


def test_semi_dense_matches_are_in_the_result(
    recipe: Recipe, images: ImageSet, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    report = reconstruct(images.root, out, recipe)
    assert sum(image.model == 0 for image in report.images) == 5
    workspace = Workspace(out)
    with open_run(images, out, recipe) as opened:
        with artefacts.open_features(opened) as features:
            before = {name: features.num_keypoints(name) for name in features.names()}
        with artefacts.open_keypoints(opened) as features:
            after = {name: features.num_keypoints(name) for name in features.names()}
    assert all(after[name] > before[name] + 50 for name in before)
    model = pycolmap.Reconstruction(workspace.models / "0")
    added = sum(
        point.has_point3D() and row >= before[image.name]
        for image in model.images.values()
        for row, point in enumerate(image.points2D)
    )
    assert added > 200  # observations of keypoints that no detector found

    # the same again does nothing, and reports the same keypoints
    noted = (workspace.work / "stages.json").read_text()
    assert counts(reconstruct(images.root, out, recipe)) == counts(report)
    assert (workspace.work / "stages.json").read_text() == noted
    code = 0 if report.trainable else 3
    assert run(["report", str(images.root), str(out)]) == code
    again = Report.model_validate_json((out / "report.json").read_text())
    assert counts(again) == counts(report)

    # another radius joins anew, and the stage commands see that it was not done
    wider = changed(recipe, radius=2.0)
    with (
        open_run(images, out, wider) as opened,
        pytest.raises(StoreError) as caught,
    ):
        artefacts.open_joined(opened)
    assert str(caught.value) == (
        f"{workspace.joined_matches} is out of date (radius was 1.0 and is 2.0). Run"
        " `sfmprep match` first."
    )
    reconstruct(images.root, out, wider)
    assert (workspace.work / "stages.json").read_text() != noted

    # another matcher, then none, then the first again, whose matches come back
    with DenseStore(workspace.dense) as store:
        dense = [len(found) for _, found in store.items()]
    other = changed(
        recipe, matcher=recipe.dense.matcher.model_copy(update={"min_score": 0.5})
    )
    reconstruct(images.root, out, other)
    reconstruct(images.root, out, recipe.model_copy(update={"dense": None}))
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(semidense, "build_dense_matcher", None)
        reconstruct(images.root, out, wider)
    with DenseStore(workspace.dense) as store:
        assert [len(found) for _, found in store.items()] == dense


def test_only_weak_pairs_are_tried_and_only_they_count(
    recipe: Recipe, images: ImageSet, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    totals = []
    for how in ({}, {"pairs": "weak", "min_num_inliers": 1}):
        with open_run(images, out, changed(recipe, **how)) as opened:
            config = opened.recipe.dense
            assert config is not None
            features, _ = stages.extract(opened)
            with features:
                pairs = make_pairs(opened, features)
                with stages.match(opened, pairs, features) as matches:
                    joined = semidense.join_semi_dense(
                        *(opened, config, features, pairs, matches)
                    )
                    with joined[0], joined[1]:
                        totals.append(sum(len(found) for _, found in joined[1].items()))
    assert totals[1] < totals[0]
    tried = Workspace(out).pairs_left.read_text().split("\n")
    assert len([line for line in tried if line]) < len(pairs)


def test_lack_of_semi_dense_weights_is_told_before_the_work(
    images: ImageSet, tmp_path: Path
) -> None:
    recipe = load_recipe("sift", ["dense={matcher: {type: s2ld}}"])
    with (
        pytest.raises(WeightsError, match="s2ld"),
        open_run(images, tmp_path / "out", recipe),
    ):
        pass
    assert not (tmp_path / "out").exists()
