"""Images without a pose are found where their pointmaps say that they look."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import NearestConfig, Recipe
from sfmprep.config.load import load_recipe
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import read_reference
from sfmprep.geometry.pointmaps import Foreseen
from sfmprep.geometry.views import Views
from sfmprep.models.protocols import Matcher, Prepared, Side
from sfmprep.pipelines import foreseen, stages
from sfmprep.pipelines.artefacts import read_result
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.pipelines.run import open_run
from sfmprep.pipelines.workspace import Workspace
from sfmprep.semidense.foresee import read_foreseen
from sfmprep.stores.tables import FeatureStore
from sfmprep.types import Features, Float32, Matches
from tests.support.true_pointmaps import TruePointmaps

LOST = 4
MAX_SIZE = 96
SETTINGS = (
    "features.max_size=480",
    "features.max_keypoints=1500",
    "pairs={type: exhaustive}",
    "export.downscales=[2]",
)
NETWORK = f"{{type: pointmap, max_size: {MAX_SIZE}}}"
FORESEE = f"second_round.foresee={{network: {NETWORK}, per_image: 3}}"


@pytest.fixture(scope="module")
def images(demo_scene: Path) -> ImageSet:
    return ImageSet.scan(demo_scene / "images")


@pytest.fixture(scope="module")
def network(demo_scene: Path, images: ImageSet) -> TruePointmaps:
    known = TruePointmaps(demo_scene)
    batches = load_batches(images, list(images.names), max_size=MAX_SIZE)
    for number, (_, batch) in enumerate(batches):
        known.know(number, batch)
    return known


@pytest.fixture
def recipe(
    network: TruePointmaps, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Recipe:
    monkeypatch.setattr(foreseen, "build_pointmaps", lambda *_, **__: network)
    weights = tmp_path / "mast3r.safetensors"
    weights.write_bytes(b"not read")
    named = f"second_round.foresee.network.weights={weights}"
    return load_recipe("sift", [*SETTINGS, FORESEE, named])


class Blind:
    """A matcher that finds nothing in one image."""

    identity = {"weights_sha256": None}

    def __init__(self, matcher: Matcher, xy: Float32) -> None:
        self._matcher, self._xy = matcher, xy
        self._blind: list[Side] = []

    def prepare(self, features: Features) -> Prepared:
        prepared = self._matcher.prepare(features)
        if np.array_equal(features.xy, self._xy):
            self._blind.append(prepared)
        return prepared

    def match(self, pairs: Sequence[tuple[Side, Side]]) -> list[Matches]:
        found = self._matcher.match(pairs)
        return [
            Matches.none() if any(s is b for s in pair for b in self._blind) else each
            for pair, each in zip(pairs, found, strict=True)
        ]


def test_an_image_that_nothing_connects_is_found_where_it_is_foreseen(
    images: ImageSet,
    network: TruePointmaps,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    demo_scene: Path,
) -> None:
    """Though the network's cameras are turned by 3 degrees, its pose is exact."""
    out, name = tmp_path / "out", images.names[LOST]
    build = stages.build_matcher

    def blind(config: NearestConfig, **where: Any) -> Blind:
        with FeatureStore(out / "work" / "features.h5") as features:
            return Blind(build(config, **where), features.get(name).xy)

    monkeypatch.setattr(stages, "build_matcher", blind)
    without = load_recipe("sift", SETTINGS)
    report = reconstruct(images.root, out, without)
    assert [image.name for image in report.images if image.model != 0] == [name]
    report = reconstruct(images.root, out, recipe)
    assert all(image.model == 0 for image in report.images)
    assert len(network.looked_at) == 2 * 3
    model = read_result(out)
    assert evaluate_model(model, read_reference(demo_scene)).auc[3] > 90
    told = read_foreseen(Workspace(out).foreseen)
    model = read_result(out)
    assert len(told) == 3
    for each in told:
        assert each.second == name
        assert each.spread < 0.1
        assert each.focal_px == pytest.approx(0.85 * 480, rel=0.05)
        assert 2 < _off_deg(model, each) < 4
    reconstruct(images.root, out, recipe)
    assert len(network.looked_at) == 2 * 3


def _off_deg(model: pycolmap.Reconstruction, each: Foreseen) -> float:
    """By how much the foreseen rotation differs from the one found."""
    views = Views.of(model)
    first, second = (views.names.index(name) for name in (each.first, each.second))
    turn = each.second_from_first[:, :3] @ views.rotations[first]
    off = Rotation.from_matrix(turn @ views.rotations[second].T)
    return float(np.degrees(off.magnitude()))


def test_without_a_network_nothing_is_foreseen(
    images: ImageSet, tmp_path: Path
) -> None:
    recipe = load_recipe("sift", SETTINGS)
    with open_run(images, tmp_path / "out", recipe) as run:
        assert not foreseen.match_foreseen(run, []).items
        assert not run.ledger.keys.applies("foresee")
