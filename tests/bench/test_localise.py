"""Photographs that are left out: what a database forgets, COLMAP's pose, errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from sfmprep.evaluation.reference import CameraPose, registered_poses
from tests.bench.localise import errors, forget, left_out, page, register


def test_an_image_is_forgotten_and_comes_back_where_it_was(tmp_path: Path) -> None:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig = 1, 1
    options.num_frames_per_rig, options.num_points3D = 5, 60
    path = tmp_path / "database.db"
    with pycolmap.Database.open(path) as database:
        model = pycolmap.synthesize_dataset(options, database)
        before = database.num_verified_image_pairs()
    truth = registered_poses(model)
    name = sorted(truth)[2]
    image = model.find_image_with_name(name)
    model.deregister_frame(image.frame_id)
    assert name not in registered_poses(model)
    found = register(path, model, name)
    assert found is not None
    np.testing.assert_allclose(found.rotation, truth[name].rotation, atol=1e-3)
    np.testing.assert_allclose(found.centre, truth[name].centre, atol=1e-2)
    forget(path, name)
    with pycolmap.Database.open(path) as database:
        assert database.num_verified_image_pairs() == before - 4
        assert not database.exists_keypoints(image.image_id)
        assert not database.exists_descriptors(image.image_id)
        assert database.num_keypoints() > 0
    model.deregister_frame(image.frame_id)
    assert register(path, model, name) is None


def turned(pose: CameraPose, degrees: float) -> CameraPose:
    """About the optical axis."""
    turn = Rotation.from_euler("z", degrees, degrees=True).as_matrix()
    return CameraPose(rotation=turn @ pose.rotation, centre=pose.centre)


def test_errors_are_those_of_the_world_of_the_others() -> None:
    rng = np.random.default_rng(0)
    centres = np.array([[3.0, 0, 0], [-3, 0, 0], [0, 3, 0], [0, -3, 0], [0, 0, 0]])
    truth = {
        f"{row}.jpg": CameraPose(rotation=rotation, centre=centre)
        for row, (rotation, centre) in enumerate(
            zip(Rotation.random(5, rng=rng).as_matrix(), centres, strict=True)
        )
    }
    world = Rotation.random(rng=rng).as_matrix()
    moved = {
        name: CameraPose(
            rotation=pose.rotation @ world.T, centre=2 * world @ pose.centre + 7
        )
        for name, pose in truth.items()
    }
    off = turned(moved.pop("4.jpg"), 2)
    off = CameraPose(rotation=off.rotation, centre=off.centre + [0.6, 0, 0])
    found = errors(moved, {"4.jpg": off}, truth)
    assert found.pop("4.jpg") == pytest.approx((10, 2))
    for each in found.values():
        assert each == pytest.approx((0, 0), abs=1e-4)
    with pytest.raises(ValueError, match="1.jpg is in the model that it was to be"):
        errors(moved, {"1.jpg": off}, truth)
    with pytest.raises(ValueError, match="1 image of the model has a true"):
        errors({"0.jpg": moved["0.jpg"]}, {}, truth)


def test_each_of_few_and_every_fifth_of_many_is_left_out() -> None:
    names = [f"{row:02d}" for row in range(13)]
    assert left_out(names[:12]) == names[:12]
    assert left_out(names) == ["00", "05", "10"]


def row(name: str, tool: str, **changes: Any) -> dict[str, Any]:
    return {
        "scene": "fox",
        "tool": tool,
        "name": name,
        "max_size": 720,
        "verdict": "found",
        "others": [0.1, 0.2],
        "off": [0.5, 0.25],
        "seconds": 1.5,
        "cpu_seconds": 2.5,
        "commit": "0123456789abcdef",
        "date": "2026-11-27T12:00:00Z",
        "versions": {"pycolmap": "4.2.1"},
        "device": "AMD EPYC",
        "cores": 2,
        "load_average": 1.5,
        **changes,
    }


def test_what_is_not_found_is_infinite_in_the_median() -> None:
    lost = {"verdict": "unknown", "off": None}
    rows = [
        # an earlier line of the same
        row("0", "splat", off=[9.0, 9.0], commit="fedcba", load_average=9.0),
        row("0", "splat"),
        row("1", "splat", off=[1.5, 0.75]),
        row("2", "splat", verdict="doubtful", off=[4.0, 3.0]),
        row("0", "COLMAP"),
        row("1", "COLMAP", **lost),
    ]
    text = page(rows, 720)
    assert (
        "| fox | `splat` | 2 of 3, 1 doubtful | 1.50 / 4.00 | 0.75 / 3.00"
        " | 0.10 %, 0.20° | 1.5 | 2.5 |\n"
        "| fox | COLMAP | 1 of 2 | unknown / 0.50 | unknown / 0.25"
        " | 0.10 %, 0.20° | 1.5 | 2.5 |\n"
    ) in text
    assert (
        "Commits 0123456789, 2026-11-27 to 2026-11-27,\nAMD EPYC, pycolmap 4.2.1; each"
        " once.\n"
    ) in text
    assert "a load average of\n2 to 2;" in text
    assert "The reference of fox is an estimate by COLMAP." in text
    assert "tum-fr2" not in text and "fountain" not in text
    only_lost = page([row("0", "COLMAP", **lost)], 720)
    assert "| COLMAP | 0 of 1 | unknown | unknown |" in only_lost
