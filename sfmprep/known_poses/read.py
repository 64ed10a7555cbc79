"""Files of known poses: COLMAP models, transforms.json, tables and trajectories.

Which one a file is follows from its name and its first line. What a format does not
tell, such as the axes of the camera in a table, is left to the photographs, see
`mapping.check_poses`.
"""

from __future__ import annotations

import csv
import hashlib
import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfmprep.errors import ConfigError
from sfmprep.known_poses.colmap_model import model_folder, read_model
from sfmprep.known_poses.exports import (
    REALITY,
    is_record3d,
    polycam_folder,
    read_metashape,
    read_polycam,
    read_reality,
    read_record3d,
)
from sfmprep.known_poses.poses import (
    Axes,
    Convention,
    Direction,
    KnownPoses,
    refuse,
    rotation_of_matrix,
    rotation_of_quaternion,
    vector_of,
)
from sfmprep.known_poses.scanners import (
    read_scanner,
    read_stray,
    scanner_files,
    stray_file,
)
from sfmprep.known_poses.trajectory import Trajectory

_EXPECTED = (
    "expected a COLMAP model (a folder with images.bin or images.txt), a"
    " transforms.json, a table with the header name,x,y,z,qw,qx,qy,qz (.csv), a"
    " trajectory of TUM (lines of time, tx ty tz, qx qy qz qw), or an export of"
    " Polycam, 3D Scanner App or Stray Scanner (its folder), Record3D (.json),"
    " Metashape (.xml) or RealityCapture (.csv)"
)
_COLUMNS = (
    *(("name",), ("x", "tx"), ("y", "ty"), ("z", "tz")),
    *(("qw",), ("qx",), ("qy",), ("qz",)),
)
_NERFSTUDIO = Convention("opengl", "world_from_cam")
_UNTOLD = Convention("opencv", "world_from_cam")


def read_poses(
    path: Path, *, axes: Axes | None = None, direction: Direction | None = None
) -> KnownPoses | Trajectory:
    """Reads known poses.

    Args:
        path: A COLMAP model or a folder that holds one as `sparse/0` or `sparse`; a
            transforms.json of nerfstudio or Instant-NGP, or its folder; a .csv with
            the header name,x,y,z,qw,qx,qy,qz, whose columns may come in any order; a
            trajectory of TUM, poses by time; or what `exports` and `scanners` read: a
            folder of Polycam, 3D Scanner App or Stray Scanner, a .json of Record3D,
            .xml of Metashape, .csv of RealityCapture.
        axes: Of the cameras, where the user tells them; None for those of the format.
        direction: Of table and trajectory; likewise.

    Raises:
        ConfigError: it is none of these or damaged; a pose is not finite or no
            rotation; or a name comes twice.
    """
    if not path.exists():
        raise ConfigError(f"poses {path} is not there. Correct the path.")
    folder = model_folder(path)
    if folder is not None:
        found: KnownPoses | Trajectory = read_model(folder)
    elif path.is_dir() and (path / "transforms.json").is_file():
        found = _read_transforms(path / "transforms.json")
    elif path.is_dir() and (cameras := polycam_folder(path)) is not None:
        found = read_polycam(cameras)
    elif path.is_dir() and (files := scanner_files(path)):
        found = read_scanner(files)
    elif path.is_dir() and (odometry := stray_file(path)) is not None:
        found = read_stray(odometry)
    elif path.is_dir():
        raise ConfigError(f"poses {path} is a folder without poses: {_EXPECTED}.")
    elif (metadata := _record3d(path)) is not None:
        found = read_record3d(metadata, path)
    elif path.suffix.lower() == ".json":
        found = _read_transforms(path)
    elif path.suffix.lower() == ".xml":
        found = read_metashape(path)
    elif path.suffix.lower() == ".csv":
        found = _read_table(path)
    else:
        found = _read_trajectory(path)
    if isinstance(found, KnownPoses):
        _expect_unique(found.names, path)
    return found.read_as(axes, direction)


def poses_sha256(path: Path) -> str:
    """A checksum of the content of known poses: of a model, its cameras and images.

    Raises:
        ConfigError: a file cannot be read.
    """
    folder = model_folder(path)
    if folder is not None:
        kind = "bin" if (folder / "images.bin").is_file() else "txt"
        files = [folder / f"{name}.{kind}" for name in ("cameras", "images")]
    elif (path / "transforms.json").is_file():
        files = [path / "transforms.json"]
    elif (cameras := polycam_folder(path)) is not None:
        files = sorted(cameras.glob("*.json"))
    elif path.is_dir():
        files = scanner_files(path) or [stray_file(path) or path]
    else:
        files = [path]
    try:
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    except OSError as error:
        raise ConfigError(
            f"poses {path} cannot be read ({error.strerror}): {_EXPECTED}."
        ) from error
    return digests[0] if len(digests) == 1 else " ".join(digests)


def _record3d(path: Path) -> dict[str, Any] | None:
    """The metadata of Record3D; None where a file is something else."""
    if path.suffix.lower() != ".json" and path.name != "metadata":
        return None
    try:
        content = json.loads(path.read_text("utf-8"))
    except (ValueError, OSError):
        return None
    return content if isinstance(content, dict) and is_record3d(content) else None


def _read_transforms(path: Path) -> KnownPoses:
    content = _json_of(path)
    names, rotations, vectors, cameras = [], [], [], {}
    for number, frame in enumerate(content["frames"]):
        name = frame.get("file_path") if isinstance(frame, dict) else None
        if not isinstance(name, str):
            refuse(f"{path}, frame {number}", "it has no file_path")
        where = f"{path}, frame {number} ({name})"
        try:
            matrix = np.array(frame["transform_matrix"], np.float64)
        except (KeyError, ValueError, TypeError):
            refuse(where, "it has no transform_matrix of 4 x 4 numbers")
        if matrix.shape not in ((4, 4), (3, 4)):
            refuse(where, "its transform_matrix is not 4 x 4")
        names.append(name.removeprefix("./").replace("\\", "/"))
        rotations.append(rotation_of_matrix(matrix[:3, :3], where))
        vectors.append(vector_of(matrix[:3, 3], where))
        camera = _camera_of(content | frame)
        if camera is not None:
            cameras[names[-1]] = camera
    return KnownPoses(
        names=tuple(names),
        rotations=np.array(rotations).reshape(-1, 3, 3),
        vectors=np.array(vectors).reshape(-1, 3),
        convention=_NERFSTUDIO,
        is_told=True,
        source="a transforms.json",
        cameras=cameras,
    )


def _json_of(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8"))
        if isinstance(content["frames"], list) and content["frames"]:
            return dict(content)
        why = "it has no frames"
    except (ValueError, TypeError, KeyError, OSError) as error:
        why = f"{type(error).__name__}: {error}"
    raise ConfigError(
        f"poses {path} cannot be read ({why}): expected the transforms.json of"
        ' nerfstudio, {"frames": [{"file_path": ..., "transform_matrix": 4x4}]}.'
    )


def _camera_of(values: Mapping[str, Any]) -> pycolmap.Camera | None:
    """The camera that a frame tells; None where its size or focal length is missing."""

    def number(key: str, default: float = math.nan) -> float:
        value = values.get(key, default)
        is_number = isinstance(value, int | float) and math.isfinite(value)
        return float(value) if is_number else default

    width, height = number("w"), number("h")
    fx = number("fl_x", width / 2 / math.tan(number("camera_angle_x") / 2 or math.nan))
    fy = number("fl_y", fx)
    if not (width > 0 and height > 0 and fx > 0 and fy > 0):
        return None
    params = [fx, fy, number("cx", width / 2), number("cy", height / 2)]
    is_fisheye = values.get("camera_model") == "OPENCV_FISHEYE"
    keys = ("k1", "k2", "k3", "k4") if is_fisheye else ("k1", "k2", "p1", "p2")
    return pycolmap.Camera(
        model="OPENCV_FISHEYE" if is_fisheye else "OPENCV",
        width=int(width),
        height=int(height),
        params=[*params, *(number(key, 0.0) for key in keys)],
    )


def _read_table(path: Path) -> KnownPoses:
    rows = _text_of(path).splitlines()
    while rows and rows[0].startswith("#cameras"):
        rows = rows[1:]  # how many there are
    if rows and set(REALITY) <= {word.strip() for word in rows[0].split(",")}:
        return read_reality(rows, path)
    header = [word.strip().lower() for word in next(csv.reader(rows[:1]), [])]
    columns = [next((n for n in each if n in header), None) for each in _COLUMNS]
    if None in columns:
        lacking = [each[0] for each, n in zip(_COLUMNS, columns, strict=True) if not n]
        raise ConfigError(
            f"poses {path}: the first line has no column {', '.join(lacking)}. Expected"
            " the header name,x,y,z,qw,qx,qy,qz; the columns may be in another order."
        )
    places = [header.index(str(name)) for name in columns]
    names, rotations, vectors = [], [], []
    for number, row in enumerate(csv.reader(rows[1:]), 2):
        if not any(word.strip() for word in row):
            continue
        where = f"{path}, line {number}"
        if len(row) < len(header):
            refuse(where, f"{len(row)} columns, expected {len(header)}")
        names.append(row[places[0]].strip())
        where += f" ({names[-1]})"
        numbers = _numbers([row[k] for k in places[1:]], where)
        vectors.append(vector_of(numbers[:3], where))
        rotations.append(rotation_of_quaternion(numbers[3:], where))
    if not names:
        raise ConfigError(f"poses {path}: no line after the header. {_EXPECTED}.")
    return KnownPoses(
        names=tuple(names),
        rotations=np.array(rotations),
        vectors=np.array(vectors),
        convention=_UNTOLD,
        is_told=False,
        source="a table of poses",
    )


def _read_trajectory(path: Path) -> Trajectory:
    times, rotations, vectors = [], [], []
    for number, line in enumerate(_text_of(path).splitlines(), 1):
        words = line.replace(",", " ").split()
        if not words or words[0].startswith("#"):
            continue
        where = f"{path}, line {number}"
        if len(words) != 8:
            raise ConfigError(
                f"poses {where}: {len(words)} columns, but a trajectory of TUM has 8:"
                f" time, tx ty tz, qx qy qz qw. If it is something else: {_EXPECTED}."
            )
        time, *vector, x, y, z, w = _numbers(words, where)
        if not math.isfinite(time):
            refuse(where, "its time is not a finite number")
        times.append(time)
        vectors.append(vector_of(vector, where))
        rotations.append(rotation_of_quaternion((w, x, y, z), where))
    order = np.argsort(times, kind="stable")
    if len(order) < 2:
        raise ConfigError(
            f"poses {path}: {len(order)} poses, but a trajectory needs two or more."
        )
    ordered = np.array(times)[order]
    if not (np.diff(ordered) > 0).all():
        twice = ordered[1:][np.diff(ordered) == 0][0]
        raise ConfigError(
            f"poses {path}: the time {twice:.6f} comes twice. Give one pose a time."
        )
    return Trajectory(
        times=ordered,
        rotations=np.array(rotations)[order],
        vectors=np.array(vectors)[order],
        convention=_UNTOLD,
        is_told=False,
        path=path,
    )


def _text_of(path: Path) -> str:
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"poses {path} cannot be read ({error}): {_EXPECTED}."
        ) from error


def _numbers(words: Iterable[str], where: str) -> list[float]:
    found = []
    for word in words:
        try:
            found.append(float(word))
        except ValueError:
            refuse(where, f"{word.strip()!r} is not a number")
    return found


def _expect_unique(names: tuple[str, ...], path: Path) -> None:
    name, count = Counter(names).most_common(1)[0] if names else ("", 0)
    if not names:
        raise ConfigError(f"poses {path}: there is no pose in it: {_EXPECTED}.")
    if count > 1:
        raise ConfigError(
            f"poses {path}: {name!r} has {count} poses. Give one pose an image."
        )
