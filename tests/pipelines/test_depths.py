"""Initial points by pointmaps, on a network that knows the demo scene."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.config.load import load_recipe
from sfmprep.pipelines import depths
from sfmprep.pipelines.reconstruct import reconstruct
from sfmprep.pipelines.workspace import Workspace
from sfmprep.semidense.depths import read_depths
from tests.support.true_pointmaps import TruePointmaps

MAX_SIZE = 96


def test_points_come_where_no_feature_was(
    demo_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images, out = ImageSet.scan(demo_scene / "images"), tmp_path / "out"
    network = TruePointmaps(demo_scene)
    batches = load_batches(images, list(images.names), max_size=MAX_SIZE)
    for number, (_, batch) in enumerate(batches):
        network.know(number, batch)
    monkeypatch.setattr(depths, "build_pointmaps", lambda *_, **__: network)
    weights = tmp_path / "mast3r.safetensors"
    weights.write_bytes(b"not read")
    settings = (
        *("features.max_size=480", "features.max_keypoints=1500"),
        *("export.downscales=[2]", "export.targets=[gsplat]"),
        f"export.seed.pointmaps={{type: pointmap, weights: {weights}}}",
        f"export.seed.pointmaps.max_size={MAX_SIZE}",
        "export.seed.pointmaps.stride=2",
    )
    recipe = load_recipe("sift", settings)
    reconstruct(images.root, out, recipe)
    looked = len(network.looked_at)
    assert 0 < looked <= 8  # each image once
    told = read_depths(images, Workspace(out).depths)
    assert sorted(told) == sorted(images.names)
    model = pycolmap.Reconstruction(out / "sparse" / "0")
    lengths = np.array([p.track.length() for p in model.points3D.values()])
    assert (lengths == 1).sum() > 1000
    # the new ones lie among the mapper's
    xyz = np.array([p.xyz for p in model.points3D.values()])
    old, new = xyz[lengths > 1], xyz[lengths == 1]
    low, high = np.percentile(old, (1, 99), axis=0)
    room = 0.3 * (high - low)
    assert ((new > low - room) & (new < high + room)).all(axis=1).mean() > 0.9
    colours = np.array([p.color for p in model.points3D.values()])[lengths == 1]
    assert colours.std() > 10
    (out / "dataset.json").unlink()
    reconstruct(images.root, out, recipe)
    assert len(network.looked_at) == looked
