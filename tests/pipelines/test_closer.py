"""A closer look at images that no model holds."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import CompactConfig, NearestConfig
from sfmprep.config.load import load_recipe
from sfmprep.pairing.pairs import pairs_from_file
from sfmprep.pipelines import artefacts, stages, turns
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.pipelines.run import open_run
from sfmprep.pipelines.workspace import Workspace
from sfmprep.stores.tables import FeatureStore

CLOSER = (
    "closer={features: {type: compact, max_size: 480, max_keypoints: 1500}, matcher:"
    " {type: nearest, ratio: 0.9}, per_image: 5}"
)
SETTINGS = (
    *("features.max_size=480", "features.max_keypoints=800", "refinement=null"),
    *("beside=null", "stronger=null", "export.downscales=[2]"),
)


@pytest.fixture
def photos(demo_scene: Path, tmp_path: Path) -> Path:
    """Eight views in a row, the fourth on its side, which no EXIF tells."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for path in sorted((demo_scene / "images").iterdir())[:8]:
        shutil.copy(path, folder)
    path = sorted(folder.iterdir())[3]
    with Image.open(path) as photo:
        turned = photo.transpose(Image.Transpose.ROTATE_90)
    turned.save(path)
    return folder


def test_an_image_on_its_side_gets_a_pose_and_nothing_is_done_twice(
    photos: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    out, place = tmp_path / "out", Workspace(tmp_path / "out")
    lost = sorted(path.name for path in photos.iterdir())[3]
    # without time for it the image stays out
    report = reconstruct(
        photos, out, load_recipe("compact", [*SETTINGS, CLOSER, "budget_minutes=0"])
    )
    assert [image.name for image in report.images if image.model != 0] == [lost]
    assert report.rungs[-1].name == "closer look"
    assert report.rungs[-1].num_left_out >= 5
    # with time, mapping goes on from there
    recipe = load_recipe("compact", [*SETTINGS, CLOSER])
    mapped = place.mapped.read_bytes()
    report = reconstruct(photos, out, recipe)
    assert place.mapped.read_bytes() == mapped
    assert all(image.model == 0 for image in report.images)
    assert f"{lost} lies on its side or its head: it is turned" in caplog.messages
    assert "closer look: 1 of 1 images got a pose" in caplog.messages
    tried = pairs_from_file(place.closer_pairs, [i.name for i in report.images])
    assert len([pair for pair in tried if lost in pair]) == 5
    rung = report.rungs[-1]
    assert (rung.name, rung.num_pairs) == ("closer look", len(tried))
    assert rung.num_left_out == 0
    assert rung.num_verified > rung.num_verified_before
    assert rung.seconds == report.seconds["closer look"]
    with FeatureStore(place.features_closer) as found:
        # a quarter turn clockwise undoes one the other way round
        assert found.get(lost).orientation == 6
        others = set(found.names()) - {lost}
        assert {found.get(name).orientation for name in others} == {1}
    model = pycolmap.Reconstruction(place.models / "0")
    rotations = {
        image.name: image.cam_from_world().rotation.matrix()
        for image in model.images.values()
    }
    apart = rotations[lost] @ rotations[sorted(rotations)[2]].T
    turn_deg = np.degrees(np.arctan2(apart[1, 0], apart[0, 0]))
    assert turn_deg == pytest.approx(-90, abs=10)
    # the keypoints of the result are of both kinds
    with open_run(ImageSet.scan(photos), out, recipe) as run:
        first, second = run.workspace.features, run.workspace.features_closer
        with (
            artefacts.open_keypoints(run) as joined,
            FeatureStore(first) as own,
            FeatureStore(second) as closer,
        ):
            for name in closer.names():
                count = own.num_keypoints(name) + closer.num_keypoints(name)
                assert joined.num_keypoints(name) == count
        features, matches = artefacts.open_result(run)
        with features, matches:
            assert set(matches.pairs()) >= set(tried)
    monkeypatch.setattr(stages, "build_extractor", None)
    monkeypatch.setattr(turns, "build_extractor", None)
    again = reconstruct(photos, out, recipe).rungs[-1]
    assert (again.num_pairs, again.num_verified) == (rung.num_pairs, rung.num_verified)


def test_where_no_image_is_lost_nobody_looks_closer(
    demo_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(turns, "build_extractor", None)
    out = tmp_path / "out"
    recipe = load_recipe("compact", [*SETTINGS, CLOSER])
    report = reconstruct(demo_scene / "images", out, recipe)
    assert [rung.name for rung in report.rungs] == ["nearest"]
    place = Workspace(out)
    assert place.closer_pairs.read_text() == ""
    assert not place.closer_database.exists()
    assert place.mapped_closer.read_bytes() == place.mapped_on.read_bytes()


def test_a_rung_without_weights_takes_what_it_says_otherwise(
    demo_scene: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    images = ImageSet.scan(demo_scene / "images")
    nearest = "{type: nearest}"
    look = f"features: {{type: disk}}, matcher: {nearest}"
    other = f"otherwise: [{{features: {{type: compact}}, matcher: {nearest}}}]"
    glue = "stronger={matcher: {type: lightglue, model: sift-lightglue}, otherwise: "
    settings = [
        *(f"closer={{{look}, {other}}}", f"beside={{{look}}}"),
        f"{glue}[{{type: nearest, ratio: 0.9}}]}}",
    ]
    recipe = load_recipe("sift", settings)
    with open_run(images, tmp_path / "out", recipe) as run:
        assert run.recipe.closer is not None
        assert run.recipe.closer.features == CompactConfig()
        assert run.recipe.closer.otherwise == ()
        assert run.recipe.stronger is not None
        assert run.recipe.stronger.matcher == NearestConfig(ratio=0.9)
        assert run.recipe.beside is None
    barred = "not here and SFMPREP_OFFLINE is set"
    for message in (
        f"closer: compact, because the weights of disk are {barred}",
        f"stronger: nearest, because the weights of sift-lightglue are {barred}",
        f"images that stay badly held get no disk: its weights are {barred}",
    ):
        assert message in caplog.messages
    with_neither = recipe.closer.model_copy(update={"otherwise": (recipe.closer,) * 2})
    recipe = recipe.model_copy(update={"closer": with_neither})
    with open_run(images, tmp_path / "other", recipe) as run:
        assert run.recipe.closer is None
    assert (
        "images that no model holds are not looked at again by disk or disk or disk:"
        f" their weights are {barred}" in caplog.messages
    )
