"""Photographs of a rig that a file tells: with known poses, and added to a result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest

from sfmprep.cli.commands import run
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import CameraPose
from tests.support.rigs import rig_errors, write_rig, write_rig_config
from tests.support.tables import write_table

FRAMES = 5
SETTINGS = (
    *("--recipe", "sift", "--set", "features.max_size=480"),
    *("features.max_keypoints=1500", "export.downscales=[]", "refinement=null"),
)


def poses_in(out: Path) -> dict[str, CameraPose]:
    model = pycolmap.Reconstruction(out / "work" / "models" / "0")
    return {
        image.name: CameraPose(
            rotation=image.cam_from_world().rotation.matrix(),
            centre=image.projection_center(),
        )
        for image in model.images.values()
        if image.has_pose
    }


def report_in(out: Path) -> dict[str, Any]:
    return dict(json.loads((out / "report.json").read_text("utf-8")))


def test_known_poses_and_photographs_that_join_keep_to_the_rig(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images, out = tmp_path / "images", tmp_path / "out"
    truth = write_rig(images, FRAMES)
    config = write_rig_config(tmp_path / "rig_config.json", told=False)
    last = [name for name in truth if name.endswith(f"/{FRAMES - 1}.jpg")]
    for name in last:
        (images / name).rename(tmp_path / name.replace("/", "_"))
    table = write_table(tmp_path / "poses.csv", truth)
    command = ["refine", str(images), str(table), str(out), *SETTINGS, f"rigs={config}"]
    assert run(command) == 0
    assert report_in(out)["given_poses"]
    before = poses_in(out)
    assert len(before) == 2 * FRAMES - 2
    errors = rig_errors(before, range(FRAMES - 1))
    np.testing.assert_allclose(errors, errors[:1].repeat(FRAMES - 1, 0), atol=1e-8)
    assert errors[0, 0] < 0.1 and errors[0, 1] < 0.05  # poses are 5 cm off
    for name in last:
        (tmp_path / name.replace("/", "_")).rename(images / name)
    assert run(["add", str(images), str(out)]) == 0
    assert report_in(out)["given_poses"]
    after = poses_in(out)
    assert after.keys() == truth.keys()
    for name, pose in before.items():
        np.testing.assert_allclose(after[name].centre, pose.centre, atol=1e-9)
        np.testing.assert_allclose(after[name].rotation, pose.rotation, atol=1e-9)
    errors = rig_errors(after, range(FRAMES))
    np.testing.assert_allclose(errors, errors[:1].repeat(FRAMES, 0), atol=1e-8)
    model = pycolmap.Reconstruction(out / "work" / "models" / "0")
    assert evaluate_model(model, truth).auc[3] > 95
    capsys.readouterr()
    assert run(["status", str(images), str(out)]) == 0
    assert "would run" not in capsys.readouterr().out

    assert run(["add", str(images), str(out), "--adjust"]) == 0
    assert report_in(out)["given_poses"] is None
    adjusted = poses_in(out)
    errors = rig_errors(adjusted, range(FRAMES))
    np.testing.assert_allclose(errors, errors[:1].repeat(FRAMES, 0), atol=1e-8)
    assert 0 < max(abs(adjusted[n].centre - after[n].centre).max() for n in after) < 0.1
    model = pycolmap.Reconstruction(out / "work" / "models" / "0")
    assert evaluate_model(model, truth).auc[3] > 95
