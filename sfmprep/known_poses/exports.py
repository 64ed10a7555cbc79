"""Poses that phones and other programs export, each in the format of its own.

Polycam (raw data) and Record3D hold those of ARKit: camera to world, y up, z back.
Metashape (cameras.xml) has camera to chunk, y down, z forward, and places the chunk.
RealityCapture and RealityScan (Internal/External camera parameters, CSV) have angles of
a camera that looks down where all are 0, and lengths in millimetres of film of which
the longer side is 36.
Sources: the converters of nerfstudio (`process_data`), Brush's reader of such tables,
and the appendix "Camera models" of the Metashape manual.
"""

from __future__ import annotations

import csv
import json
import logging
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pycolmap

from sfmprep.errors import ConfigError
from sfmprep.known_poses.poses import (
    Convention,
    KnownPoses,
    refuse,
    rotation_of_matrix,
    rotation_of_quaternion,
    vector_of,
)
from sfmprep.types import Float64

logger = logging.getLogger(__name__)

_ARKIT = Convention("opengl", "world_from_cam")
_METASHAPE = Convention("opencv", "world_from_cam")
_FILM_MM = 36.0
_FAR_M = 1e6  # from the middle of the earth, beyond which a world is geocentric
_HIGH_M = 1e5  # above or below the sea, where nothing is photographed
_POLYCAM = ("corrected_cameras", "cameras")
REALITY = ("#name", "x", "y", "alt", "heading", "pitch", "roll")


def polycam_folder(path: Path) -> Path | None:
    """The folder of cameras of a raw export of Polycam; None where it is none.

    The poses after its own optimisation come before those while walking.
    """
    for folder in (path, path / "keyframes"):
        for name in _POLYCAM:
            found = folder / name
            if found.is_dir() and next(found.glob("*.json"), None):
                return found
    return None


def read_polycam(folder: Path) -> KnownPoses:
    """Reads a folder of cameras, one JSON file an image.

    Raises:
        ConfigError: a file is none of Polycam, or its pose cannot be used.
    """
    names, rotations, vectors, cameras = [], [], [], {}
    for path in sorted(folder.glob("*.json")):
        content = _json_of(path)
        rows = [[content.get(f"t_{r}{c}") for c in range(4)] for r in range(3)]
        try:
            matrix = np.array(rows, np.float64)
        except (TypeError, ValueError):
            refuse(str(path), "it has no t_00 to t_23 of numbers")
        names.append(path.stem)
        rotations.append(rotation_of_matrix(matrix[:, :3], str(path)))
        vectors.append(vector_of(matrix[:, 3], str(path)))
        size = content.get("width"), content.get("height")
        numbers = [content.get(key) for key in ("fx", "fy", "cx", "cy")]
        camera = _pinhole(size, numbers)
        if camera is not None:
            cameras[path.stem] = camera
    return _poses(names, rotations, vectors, cameras, _ARKIT, "an export of Polycam")


def is_record3d(content: Mapping[str, Any]) -> bool:
    """Whether a JSON file is the metadata of Record3D."""
    return isinstance(content.get("poses"), list) and "K" in content


def read_record3d(content: Mapping[str, Any], path: Path) -> KnownPoses:
    """Reads the metadata of Record3D: images are called by their number, from 0.

    Raises:
        ConfigError: a pose cannot be used.
    """
    names, rotations, vectors, cameras = [], [], [], {}
    each = content.get("perFrameIntrinsicCoeffs")
    size = content.get("w"), content.get("h")
    for number, pose in enumerate(content["poses"]):
        where = f"{path}, pose {number}"
        if not isinstance(pose, list) or len(pose) != 7:
            refuse(where, "it is not seven numbers: qx qy qz qw, x y z")
        try:
            x, y, z, w, *vector = map(float, pose)
        except (TypeError, ValueError):
            refuse(where, "it is not seven numbers: qx qy qz qw, x y z")
        names.append(str(number))
        rotations.append(rotation_of_quaternion((w, x, y, z), where))
        vectors.append(vector_of(vector, where))
        if isinstance(each, list) and number < len(each):
            numbers = each[number]
        else:
            k = content["K"]  # by columns
            numbers = [k[0], k[4], k[6], k[7]] if _has_length(k, 9) else None
        camera = _pinhole(size, numbers)
        if camera is not None:
            cameras[str(number)] = camera
    return _poses(names, rotations, vectors, cameras, _ARKIT, "metadata of Record3D")


def read_metashape(path: Path) -> KnownPoses:
    """Reads the cameras that Metashape exports as XML; one chunk.

    A chunk in geocentric metres is put into metres east, north and up of its middle.

    Raises:
        ConfigError: it is no such file, holds several chunks with poses, or a pose
            cannot be used.
    """
    try:
        root = ElementTree.parse(path).getroot()
    except (ElementTree.ParseError, OSError, ValueError) as error:
        raise ConfigError(
            f"poses {path} cannot be read ({error}): expected the cameras that"
            " Metashape exports as XML."
        ) from error
    chunks = [c for c in root.iter("chunk") if c.find("cameras") is not None]
    used = [c for c in chunks if any(True for _ in c.iterfind(".//camera/transform"))]
    if len(used) != 1:
        raise ConfigError(
            f"poses {path}: {len(used)} chunks hold cameras with a pose, expected one."
            " In Metashape choose the chunk, then File, Export, Export Cameras."
        )
    (chunk,) = used
    sensors = {s.get("id"): _sensor(s) for s in chunk.iterfind("sensors/sensor")}
    components = {
        component.get("id"): placed
        for component in chunk.iterfind("components/component")
        if (placed := _placing(component, path)) is not None
    }
    whole = _placing(chunk, path)
    names, rotations, vectors, cameras = [], [], [], {}
    for camera in chunk.iterfind(".//camera"):
        text = camera.findtext("transform")
        if text is None:
            continue  # not aligned
        name = camera.get("label", "").replace("\\", "/")
        where = f"{path}, camera {name!r}"
        matrix = _numbers_of(text, 16, where).reshape(4, 4)
        placed = components.get(camera.get("component_id"), whole)
        rotation = rotation_of_matrix(matrix[:3, :3], where)
        vector = vector_of(matrix[:3, 3], where)
        if placed is not None:
            turn, scale, offset = placed
            rotation, vector = turn @ rotation, scale * turn @ vector + offset
        names.append(name)
        rotations.append(rotation)
        vectors.append(vector)
        lens = sensors.get(camera.get("sensor_id"))
        if lens is not None:
            cameras[name] = lens
    turned, moved = _local(np.array(rotations), np.array(vectors), path)
    return _poses(
        *(names, list(turned), list(moved), cameras),
        *(_METASHAPE, "an export of Metashape"),
    )


def read_reality(rows: Sequence[str], path: Path) -> KnownPoses:
    """Reads the camera parameters that RealityCapture or RealityScan export as CSV.

    Args:
        rows: Lines, of which the first names the columns.
        path: For messages.

    Raises:
        ConfigError: a line cannot be used.
    """
    header = [word.strip() for word in next(csv.reader(rows[:1]))]
    names, rotations, vectors, cameras = [], [], [], {}
    for number, row in enumerate(csv.reader(rows[1:]), 2):
        if not any(word.strip() for word in row):
            continue
        where = f"{path}, line {number}"
        if len(row) < len(header):
            refuse(where, f"{len(row)} columns, expected {len(header)}")
        told = dict(zip(header, row, strict=False))
        name = told[REALITY[0]].strip().replace("\\", "/")
        where += f" ({name})"
        values = [_number(told[key], where) for key in REALITY[1:]]
        names.append(name)
        rotations.append(_rotation_of_angles(values[3:]))
        vectors.append(vector_of(values[:3], where))
        camera = _film_camera(told, where)
        if camera is not None:
            cameras[name] = camera
    return _poses(
        *(names, rotations, vectors, cameras, _ARKIT),
        "a table of RealityCapture",
    )


def _json_of(path: Path) -> dict[str, Any]:
    """The content of a JSON file that holds an object."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
        if isinstance(content, dict):
            return content
        why = "it is no object"
    except (ValueError, OSError) as error:
        why = f"{type(error).__name__}: {error}"
    raise ConfigError(f"poses {path} cannot be read ({why}). Export it again.")


def _poses(
    names: list[str],
    rotations: list[Float64],
    vectors: list[Float64],
    cameras: Mapping[str, pycolmap.Camera],
    convention: Convention,
    source: str,
) -> KnownPoses:
    return KnownPoses(
        names=tuple(names),
        rotations=np.array(rotations).reshape(-1, 3, 3),
        vectors=np.array(vectors).reshape(-1, 3),
        convention=convention,
        is_told=True,
        source=source,
        cameras=cameras,
    )


def _has_length(value: object, length: int) -> bool:
    return isinstance(value, list) and len(value) == length


def _pinhole(size: Sequence[Any], numbers: Any) -> pycolmap.Camera | None:
    """A camera of focal lengths and principal point; None where these are none."""
    try:
        width, height = (int(side) for side in size)
        params = [float(number) for number in numbers]
    except (TypeError, ValueError):
        return None
    is_one = len(params) == 4 and np.isfinite(params).all()
    if not is_one or min(width, height, *params[:2]) <= 0:
        return None
    return pycolmap.Camera(model="PINHOLE", width=width, height=height, params=params)


# ------------------------------------------------------------------------- Metashape
def _numbers_of(text: str, count: int, where: str) -> Float64:
    try:
        found = np.array([float(word) for word in text.split()])
    except ValueError:
        found = np.empty(0)
    if len(found) != count:
        refuse(where, f"its transform is not {count} numbers")
    return found


def _placing(
    element: ElementTree.Element, path: Path
) -> tuple[Float64, float, Float64] | None:
    """Rotation, scale and offset of a chunk or component; None where it has none."""
    transform = element.find("transform")
    if transform is None or transform.find("rotation") is None:
        return None
    where = f"{path}, transform of the {element.tag}"
    turn = _numbers_of(transform.findtext("rotation", ""), 9, where).reshape(3, 3)
    offset = _numbers_of(transform.findtext("translation", "0 0 0"), 3, where)
    (scale,) = _numbers_of(transform.findtext("scale", "1"), 1, where)
    if not scale > 0:
        refuse(where, f"its scale is {scale:g}, expected more than 0")
    return rotation_of_matrix(turn, where), float(scale), vector_of(offset, where)


def _sensor(sensor: ElementTree.Element) -> pycolmap.Camera | None:
    """The camera of a sensor; None for a model that there is no equal of."""
    found = sensor.findall("calibration")
    adjusted = [c for c in found if c.get("class") == "adjusted"]
    if not found:
        return None
    calibration = (adjusted or found)[0]
    resolution = calibration.find("resolution")
    if resolution is None:
        resolution = sensor.find("resolution")
    if resolution is None:
        return None

    def number(key: str) -> float:
        try:
            return float(calibration.findtext(key, "0"))
        except ValueError:
            return 0.0

    width, height = (int(resolution.get(side, 0)) for side in ("width", "height"))
    f, k = number("f"), [number(f"k{n}") for n in (1, 2, 3, 4)]
    if min(width, height) <= 0 or not (f > 0 and math.isfinite(f)):
        return None
    middle = [width / 2 + number("cx"), height / 2 + number("cy")]
    kind = calibration.get("type", sensor.get("type", "frame"))
    if kind == "fisheye":
        model, lens = "OPENCV_FISHEYE", k
    elif kind == "frame":
        # its P1 multiplies r^2 + 2 x^2, which is OpenCV's p2
        tangential = [number("p2"), number("p1")]
        model = "FULL_OPENCV" if k[2] else "OPENCV"
        lens = k[:2] + tangential + ([k[2], 0.0, 0.0, 0.0] if k[2] else [])
    else:
        return None
    params = [f + number("b1"), f, *middle, *lens]
    return pycolmap.Camera(model=model, width=width, height=height, params=params)


def _local(rotations: Float64, centres: Float64, path: Path) -> tuple[Float64, Float64]:
    """Geocentric poses in metres east, north and up of their middle; others as is."""
    middle = np.median(centres, axis=0)
    if np.linalg.norm(middle) < _FAR_M:
        return rotations, centres
    earth = pycolmap.GPSTransform()
    latitude, longitude, altitude = earth.ecef_to_ellipsoid(middle[None])[0]
    if not abs(altitude) < _HIGH_M:  # large numbers, but of a map
        return rotations, centres
    logger.warning(
        "poses %s are geocentric: the world is metres east, north and up of latitude"
        " %.6f, longitude %.6f, altitude %.1f m",
        *(path, latitude, longitude, altitude),
    )
    a, b = math.radians(latitude), math.radians(longitude)
    enu = np.array(
        [
            (-math.sin(b), math.cos(b), 0),
            (-math.sin(a) * math.cos(b), -math.sin(a) * math.sin(b), math.cos(a)),
            (math.cos(a) * math.cos(b), math.cos(a) * math.sin(b), math.sin(a)),
        ]
    )
    return enu @ rotations, (centres - middle) @ enu.T


# -------------------------------------------------------------------- RealityCapture
def _number(word: str, where: str) -> float:
    try:
        value = float(word)
    except ValueError:
        value = math.nan
    if not math.isfinite(value):
        refuse(where, f"{word.strip()!r} is not a finite number")
    return value


def _rotation_of_angles(degrees: Sequence[float]) -> Float64:
    """World from camera, z back, by heading (clockwise from north), pitch and roll."""
    heading, pitch, roll = np.radians(degrees)
    turns = pycolmap.Rotation3d
    rotation = (
        turns(np.array([0, 0, -heading]))
        * turns(np.array([pitch, 0, 0]))
        * turns(np.array([0, roll, 0]))
    )
    return np.asarray(rotation.matrix(), np.float64)


def _film_camera(told: Mapping[str, str], where: str) -> pycolmap.Camera | None:
    """A camera in units of the longer side, see `KnownPoses`; None where f is none.

    The tangential coefficients are left to the photographs.
    """

    def number(key: str) -> float:
        return _number(told[key], where) if key in told else 0.0

    f = number("f") / _FILM_MM
    if f <= 0:
        return None
    middle = [number("px") / _FILM_MM, number("py") / _FILM_MM]
    params = [f, f, *middle, number("k1"), number("k2"), 0.0, 0.0]
    return pycolmap.Camera(model="OPENCV", width=0, height=0, params=params)
