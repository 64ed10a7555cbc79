"""Poses of ARKit as apps for scanning with an iPhone export them.

Those that are not in `exports`.

3D Scanner App ("All data"): `frame_00012.json` beside `frame_00012.jpg`, with the
matrix `cameraPoseARFrame` row by row, camera to world, y up, z back, and `intrinsics`.
Stray Scanner: `odometry.csv` beside the film `rgb.mp4`, with a time, a position and a
quaternion of each of its frames; which axes its cameras have is left to the
photographs.
Sources: exports that owners of such telephones have published, and readers of them.
"""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfmprep.capture.image_file import read_info
from sfmprep.errors import ConfigError, ImageError
from sfmprep.known_poses.poses import (
    Convention,
    KnownPoses,
    refuse,
    rotation_of_matrix,
    rotation_of_quaternion,
    vector_of,
)
from sfmprep.known_poses.trajectory import Trajectory

_ARKIT = Convention("opengl", "world_from_cam")
_UNTOLD = Convention("opencv", "world_from_cam")
_POSE = "cameraPoseARFrame"
_COLUMNS = ("timestamp", "x", "y", "z", "qx", "qy", "qz", "qw")


def scanner_files(folder: Path) -> list[Path]:
    """The files of 3D Scanner App in a folder, sorted; empty where it is another."""
    files = sorted(folder.glob("frame_*.json"))
    return files if files and _POSE in _content(files[0]) else []


def stray_file(folder: Path) -> Path | None:
    """The odometry of a folder of Stray Scanner; None where it is another."""
    path = folder / "odometry.csv"
    return path if path.is_file() else None


def read_scanner(files: list[Path]) -> KnownPoses:
    """Reads frames of 3D Scanner App: images have their names, but for the suffix.

    Cameras are those of frames whose photograph lies beside, which tells the size.

    Raises:
        ConfigError: a file is none of these, or its pose cannot be used.
    """
    rotations, vectors, cameras = [], [], {}
    for path in files:
        content = _content(path)
        matrix = _matrix(content.get(_POSE), 4)
        if matrix is None:
            refuse(str(path), f"it has no {_POSE} of 16 numbers")
        rotations.append(rotation_of_matrix(matrix[:3, :3], str(path)))
        vectors.append(vector_of(matrix[:3, 3], str(path)))
        camera = _camera(content.get("intrinsics"), path.with_suffix(".jpg"))
        if camera is not None:
            cameras[path.stem] = camera
    return KnownPoses(
        names=tuple(path.stem for path in files),
        rotations=np.array(rotations).reshape(-1, 3, 3),
        vectors=np.array(vectors).reshape(-1, 3),
        convention=_ARKIT,
        is_told=True,
        source="an export of 3D Scanner App",
        cameras=cameras,
    )


def read_stray(path: Path) -> Trajectory:
    """Reads the odometry of Stray Scanner; its first pose is at 0 s, as in the film.

    Raises:
        ConfigError: it is none, or a pose cannot be used.
    """
    try:
        rows = list(csv.reader(path.read_text("utf-8-sig").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"poses {path} cannot be read ({error}).") from error
    header = [word.strip() for word in rows[0]] if rows else []
    if lacking := [name for name in _COLUMNS if name not in header]:
        raise ConfigError(
            f"poses {path}: the first line has no column {', '.join(lacking)}. Expected"
            " the odometry.csv of Stray Scanner: timestamp, frame, x, y, z, qx, qy, qz,"
            " qw."
        )
    places = [header.index(name) for name in _COLUMNS]
    times: list[float] = []
    rotations, vectors = [], []
    for number, row in enumerate(rows[1:], 2):
        if not any(word.strip() for word in row):
            continue
        where = f"{path}, line {number}"
        try:
            time, *vector, x, y, z, w = (float(row[place]) for place in places)
        except (ValueError, IndexError):
            refuse(where, "it is not a number in each column")
        if not np.isfinite(time) or (times and time <= times[-1]):
            refuse(where, "its time is not after the one before")
        times.append(time)
        vectors.append(vector_of(vector, where))
        rotations.append(rotation_of_quaternion((w, x, y, z), where))
    if len(times) < 2:
        raise ConfigError(
            f"poses {path}: {len(times)} poses, but a trajectory needs two or more."
        )
    return Trajectory(
        times=np.array(times) - times[0],
        rotations=np.array(rotations),
        vectors=np.array(vectors),
        convention=_UNTOLD,
        is_told=False,
        path=path,
    )


def _content(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, OSError) as error:
        raise ConfigError(
            f"poses {path} cannot be read ({type(error).__name__}: {error}). Export it"
            " again."
        ) from error
    return content if isinstance(content, dict) else {}


def _matrix(values: object, side: int) -> np.ndarray[Any, np.dtype[np.float64]] | None:
    try:
        return np.array(values, np.float64).reshape(side, side)
    except (TypeError, ValueError):
        return None


def _camera(intrinsics: object, photograph: Path) -> pycolmap.Camera | None:
    """The camera of a frame; None where its size or focal length is not told."""
    matrix = _matrix(intrinsics, 3)
    if matrix is None or not np.isfinite(matrix).all() or min(np.diag(matrix)) <= 0:
        return None
    try:
        width, height = read_info(photograph).size
    except ImageError:
        return None
    params = [matrix[0, 0], matrix[1, 1], matrix[0, 2], matrix[1, 2]]
    return pycolmap.Camera(model="PINHOLE", width=width, height=height, params=params)
