"""Exports of phones and programs: what they hold, and what is said of wrong ones."""

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
from sfmprep.known_poses.poses import KnownPoses
from sfmprep.known_poses.read import poses_sha256, read_poses
from sfmprep.types import Float64

TURNS = Rotation.from_euler(
    "xyz", [[10, 20, 30], [40, -5, 6], [0, 90, 0]], degrees=True
)
ROTATIONS: Float64 = TURNS.as_matrix()  # camera from world, OpenCV axes
CENTRES = np.array([[1.0, 2, 3], [-4, 5, 6], [7, 8, -9]])
FLIP = np.diag([1.0, -1, -1])


def read(path: Path) -> KnownPoses:
    found = read_poses(path)
    assert isinstance(found, KnownPoses)
    assert found.is_told
    return found


def error_of(path: Path) -> str:
    with pytest.raises(ConfigError) as caught:
        read_poses(path)
    return str(caught.value).replace(str(path.parent), "DIR")


def assert_true(poses: KnownPoses, names: tuple[str, ...]) -> None:
    rotations, centres = poses.cam_from_world()
    assert poses.names == names
    np.testing.assert_allclose(rotations, ROTATIONS, atol=1e-6)
    np.testing.assert_allclose(centres, CENTRES, atol=1e-6)


# --------------------------------------------------------------------------- Polycam
def polycam(folder: Path, **changes: Any) -> Path:
    """A folder of cameras of Polycam, with these changes in the first."""
    folder.mkdir(parents=True)
    for k, (rotation, centre) in enumerate(zip(ROTATIONS, CENTRES, strict=True)):
        pose = np.column_stack([rotation.T @ FLIP, centre])
        content: dict[str, Any] = {
            f"t_{r}{c}": pose[r, c] for r in range(3) for c in range(4)
        }
        content |= {"fx": 700.5, "fy": 701, "cx": 512, "cy": 380.5}
        content |= {"width": 1024, "height": 768, "blur_score": 9, "timestamp": k}
        content |= changes if k == 0 else {}
        (folder / f"1700{k}.json").write_text(json.dumps(content))
    return folder


def test_polycam(tmp_path: Path) -> None:
    polycam(tmp_path / "keyframes" / "cameras", t_03=99.0)
    walked = poses_sha256(tmp_path)
    polycam(tmp_path / "keyframes" / "corrected_cameras")
    for path in (tmp_path, tmp_path / "keyframes"):
        poses = read(path)
        assert_true(poses, ("17000", "17001", "17002"))
    assert poses.cameras["17001"].params.tolist() == [700.5, 701, 512, 380.5]
    assert poses.source == "an export of Polycam"
    assert poses_sha256(tmp_path) != walked
    found = of_images(poses, ["17001.jpg", "17002.jpg"], "x")
    assert found.names == ("17001.jpg", "17002.jpg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"t_12": "x"}, "it has no t_00 to t_23 of numbers."),
        ({"t_12": None}, "its rotation is not 3 x 3 finite numbers."),
        ({"t_03": float("nan")}, "its position is not three finite numbers."),
        (
            {"t_00": 5.0},
            "its matrix is no rotation: R R^T is off by",
        ),
    ],
)
def test_wrong_poses_of_polycam(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    polycam(tmp_path / "cameras", **changes)
    with pytest.raises(ConfigError) as caught:
        read_poses(tmp_path)
    file = tmp_path / "cameras" / "17000.json"
    assert str(caught.value).startswith(f"poses {file}: {message}")


def test_camera_of_polycam_that_cannot_be_is_left_out(tmp_path: Path) -> None:
    polycam(tmp_path / "cameras", fx=-3)
    assert sorted(read(tmp_path).cameras) == ["17001", "17002"]
    (tmp_path / "cameras" / "17002.json").write_text("[1")
    with pytest.raises(ConfigError) as caught:
        read_poses(tmp_path)
    assert "17002.json cannot be read (JSONDecodeError: " in str(caught.value)
    assert str(caught.value).endswith(". Export it again.")


# -------------------------------------------------------------------------- Record3D
def record3d(path: Path, **changes: Any) -> Path:
    turns = Rotation.from_matrix(np.swapaxes(ROTATIONS, 1, 2) @ FLIP).as_quat()
    content: dict[str, Any] = {
        "poses": np.column_stack([turns, CENTRES]).tolist(),
        "K": [700.0, 0, 0, 0, 701.0, 0, 360.0, 480.0, 1],
        "w": 720,
        "h": 960,
    }
    path.write_text(json.dumps(content | changes))
    return path


@pytest.mark.parametrize("name", ["metadata.json", "metadata"])
def test_record3d(tmp_path: Path, name: str) -> None:
    poses = read(record3d(tmp_path / name))
    assert_true(poses, ("0", "1", "2"))
    assert poses.cameras["2"].params.tolist() == [700, 701, 360, 480]
    found = of_images(poses, ["rgb/0000.png", "rgb/0002.png"], "x")
    assert found.names == ("rgb/0000.png", "rgb/0002.png")
    np.testing.assert_allclose(found.cam_from_world()[1], CENTRES[[0, 2]], atol=1e-9)


def test_record3d_with_a_focal_length_a_frame(tmp_path: Path) -> None:
    each = [[700.0 + k, 700, 360, 480] for k in range(3)]
    poses = read(record3d(tmp_path / "a.json", perFrameIntrinsicCoeffs=each))
    assert poses.cameras["2"].params.tolist() == [702, 700, 360, 480]
    assert not read(record3d(tmp_path / "a.json", K=[1, 2])).cameras


@pytest.mark.parametrize(
    ("pose", "message"),
    [
        ([0, 0, 0, 1, 2, 3], "it is not seven numbers: qx qy qz qw, x y z."),
        ([0, 0, 0, "x", 1, 2, 3], "it is not seven numbers: qx qy qz qw, x y z."),
        ([0, 0, 0, 0, 1, 2, 3], "its quaternion is zero, which is no rotation."),
    ],
)
def test_wrong_poses_of_record3d(tmp_path: Path, pose: list[Any], message: str) -> None:
    path = record3d(tmp_path / "a.json", poses=[pose])
    assert error_of(path) == f"poses DIR/a.json, pose 0: {message}"


# ------------------------------------------------------------------------- Metashape
def numbers(values: Float64) -> str:
    return " ".join(f"{value:.15g}" for value in np.ravel(values))


def placing(turn: Float64, scale: float, offset: Float64) -> str:
    return (
        f"<transform><rotation>{numbers(turn)}</rotation>"
        f"<translation>{numbers(offset)}</translation>"
        f"<scale>{scale}</scale></transform>"
    )


SENSOR = (
    '<sensor id="0" type="frame"><resolution width="1000" height="800"/>'
    '<calibration type="frame" class="initial"><resolution width="1000" height="800"/>'
    "<f>1</f></calibration>"
    '<calibration type="frame" class="adjusted"><resolution width="1000" height="800"/>'
    "<f>900</f><cx>3</cx><cy>-4</cy><b1>2</b1><k1>.1</k1><k2>.2</k2>"
    "<p1>.003</p1><p2>.004</p2></calibration></sensor>"
)


def metashape(
    path: Path,
    *,
    turn: Float64 | None = None,
    scale: float = 1.0,
    offset: Float64 | None = None,
    sensor: str = SENSOR,
    in_component: bool = False,
) -> Path:
    """Cameras whose poses in the world are the true ones, the chunk placed so."""
    turn = np.eye(3) if turn is None else turn
    offset = np.zeros(3) if offset is None else offset
    cameras = '<camera id="9" sensor_id="0" label="not aligned.jpg"/>'
    for k, (rotation, centre) in enumerate(zip(ROTATIONS, CENTRES, strict=True)):
        pose = np.eye(4)
        pose[:3, :3] = turn.T @ rotation.T
        pose[:3, 3] = turn.T @ (centre - offset) / scale
        camera = (
            f'<camera id="{k}" sensor_id="0" component_id="5" label="{k}.jpg">'
            f"<transform>{numbers(pose)}</transform></camera>"
        )
        cameras += f"<group>{camera}</group>" if k == 2 else camera
    placed = placing(turn, scale, offset)
    component = f'<components><component id="5">{placed}</component></components>'
    path.write_text(
        '<?xml version="1.0"?><document version="2.0.0"><chunk label="a">'
        f"<sensors>{sensor}</sensors>{component if in_component else ''}"
        f"<cameras>{cameras}</cameras>{'' if in_component else placed}</chunk>"
        "</document>"
    )
    return path


@pytest.mark.parametrize("in_component", [False, True])
def test_metashape(tmp_path: Path, in_component: bool) -> None:
    path = metashape(
        tmp_path / "cameras.xml",
        turn=Rotation.from_euler("xyz", [3, 70, -40], degrees=True).as_matrix(),
        scale=2.5,
        offset=np.array([10.0, -20, 30]),
        in_component=in_component,
    )
    poses = read(path)
    assert_true(poses, ("0.jpg", "1.jpg", "2.jpg"))
    camera = poses.cameras["1.jpg"]
    assert camera.model_name == "OPENCV"
    expected = [902, 900, 503, 396, 0.1, 0.2, 0.004, 0.003]
    np.testing.assert_allclose(camera.params, expected)


def test_lenses_of_metashape(tmp_path: Path) -> None:
    third = SENSOR.replace("<p1>", "<k3>.05</k3><p1>")
    camera = read(metashape(tmp_path / "a.xml", sensor=third)).cameras["0.jpg"]
    assert camera.model_name == "FULL_OPENCV"
    assert camera.params[8:].tolist() == [0.05, 0, 0, 0]
    # the manual's frame camera, at a point off the axis
    x, y = 0.3, -0.2
    r2 = x * x + y * y
    radial = 1 + 0.1 * r2 + 0.2 * r2**2 + 0.05 * r2**3
    u = x * radial + 0.003 * (r2 + 2 * x * x) + 2 * 0.004 * x * y
    v = y * radial + 0.004 * (r2 + 2 * y * y) + 2 * 0.003 * x * y
    expected = (500 + 3 + 900 * u + 2 * u, 400 - 4 + 900 * v)
    found = camera.img_from_cam(np.array([[x, y, 1.0]]))[0]
    np.testing.assert_allclose(found, expected)
    fisheye = SENSOR.replace('type="frame"', 'type="fisheye"')
    camera = read(metashape(tmp_path / "b.xml", sensor=fisheye)).cameras["0.jpg"]
    assert camera.model_name == "OPENCV_FISHEYE"
    assert camera.params[4:].tolist() == [0.1, 0.2, 0, 0]
    sphere = SENSOR.replace('type="frame"', 'type="spherical"')
    assert not read(metashape(tmp_path / "c.xml", sensor=sphere)).cameras


def test_geocentric_chunks_become_local(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    earth = pycolmap.GPSTransform()
    place = np.array([52.52, 13.405, 34.0])
    origin = earth.ellipsoid_to_ecef(place[None])[0]
    steps = np.array([[0.0, 0, 0], [100, 0, 0], [0, 100, 0], [0, 0, 100]])
    axes = earth.enu_to_ecef(steps, *place) - origin  # rows: east, north, up
    turn = axes[1:].T / 100
    cameras = "".join(
        f'<camera id="{k}" label="{k}"><transform>'
        f"{numbers(np.vstack([np.column_stack([r.T, c]), [0, 0, 0, 1]]))}"
        "</transform></camera>"
        for k, (r, c) in enumerate(zip(ROTATIONS, CENTRES, strict=True))
    )
    path = tmp_path / "a.xml"
    path.write_text(
        f"<document><chunk><cameras>{cameras}</cameras>{placing(turn, 1, origin)}"
        "</chunk></document>"
    )
    with caplog.at_level(logging.WARNING):
        rotations, centres = read(path).cam_from_world()
    steps = CENTRES - CENTRES[0]
    np.testing.assert_allclose(centres - centres[0], steps, atol=1e-3)
    assert np.abs(centres).max() < 20
    np.testing.assert_allclose(rotations, ROTATIONS, atol=1e-5)
    assert "are geocentric: the world is metres east, north and up of" in caplog.text


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            "<document",
            "poses DIR/a.xml cannot be read (unclosed token: line 1, column 0):"
            " expected the cameras that Metashape exports as XML.",
        ),
        (
            "<document><chunk><cameras/></chunk></document>",
            "poses DIR/a.xml: 0 chunks hold cameras with a pose, expected one. In"
            " Metashape choose the chunk, then File, Export, Export Cameras.",
        ),
        (
            '<document><chunk><cameras><camera label="a"><transform>1 2</transform>'
            "</camera></cameras></chunk></document>",
            "poses DIR/a.xml, camera 'a': its transform is not 16 numbers.",
        ),
        (
            '<document><chunk><cameras><camera label="a"><transform>1 2</transform>'
            f"</camera></cameras>{placing(np.eye(3), -1, np.zeros(3))}"
            "</chunk></document>",
            "poses DIR/a.xml, transform of the chunk: its scale is -1, expected more"
            " than 0.",
        ),
    ],
)
def test_wrong_exports_of_metashape(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "a.xml"
    path.write_text(content)
    assert error_of(path) == message


# -------------------------------------------------------------------- RealityCapture
COLUMNS = "#name,x,y,alt,heading,pitch,roll,f,px,py,k1,k2,k3,k4,t1,t2"


def reality(path: Path, *rows: str, first: str = "") -> Path:
    path.write_text("\n".join([*([first] if first else []), COLUMNS, *rows]) + "\n")
    return path


def test_reality_capture(tmp_path: Path) -> None:
    world_from_cam = np.swapaxes(ROTATIONS, 1, 2) @ FLIP
    angles = Rotation.from_matrix(world_from_cam).as_euler("ZXY", degrees=True)
    rows = [
        f"{k}.jpg,{numbers(c).replace(' ', ',')},{-a},{b},{g},24,.36,-.72,.1,.2,0,0,0,0"
        for k, (c, (a, b, g)) in enumerate(zip(CENTRES, angles, strict=True))
    ]
    poses = read(reality(tmp_path / "a.csv", *rows, first="#cameras 3"))
    assert_true(poses, ("0.jpg", "1.jpg", "2.jpg"))
    camera = poses.cameras["0.jpg"]
    assert (camera.width, camera.height) == (0, 0)  # in units of the longer side
    expected = [24 / 36, 24 / 36, 0.01, -0.02, 0.1, 0.2, 0, 0]
    np.testing.assert_allclose(camera.params, expected)


def test_angles_of_reality_capture(tmp_path: Path) -> None:
    rest = "30,0,0,0,0,0,0,0,0"
    poses = read(
        reality(tmp_path / "a.csv", f"a,1,2,3,0,0,0,{rest}", f"b,1,2,3,90,90,0,{rest}")
    )
    down, east = poses.cam_from_world()[0]
    np.testing.assert_allclose(down.T @ (0, 0, 1), (0, 0, -1), atol=1e-12)
    np.testing.assert_allclose(down.T @ (0, -1, 0), (0, 1, 0), atol=1e-12)
    np.testing.assert_allclose(east.T @ (0, 0, 1), (1, 0, 0), atol=1e-12)
    np.testing.assert_allclose(east.T @ (0, -1, 0), (0, 0, 1), atol=1e-12)


def test_wrong_lines_of_reality_capture(tmp_path: Path) -> None:
    path = reality(tmp_path / "a.csv", "a.jpg,1,2,3,nan,0,0,30,0,0,0,0,0,0,0,0")
    assert error_of(path) == (
        "poses DIR/a.csv, line 2 (a.jpg): 'nan' is not a finite number."
    )
    path = reality(tmp_path / "a.csv", "a.jpg,1,2,3")
    assert error_of(path) == "poses DIR/a.csv, line 2: 4 columns, expected 16."
