"""Poses of a COLMAP model, text or binary."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

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

_COLMAP = Convention("opencv", "cam_from_world")


def model_folder(path: Path) -> Path | None:
    """Where the COLMAP model of known poses lies; None where they are no such model."""
    for folder in (path, path / "sparse" / "0", path / "sparse"):
        if any((folder / f"images.{kind}").is_file() for kind in ("bin", "txt")):
            return folder
    return None


def read_model(folder: Path) -> KnownPoses:
    """Reads the poses of a model; it may lack its points.

    Raises:
        ConfigError: it is damaged, lacks its cameras, or a pose cannot be used.
    """
    model = model_without_points(folder)
    images = [model.images[key] for key in sorted(model.reg_image_ids())]
    rotations, vectors = [], []
    for image in images:
        pose, where = image.cam_from_world(), f"{folder}, image {image.name!r}"
        rotations.append(rotation_of_matrix(pose.rotation.matrix(), where))
        vectors.append(vector_of(pose.translation, where))
    return KnownPoses(
        names=tuple(image.name for image in images),
        rotations=np.array(rotations).reshape(-1, 3, 3),
        vectors=np.array(vectors).reshape(-1, 3),
        convention=_COLMAP,
        is_told=True,
        source="a COLMAP model",
        cameras={image.name: model.cameras[image.camera_id] for image in images},
    )


def model_without_points(folder: Path) -> pycolmap.Reconstruction:
    """A model whose points are not read: they may be missing, and are not used.

    Raises:
        ConfigError: it is damaged, or lacks its cameras.
    """
    kind = "bin" if (folder / "images.bin").is_file() else "txt"
    if not (folder / f"cameras.{kind}").is_file():
        raise ConfigError(
            f"poses {folder} holds images.{kind} without cameras.{kind}. Copy both."
        )
    with tempfile.TemporaryDirectory(prefix="sfmprep-") as made:
        for name in ("cameras", "images", "rigs", "frames"):
            if (folder / f"{name}.{kind}").is_file():
                shutil.copyfile(folder / f"{name}.{kind}", Path(made, f"{name}.{kind}"))
        if kind == "txt":
            _expect_quaternions(folder / "images.txt")
            _without_keypoints(Path(made, "images.txt"))
        points = folder / "points3D.bin"
        if kind == "bin" and points.is_file():  # keypoints name them
            shutil.copyfile(points, Path(made, "points3D.bin"))
        else:
            empty = b"\0" * 8 if kind == "bin" else b""  # a count of none
            Path(made, f"points3D.{kind}").write_bytes(empty)
        try:
            return pycolmap.Reconstruction(made)
        except (ValueError, IndexError, RuntimeError, MemoryError) as error:
            raise ConfigError(
                f"poses {folder} hold a damaged COLMAP model ({error}). Export it"
                " again."
            ) from error


def _lines_of_images(path: Path) -> list[tuple[int, str]]:
    """The lines of images.txt that hold a pose, with their numbers."""
    rows = [
        (number, line)
        for number, line in enumerate(path.read_text("utf-8").split("\n"), 1)
        if not line.startswith("#")
    ]
    return [row for row in rows[::2] if row[1].strip()]


def _expect_quaternions(path: Path) -> None:
    """Refuses what COLMAP would make a number of."""
    for number, line in _lines_of_images(path):
        words, where = line.split(), f"{path}, line {number}"
        try:
            numbers = [float(word) for word in words[1:8]]
        except ValueError:
            refuse(where, "a pose is not seven numbers")
        if len(words) < 10:
            refuse(where, "expected IMAGE_ID QW QX QY QZ TX TY TZ CAMERA_ID NAME")
        where += f", image {' '.join(words[9:])!r}"
        rotation_of_quaternion(numbers[:4], where)
        vector_of(numbers[4:], where)


def _without_keypoints(path: Path) -> None:
    lines = [line for _, line in _lines_of_images(path)]
    path.write_text("".join(f"{line}\n\n" for line in lines), "utf-8")
