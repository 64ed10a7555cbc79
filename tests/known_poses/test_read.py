"""Files of known poses: what they hold, and what is said of those that are wrong."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from sfmprep.errors import ConfigError
from sfmprep.known_poses.names import of_images
from sfmprep.known_poses.poses import Convention, KnownPoses
from sfmprep.known_poses.read import poses_sha256, read_poses
from sfmprep.known_poses.trajectory import Trajectory, image_times
from sfmprep.types import Float64

TURNS = Rotation.from_euler(
    "xyz", [[10, 20, 30], [40, -5, 6], [0, 90, 0]], degrees=True
)
ROTATIONS: Float64 = TURNS.as_matrix()  # camera from world, OpenCV axes
CENTRES = np.array([[1.0, 2, 3], [-4, 5, 6], [7, 8, -9]])
NAMES = ("a.jpg", "b/c.jpg", "ü.jpg")
HEADER = "name,x,y,z,qw,qx,qy,qz"
EXPECTED = (
    "expected a COLMAP model (a folder with images.bin or images.txt), a"
    " transforms.json, a table with the header name,x,y,z,qw,qx,qy,qz (.csv), a"
    " trajectory of TUM (lines of time, tx ty tz, qx qy qz qw), or an export of"
    " Polycam, 3D Scanner App or Stray Scanner (its folder), Record3D (.json),"
    " Metashape (.xml) or RealityCapture (.csv)"
)


def error_of(path: Path, **options: Any) -> str:
    with pytest.raises(ConfigError) as caught:
        read_poses(path, **options)
    return str(caught.value).replace(str(path.parent), "DIR")


def read(path: Path, **options: Any) -> KnownPoses:
    found = read_poses(path, **options)
    assert isinstance(found, KnownPoses)
    return found


def assert_true(poses: KnownPoses, names: tuple[str, ...] = NAMES) -> None:
    rotations, centres = poses.cam_from_world()
    assert poses.names == names
    np.testing.assert_allclose(rotations, ROTATIONS, atol=1e-9)
    np.testing.assert_allclose(centres, CENTRES, atol=1e-9)


def matrix(row: int, *, flip: bool = True) -> list[list[float]]:
    """World from camera, OpenGL axes."""
    pose = np.eye(4)
    pose[:3, :3] = ROTATIONS[row].T @ np.diag([1, -1, -1] if flip else [1, 1, 1])
    pose[:3, 3] = CENTRES[row]
    return pose.tolist()


def transforms(path: Path, **changes: Any) -> Path:
    frames = [
        {"file_path": f"./images/{name}", "transform_matrix": matrix(row)}
        for row, name in enumerate(NAMES)
    ]
    path.write_text(json.dumps({"frames": frames, **changes}))
    return path


def table(path: Path, *rows: str, header: str = HEADER) -> Path:
    path.write_text("\n".join((header, *rows)), "utf-8")
    return path


def model(folder: Path) -> pycolmap.Reconstruction:
    found = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_name(1, "OPENCV", 700, 640, 480)
    found.add_camera_with_trivial_rig(camera)
    for row, name in enumerate(NAMES):
        shift = -ROTATIONS[row] @ CENTRES[row]
        pose = pycolmap.Rigid3d(pycolmap.Rotation3d(ROTATIONS[row]), shift)
        image = pycolmap.Image(name=name, camera_id=1, image_id=row + 1)
        found.add_image_with_trivial_frame(image, pose)
    folder.mkdir(parents=True, exist_ok=True)
    return found


# ---------------------------------------------------------------- what they hold
@pytest.mark.parametrize("kind", ["binary", "text"])
@pytest.mark.parametrize("has_points", [True, False])
def test_colmap_model(tmp_path: Path, kind: str, has_points: bool) -> None:
    folder = tmp_path / "sparse" / "0"
    getattr(model(folder), f"write_{kind}")(folder)
    if not has_points:
        for file in folder.glob("points3D.*"):
            file.unlink()
    found = read(tmp_path)
    assert_true(found)
    assert found.is_told
    assert found.cameras["a.jpg"].mean_focal_length() == 700


def test_transforms_json(tmp_path: Path) -> None:
    path = transforms(tmp_path / "transforms.json", fl_x=500, w=640, h=480, k1=0.1)
    found = read(tmp_path)
    names = tuple(f"images/{name}" for name in NAMES)
    assert_true(found, names)
    camera = found.cameras[names[0]]
    assert camera.model.name == "OPENCV"
    assert camera.params.tolist() == [500, 500, 320, 240, 0.1, 0, 0, 0]
    assert poses_sha256(path) == poses_sha256(tmp_path)


def test_transforms_json_of_instant_ngp_and_of_a_fisheye(tmp_path: Path) -> None:
    whole = {"camera_angle_x": np.pi / 2, "w": 640, "h": 480}
    found = read(transforms(tmp_path / "a.json", **whole))
    assert found.cameras["images/a.jpg"].mean_focal_length() == pytest.approx(320)
    fisheye = {**whole, "camera_model": "OPENCV_FISHEYE", "k4": 0.01}
    found = read(transforms(tmp_path / "b.json", **fisheye))
    assert found.cameras["images/a.jpg"].params.tolist()[-1] == 0.01
    assert not read(transforms(tmp_path / "c.json")).cameras


def test_table_in_any_order_of_columns(tmp_path: Path) -> None:
    rows = []
    for row, name in enumerate(NAMES):
        x, y, z, w = TURNS[row].inv().as_quat()
        a, b, c = CENTRES[row]
        rows.append(f'{w},{x},{y},{z},{a},{b},{c},"{name}"')
    path = table(tmp_path / "poses.csv", *rows, header="qw,qx,qy,qz,tx,ty,tz,Name")
    found = read(path)
    assert_true(found)
    assert not found.is_told
    other = read(path, axes="opengl", direction="cam_from_world")
    assert other.is_told
    assert other.convention == Convention("opengl", "cam_from_world")


def test_trajectory_is_ordered_and_interpolated(tmp_path: Path) -> None:
    half = Rotation.from_euler("z", [[0], [90]], degrees=True).as_quat()
    lines = [" ".join(map(str, (10 + k, 2 * k, 0, 0, *half[k]))) for k in (1, 0)]
    path = tmp_path / "trajectory.txt"
    path.write_text("# time x y z qx qy qz qw\n" + "\n".join(lines))
    found = read_poses(path)
    assert isinstance(found, Trajectory)
    assert found.times.tolist() == [10, 11]
    poses = found.at(["a", "b", "c"], np.array([10.0, 10.4, 99]), 0.1)
    assert poses.names == ("a", "b")
    rotations, centres = poses.cam_from_world()
    np.testing.assert_allclose(centres, [[0.2, 0, 0], [1, 0, 0]], atol=1e-9)
    turned = Rotation.from_matrix(rotations).inv().as_euler("zyx", degrees=True)
    np.testing.assert_allclose(turned[:, 0], [9, 45], atol=1e-6)


def test_times_of_images(tmp_path: Path) -> None:
    found = trajectory(tmp_path, 1000.0, 2000.0)
    assert image_times(["x/1500.25.png"], found).tolist() == [1500.25]
    assert image_times(["1500250000000.png"], found).tolist() == [1500.25]
    assert image_times(["1500250.png"], found).tolist() == [1500.25]
    assert image_times(["walk/00h16m40s500.jpg"], found).tolist() == [1000.5]
    assert image_times(["100.png"], found, 1000.0).tolist() == [100]


def trajectory(folder: Path, *times: float) -> Trajectory:
    path = folder / "trajectory.txt"
    path.write_text("\n".join(f"{time} {time} 0 0 0 0 0 1" for time in times))
    found = read_poses(path)
    assert isinstance(found, Trajectory)
    return found


# ------------------------------------------------------------------------ what is wrong
def test_nothing_that_could_be_read(tmp_path: Path) -> None:
    assert (
        error_of(tmp_path / "no.csv")
        == "poses DIR/no.csv is not there. Correct the path."
    )
    (tmp_path / "x").mkdir()
    assert (
        error_of(tmp_path / "x")
        == f"poses DIR/x is a folder without poses: {EXPECTED}."
    )
    (tmp_path / "y.json").write_text("[]")
    assert error_of(tmp_path / "y.json") == (
        "poses DIR/y.json cannot be read (TypeError: list indices must be integers or"
        ' slices, not str): expected the transforms.json of nerfstudio, {"frames":'
        ' [{"file_path": ..., "transform_matrix": 4x4}]}.'
    )
    (tmp_path / "z.txt").write_text("a b c\n")
    assert error_of(tmp_path / "z.txt") == (
        "poses DIR/z.txt, line 1: 3 columns, but a trajectory of TUM has 8: time, tx ty"
        f" tz, qx qy qz qw. If it is something else: {EXPECTED}."
    )


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("a.jpg,1,nan,3,1,0,0,0", "its position is not three finite numbers."),
        ("a.jpg,1,2,inf,1,0,0,0", "its position is not three finite numbers."),
        ("a.jpg,1,2,3,0,0,0,0", "its quaternion is zero, which is no rotation."),
        ("a.jpg,1,2,3,nan,0,0,0", "its quaternion is not four finite numbers."),
        (
            "a.jpg,1,2,3,4,3,0,0",
            "its quaternion has the length 5, expected 1; are the columns in another"
            " order?",
        ),
        ("a.jpg,1,2,x,1,0,0,0", "'x' is not a number."),
    ],
)
def test_wrong_row_of_a_table(tmp_path: Path, row: str, message: str) -> None:
    path = table(tmp_path / "poses.csv", row)
    assert error_of(path) == f"poses DIR/poses.csv, line 2 (a.jpg): {message}"


def test_wrong_tables(tmp_path: Path) -> None:
    path = tmp_path / "poses.csv"
    good = "a.jpg,1,2,3,1,0,0,0"
    assert error_of(table(path, good, good)) == (
        "poses DIR/poses.csv: 'a.jpg' has 2 poses. Give one pose an image."
    )
    assert error_of(table(path, good, header="name,x,y,z,qx,qy,qz,rot")) == (
        "poses DIR/poses.csv: the first line has no column qw. Expected the header"
        " name,x,y,z,qw,qx,qy,qz; the columns may be in another order."
    )
    assert error_of(table(path, "a.jpg,1,2")) == (
        "poses DIR/poses.csv, line 2: 3 columns, expected 8."
    )
    assert error_of(table(path)) == (
        f"poses DIR/poses.csv: no line after the header. {EXPECTED}."
    )


def test_wrong_matrices(tmp_path: Path) -> None:
    path = tmp_path / "t.json"

    def message(change: Float64) -> str:
        frame = {"file_path": "a.jpg", "transform_matrix": change.tolist()}
        path.write_text(json.dumps({"frames": [frame]}))
        return error_of(path).removeprefix("poses DIR/t.json, frame 0 (a.jpg): ")

    assert message(np.diag([2.0, 2, 2, 1])) == (
        "its matrix is no rotation: R R^T is off by 3. Is there a scale in it?"
    )
    assert message(np.diag([1.0, 1, -1, 1])) == (
        "its matrix mirrors (its determinant is -1): the world or the camera is"
        " left-handed. Negate one axis of it."
    )
    broken = np.eye(4)
    broken[0, 3] = np.nan
    assert message(broken) == "its position is not three finite numbers."
    broken[0, 0] = np.nan
    assert message(broken) == "its rotation is not 3 x 3 finite numbers."
    assert message(np.eye(3)) == "its transform_matrix is not 4 x 4."


def test_wrong_model(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    model(folder).write_text(folder)
    text = (folder / "images.txt").read_text().splitlines()
    first = next(k for k, line in enumerate(text) if not line.startswith("#"))
    text[first] = "1 0 0 0 0 1 2 3 1 a.jpg"
    (folder / "images.txt").write_text("\n".join(text))
    assert error_of(folder) == (
        f"poses DIR/model/images.txt, line {first + 1}, image 'a.jpg': its quaternion"
        " is zero, which is no rotation."
    )
    (folder / "cameras.txt").unlink()
    assert error_of(folder) == (
        "poses DIR/model holds images.txt without cameras.txt. Copy both."
    )


def test_wrong_trajectories(tmp_path: Path) -> None:
    path = tmp_path / "t.txt"
    path.write_text("1 0 0 0 0 0 0 1\n1 0 0 0 0 0 0 1\n")
    assert error_of(path) == (
        "poses DIR/t.txt: the time 1.000000 comes twice. Give one pose a time."
    )
    path.write_text("1 0 0 0 0 0 0 1\n")
    assert error_of(path) == (
        "poses DIR/t.txt: 1 poses, but a trajectory needs two or more."
    )
    path.write_text("1 0 0 0 0 0 0 1\n2 0 0 0 0 0 0 0\n")
    assert error_of(path) == (
        "poses DIR/t.txt, line 2: its quaternion is zero, which is no rotation."
    )


def test_trajectory_of_another_time(tmp_path: Path) -> None:
    found = trajectory(tmp_path, 1000.0, 2000.0)
    with pytest.raises(ConfigError) as caught:
        image_times(["5.0.png", "7.5.png"], found)
    assert str(caught.value).replace(str(tmp_path), "DIR") == (
        "poses DIR/trajectory.txt are from 1000.000 to 2000.000 s, but the images from"
        " 5.000 to 7.500 s: no time is common to both. Give a trajectory in the time"
        " base of the images, or --time-offset, which is added to the times of the"
        " images."
    )
    with pytest.raises(ConfigError) as caught:
        image_times(["5.0.png", "b.png"], found)
    assert str(caught.value).replace(str(tmp_path), "DIR") == (
        "poses DIR/trajectory.txt are by time, but the name of 'b' is no time. Expected"
        " names such as 1311868169.163498.jpg, or a table with the header"
        " name,x,y,z,qw,qx,qy,qz (.csv)."
    )


# ------------------------------------------------------------------------------- names
def named(*names: str) -> KnownPoses:
    return KnownPoses(
        names=names,
        rotations=np.tile(np.eye(3), (len(names), 1, 1)),
        vectors=np.arange(3.0 * len(names)).reshape(-1, 3),
        convention=Convention("opencv", "world_from_cam"),
        is_told=True,
        source="a table",
    )


def test_names_are_found_by_their_end(caplog: pytest.LogCaptureFixture) -> None:
    poses = named("images/c.png", "x/a", "b.jpg", "gone.jpg")
    found = of_images(poses, ["a.jpg", "b.jpg", "c.jpg", "d.jpg"], "f")
    assert found.names == ("a.jpg", "b.jpg", "c.jpg")
    assert found.vectors[:, 0].tolist() == [3, 6, 0]
    assert [r.getMessage() for r in caplog.records if r.levelno == logging.WARNING] == [
        "1 of 4 poses are of no image here, such as gone.jpg",
        "1 of 4 images have no given pose, such as d.jpg: they get one by what they"
        " show",
    ]


def test_ambiguous_ends_are_no_names() -> None:
    found = of_images(named("x/a.jpg", "y/a.jpg", "b.jpg"), ["a.jpg", "b.jpg"], "f")
    assert found.names == ("b.jpg",)


def test_poses_of_other_names() -> None:
    with pytest.raises(ConfigError) as caught:
        of_images(named("1.jpg", "2.jpg", "3.jpg", "4.jpg"), ["a.jpg"], "poses.csv")
    assert str(caught.value) == (
        "poses poses.csv: none of them is of an image here: they are of '1.jpg',"
        " '2.jpg', '3.jpg' and 1 more, the images are 'a.jpg'. Give the poses of these"
        " images, with the same file names."
    )
