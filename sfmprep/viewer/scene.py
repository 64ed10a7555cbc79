"""What `sfmprep view` shows of a result: cameras, points, and what is known of them.

Cameras and points are moved and scaled, so that half of the cameras are within
`DISTANCE` of the middle of the points, which is the origin. Lengths in words are in the
result's own units.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

from sfmprep.coords import beyond_rounding
from sfmprep.errors import ReconstructionError
from sfmprep.mapping.models import read_model
from sfmprep.pipelines.ledger import expect_as_written
from sfmprep.types import Bytes, Float32, Float64, Index

DISTANCE = 6.0  # the lines that viser draws are 0.01 to 0.02 thick


@dataclass(frozen=True, kw_only=True)
class CameraView:
    """One registered image, placed as it is shown."""

    image_id: int
    name: str  # of the photograph
    picture: Path | None  # what its thumbnail is made from
    wxyz: tuple[float, float, float, float]  # world from camera, OpenCV axes
    position: tuple[float, float, float]
    fov: float  # vertical, radians
    aspect: float  # width over height
    is_test: bool
    status: str  # one sentence


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """A result, placed as it is shown; rows of the columns are its N points."""

    model: pycolmap.Reconstruction
    cameras: Sequence[CameraView]
    point_ids: Sequence[int]
    xyz: Float32  # [N, 3]
    rgb: Bytes  # [N, 3]
    errors: Float32  # [N] mean reprojection error, pixels
    track_lengths: Index  # [N] keypoints on the point
    up: tuple[float, float, float]
    left_out: dict[str, str]  # image: reason


def load_scene(out: Path, *, images: Path | None = None) -> Scene:
    """Reads the dataset's model, or the mapper's where there is no dataset.

    Raises:
        ReconstructionError: `out` holds neither, or a damaged model.
        StoreError: a file of the mapper's model is not what the run wrote.
    """
    model, is_dataset = _read_model(out)
    xyz, rgb, errors, lengths = _columns(model)
    centres = np.array(
        [model.images[i].projection_center() for i in sorted(model.reg_image_ids())]
    ).reshape(-1, 3)
    if not len(centres):
        raise ReconstructionError(f"{out} holds a model without a registered image.")
    middle = np.median(xyz if len(xyz) else centres, axis=0)
    distance = float(np.median(np.linalg.norm(centres - middle, axis=1)))
    scale = DISTANCE / (beyond_rounding(distance, centres) or 1.0)
    described = _read_json(out / "dataset.json").get("images", {}) if is_dataset else {}
    pictures = _picture_folder(out) if is_dataset else images
    cameras = []
    for image_id in sorted(model.reg_image_ids()):
        image = model.images[image_id]
        about = described.get(image.name, {})
        camera = model.cameras[image.camera_id]
        pose = image.cam_from_world().inverse()
        qx, qy, qz, qw = pose.rotation.quat
        x, y, z = (pose.translation - middle) * scale
        half_height = camera.height / 2 / camera.mean_focal_length()
        picture = pictures / image.name if pictures else None
        cameras.append(
            CameraView(
                image_id=image_id,
                name=about.get("original", image.name),
                picture=picture if picture and picture.is_file() else None,
                wxyz=(qw, qx, qy, qz),
                position=(float(x), float(y), float(z)),
                fov=2 * float(np.arctan(half_height)),
                aspect=camera.width / camera.height,
                is_test=about.get("split") == "test",
                status=_status(image, about),
            )
        )
    # without its file, the world frame is the mapper's, whose axes mean nothing
    is_upright = is_dataset and (out / "world_from_sfm.json").is_file()
    return Scene(
        model=model,
        cameras=cameras,
        point_ids=sorted(model.points3D),
        xyz=((xyz - middle) * scale).astype(np.float32),
        rgb=rgb,
        errors=errors,
        track_lengths=lengths,
        up=(0.0, 0.0, 1.0) if is_upright else _mean_up(model),
        left_out=_left_out(out),
    )


def _read_model(out: Path) -> tuple[pycolmap.Reconstruction, bool]:
    """The model, and whether it is that of the dataset."""
    places = (out / "sparse" / "0", out / "work" / "models" / "0", out)
    for place in places:
        if any((place / f"cameras.{kind}").is_file() for kind in ("bin", "txt")):
            if place == places[1]:  # a dataset is the user's, who may change it
                expect_as_written(place, out)
            return read_model(place), place == places[0]
    raise ReconstructionError(
        f"{out} is neither an output of sfmprep with poses nor a COLMAP model (no"
        " cameras.bin)."
    )


def _columns(
    model: pycolmap.Reconstruction,
) -> tuple[Float64, Bytes, Float32, Index]:
    """Positions, colours, errors and track lengths by ascending id."""
    points = [model.points3D[i] for i in sorted(model.points3D)]
    return (
        np.array([point.xyz for point in points], np.float64).reshape(-1, 3),
        np.array([point.color for point in points], np.uint8).reshape(-1, 3),
        np.array([point.error for point in points], np.float32),
        np.array([point.track.length() for point in points], np.int64),
    )


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file of the result; empty where there is no such file."""
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_bytes()))
    except (ValueError, TypeError) as error:
        raise ReconstructionError(
            f"{path} is damaged ({error}). Make the result again."
        ) from error


def _left_out(out: Path) -> dict[str, str]:
    """Images that are not in the dataset, with the reason."""
    images = _read_json(out / "report.json").get("images", [])
    return {i["name"]: i["reason"] for i in images if i["status"] != "registered"}


def _picture_folder(out: Path) -> Path | None:
    """The smallest copies of the dataset's images."""
    folders = [out / name for name in ("images_8", "images_4", "images_2", "images")]
    return next((folder for folder in folders if folder.is_dir()), None)


def _mean_up(model: pycolmap.Reconstruction) -> tuple[float, float, float]:
    """The cameras' mean up direction."""
    ups = [
        -model.images[i].cam_from_world().rotation.matrix()[1]
        for i in model.reg_image_ids()
    ]
    up = np.mean(ups, axis=0)
    # Of cameras that are upside down to each other there is none.
    x, y, z = up if np.linalg.norm(up) > 1e-6 else (0.0, 0.0, 1.0)
    return float(x), float(y), float(z)


def _status(image: pycolmap.Image, about: dict[str, Any]) -> str:
    parts = [f"Registered with {image.num_points3D} points"]
    if "rotation_stddev_deg" in about:
        parts.append(f"rotation ± {about['rotation_stddev_deg']:.2g}°")
    if "position_stddev" in about:
        parts.append(f"position ± {about['position_stddev']:.2g}")
    if "weight" in about:
        parts.append(f"weight {about['weight']:.2f}")
    if about.get("split") == "test":
        parts.append("kept for testing")
    return ", ".join(parts) + "."


def strongest_pairs(
    scene: Scene, camera: CameraView, count: int
) -> list[tuple[CameraView, int]]:
    """The cameras that see most of the points that this one sees, and how many."""
    points = scene.model.points3D
    seen = {
        p.point3D_id
        for p in scene.model.images[camera.image_id].points2D
        if p.has_point3D()
    }
    shared = Counter(
        image_id
        for point_id in seen
        for image_id in {e.image_id for e in points[point_id].track.elements}
    )
    by_id = {other.image_id: other for other in scene.cameras if other is not camera}
    return [(by_id[i], n) for i, n in shared.most_common() if i in by_id][:count]
