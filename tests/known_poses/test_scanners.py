"""Exports of apps for scanning with an iPhone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from scipy.spatial.transform import Rotation

from sfmprep.errors import ConfigError
from sfmprep.known_poses.poses import KnownPoses
from sfmprep.known_poses.read import poses_sha256, read_poses
from sfmprep.known_poses.trajectory import Trajectory

TURNS = Rotation.from_euler("xyz", [[10, 20, 30], [40, -5, 6]], degrees=True)
ROTATIONS = TURNS.as_matrix()  # camera from world, OpenCV axes
CENTRES = np.array([[1.0, 2, 3], [-4, 5, 6]])
FLIP = np.diag([1.0, -1, -1])


def error_of(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_poses(path)
    return str(caught.value).replace(str(path), "DIR")


def scanner(folder: Path, **changes: Any) -> Path:
    """Two frames of 3D Scanner App, with these changes in the first."""
    folder.mkdir(exist_ok=True)
    for k, (rotation, centre) in enumerate(zip(ROTATIONS, CENTRES, strict=True)):
        pose = np.eye(4)
        pose[:3] = np.column_stack([rotation.T @ FLIP, centre])
        content: dict[str, Any] = {
            "cameraPoseARFrame": pose.ravel().tolist(),
            "intrinsics": [1350.5, 0, 961, 0, 1349, 718.5, 0, 0, 1],
            "frame_index": 12 * k,
        }
        content |= changes if k == 0 else {}
        (folder / f"frame_000{12 * k:02}.json").write_text(json.dumps(content))
    return folder


def test_frames_of_3d_scanner_app(tmp_path: Path) -> None:
    folder = scanner(tmp_path)
    (folder / "info.json").write_text("{}")
    Image.new("RGB", (1920, 1440)).save(folder / "frame_00012.jpg")
    poses = read_poses(folder)
    assert isinstance(poses, KnownPoses) and poses.is_told
    assert poses.names == ("frame_00000", "frame_00012")
    rotations, centres = poses.cam_from_world()
    np.testing.assert_allclose(rotations, ROTATIONS, atol=1e-9)
    np.testing.assert_allclose(centres, CENTRES, atol=1e-9)
    (camera,) = poses.cameras.values()
    assert list(poses.cameras) == ["frame_00012"]
    assert (camera.width, camera.height) == (1920, 1440)
    assert camera.params.tolist() == [1350.5, 1349, 961, 718.5]
    before = poses_sha256(folder)
    scanner(tmp_path, frame_index=1)
    assert poses_sha256(folder) != before


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ([1] * 15, "it has no cameraPoseARFrame of 16 numbers."),
        ([2, 0, 0, 0] * 4, "its matrix is no rotation: R R^T is off by 4. Is there a"),
        ([None] * 16, "its rotation is not 3 x 3 finite numbers."),
    ],
)
def test_wrong_frames_of_3d_scanner_app(
    value: object, message: str, tmp_path: Path
) -> None:
    folder = scanner(tmp_path, cameraPoseARFrame=value)
    assert error_of(folder).startswith(f"poses DIR/frame_00000.json: {message}")


def stray(folder: Path, rows: list[str]) -> Path:
    header = "timestamp, frame, x, y, z, qx, qy, qz, qw"
    (folder / "odometry.csv").write_text("\n".join([header, *rows]))
    return folder


def rows_of_stray() -> list[str]:
    quaternions = TURNS.inv().as_quat()
    return [
        ", ".join(map(str, (1000.5 + k / 60, f"{k:06}", *centre, *quaternion)))
        for k, (centre, quaternion) in enumerate(zip(CENTRES, quaternions, strict=True))
    ]


def test_odometry_of_stray_scanner(tmp_path: Path) -> None:
    found = read_poses(stray(tmp_path, rows_of_stray()))
    assert isinstance(found, Trajectory) and not found.is_told
    np.testing.assert_allclose(found.times, [0, 1 / 60], atol=1e-9)
    poses = found.at(["a", "b"], found.times, 0.0)
    rotations, centres = poses.cam_from_world()
    np.testing.assert_allclose(rotations, ROTATIONS, atol=1e-9)
    np.testing.assert_allclose(centres, CENTRES, atol=1e-9)
    assert len(poses_sha256(tmp_path)) == 64


def test_wrong_odometry_of_stray_scanner(tmp_path: Path) -> None:
    first, second = rows_of_stray()
    where = "poses DIR/odometry.csv"
    assert error_of(stray(tmp_path, [first])) == (
        f"{where}: 1 poses, but a trajectory needs two or more."
    )
    assert error_of(stray(tmp_path, [first, first])) == (
        f"{where}, line 3: its time is not after the one before."
    )
    assert error_of(stray(tmp_path, [first, second.replace("5", "x")])) == (
        f"{where}, line 3: it is not a number in each column."
    )
    (tmp_path / "odometry.csv").write_text("time,x\n1,2\n")
    assert error_of(tmp_path) == (
        f"{where}: the first line has no column timestamp, y, z, qx, qy, qz, qw."
        " Expected the odometry.csv of Stray Scanner: timestamp, frame, x, y, z, qx,"
        " qy, qz, qw."
    )
