"""Known camera poses, and those of a reconstruction, by image name."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.errors import ConfigError, ReconstructionError
from sfmprep.mapping.models import read_model
from sfmprep.types import Float64


@dataclass(frozen=True, kw_only=True, eq=False)
class CameraPose:
    """Where a camera is and how it is turned."""

    rotation: Float64  # [3, 3] camera from world, OpenCV axes
    centre: Float64  # [3] in the world


def read_reference(path: Path) -> dict[str, CameraPose]:
    """Reads known camera poses, by image name.

    Args:
        path: A reference.json (`images`: name -> world-to-camera `R` and `t`, OpenCV
            axes), or a folder that holds, in this order of preference, a
            reference.json, `.camera` files (Strecha et al., CVPR 2008;
            "0000.jpg.camera" is the image 0000.jpg), or a COLMAP model.

    Raises:
        ConfigError: Nothing of these is there, or it cannot be read as such.
    """
    if path.is_file() and path.suffix == ".json":
        return _read_json(path)
    if (path / "reference.json").is_file():
        return _read_json(path / "reference.json")
    files = sorted(path.glob("*.camera")) if path.is_dir() else []
    if files:
        return {file.name.removesuffix(".camera"): _read_camera(file) for file in files}
    if any((path / f"images{suffix}").is_file() for suffix in (".bin", ".txt")):
        return _read_model(path)
    found = "is a folder without these" if path.is_dir() else "is not there"
    raise ConfigError(
        f"reference {path} {found if not path.is_file() else 'is not a .json file'}:"
        " expected a reference.json, or a folder that holds one, or .camera files, or"
        " a COLMAP model (images.bin or images.txt)"
    )


def _read_json(path: Path) -> dict[str, CameraPose]:
    try:
        images = json.loads(path.read_text("utf-8"))["images"]
        return {
            name: _pose(image["R"], image["t"], f"{path}, image {name}")
            for name, image in images.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError, OSError) as error:
        raise ConfigError(
            f"reference {path} cannot be read ({type(error).__name__}: {error}):"
            ' expected {"images": {NAME: {"R": 3x3, "t": 3 numbers}}}'
        ) from error


def _read_camera(path: Path) -> CameraPose:
    """Reads K (9 numbers), distortion (3), R camera to world (9), centre (3), W, H."""
    try:
        numbers = np.array(path.read_text("utf-8").split(), dtype=np.float64)
    except (ValueError, OSError) as error:
        raise ConfigError(f"reference {path} cannot be read: {error}") from error
    if numbers.size != 26:
        raise ConfigError(
            f"reference {path} holds {numbers.size} numbers, expected 26: K, three"
            " of distortion, R, the camera centre, width and height"
        )
    rotation, centre = numbers[12:21].reshape(3, 3).T, numbers[21:24]
    return _pose(rotation, -rotation @ centre, str(path))


def _read_model(path: Path) -> dict[str, CameraPose]:
    try:
        return registered_poses(read_model(path))
    except ReconstructionError as error:
        raise ConfigError(f"reference {error}") from error


def _pose(rotation: object, translation: object, where: str) -> CameraPose:
    """A checked pose from a world-to-camera rotation and translation."""
    r = np.asarray(rotation, dtype=np.float64)
    t = np.asarray(translation, dtype=np.float64)
    is_pose = r.shape == (3, 3) and t.shape == (3,) and np.isfinite(t).all()
    # published rotations have some six digits
    if not is_pose or not np.allclose(r @ r.T, np.eye(3), atol=1e-3):
        raise ConfigError(
            f"reference {where}: R and t are not a rotation matrix and 3 finite numbers"
        )
    if np.linalg.det(r) < 0:
        raise ConfigError(
            f"reference {where}: R mirrors (its determinant is -1), expected a rotation"
        )
    return CameraPose(rotation=r, centre=-r.T @ t)


def registered_poses(reconstruction: pycolmap.Reconstruction) -> dict[str, CameraPose]:
    """The poses of the registered images by name."""
    poses = {}
    for image_id in reconstruction.reg_image_ids():
        image = reconstruction.images[image_id]
        cam_from_world = image.cam_from_world()
        poses[image.name] = CameraPose(
            rotation=np.asarray(cam_from_world.rotation.matrix(), np.float64),
            centre=np.asarray(image.projection_center(), np.float64),
        )
    return poses
