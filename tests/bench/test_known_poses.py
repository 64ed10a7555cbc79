"""Poses that the bench of known poses gives."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sfmprep.evaluation.reference import read_reference
from sfmprep.known_poses.poses import KnownPoses
from sfmprep.known_poses.read import read_poses
from tests.bench.known_poses import Off, write_transforms
from tests.bench.scoreboard.scenes import Prepared, shared
from tests.support.rigs import rig_poses


@pytest.mark.parametrize("off", [Off(), Off(5, 0.03, 1.2)], ids=str)
def test_poses_are_off_by_what_is_told(off: Off, tmp_path: Path) -> None:
    entries: dict[str, Any] = {
        name: {
            "R": camera.rotation.tolist(),
            "t": camera.translation.tolist(),
            "K": camera.intrinsics.tolist(),
            "dist": [0.1, 0, 0, 0],
            "width": 480,
            "height": 360,
        }
        for name, camera in rig_poses(3, (480, 360)).items()
    }
    (tmp_path / "reference.json").write_text(json.dumps({"images": entries}))
    names = tuple(entries)
    scene = Prepared(shared("fox"), tmp_path / "images", names, entries)
    found = read_poses(write_transforms(scene, tmp_path / "given" / "t.json", off))
    assert isinstance(found, KnownPoses)
    truth = read_reference(tmp_path / "reference.json")
    rotations, centres = found.cam_from_world()
    middle = np.mean([pose.centre for pose in truth.values()], axis=0)
    radius = max(np.linalg.norm(pose.centre - middle) for pose in truth.values())
    for row, name in enumerate(found.names):
        pose = truth[name.removeprefix("images/")]
        turn = rotations[row] @ pose.rotation.T
        degrees = np.degrees(np.arccos(np.clip((np.trace(turn) - 1) / 2, -1, 1)))
        assert degrees == pytest.approx(off.degrees, abs=1e-5)
        moved = np.linalg.norm(centres[row] - pose.centre)
        assert moved == pytest.approx(off.share * radius, abs=1e-9)
        camera = found.cameras[name]
        assert camera.mean_focal_length() == pytest.approx(408 * off.focal)
        assert camera.params[4] == 0.1
