"""A closer look at images that no model holds."""

from __future__ import annotations

import logging
import shutil
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfmprep.config import Recipe
from sfmprep.config.load import load_recipe
from sfmprep.pairing.pairs import pairs_from_file
from sfmprep.pipelines.reconstruct import reconstruct
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
def recipe() -> Recipe:
    return load_recipe("compact", [*SETTINGS, CLOSER])


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


def test_an_image_on_its_side_gets_a_pose(
    recipe: Recipe, photos: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    out = tmp_path / "out"
    lost = sorted(path.name for path in photos.iterdir())[3]
    report = reconstruct(photos, out, recipe)
    assert all(image.model == 0 for image in report.images)
    assert f"{lost} lies on its side or its head: it is turned" in caplog.messages
    place = Workspace(out)
    tried = pairs_from_file(place.closer_pairs, [i.name for i in report.images])
    assert len([pair for pair in tried if lost in pair]) == 5
    rung = report.rungs[-1]
    assert rung.name == "closer look"
    assert rung.num_pairs == len(tried)
    assert rung.num_verified > rung.num_verified_before
    assert rung.seconds == report.seconds["closer look"]
    with FeatureStore(place.features_closer) as found:
        # a quarter turn clockwise undoes one the other way round
        assert found.get(lost).orientation == 6
        others = set(found.names()) - {lost}
        assert {found.get(name).orientation for name in others} == {1}
    model = pycolmap.Reconstruction(place.models / "0")
    turns = {
        image.name: image.cam_from_world().rotation.matrix()
        for image in model.images.values()
    }
    names = sorted(turns)
    apart = turns[lost] @ turns[names[2]].T
    assert np.degrees(np.arctan2(apart[1, 0], apart[0, 0])) == pytest.approx(
        -90, abs=10
    )
