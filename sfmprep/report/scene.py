"""The 3D view of the report: points and frusta, levelled, reduced and packed.

Positions are 16-bit integers over a box, colours bytes, both base64: 12 bytes of HTML a
point, and 30,000 points and 2,000 cameras whatever the size of the model.
"""

from __future__ import annotations

import base64
from collections.abc import Collection
from typing import Any

import numpy as np
import pycolmap
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from sfmprep import coords
from sfmprep.capture.image_set import ImageSet
from sfmprep.coords import beyond_rounding
from sfmprep.types import Float64, Mask

_MAX_POINTS = 30_000
_MAX_FRUSTA = 2000
_STEPS = 32_000  # of a 16-bit integer along the longest side of the box
_MARGIN = 0.05


def scene_data(
    model: pycolmap.Reconstruction,
    images: ImageSet,
    *,
    level: bool,
    outliers: Collection[str],
) -> dict[str, Any]:
    """What page.js needs to draw a model.

    The box holds the cameras that are no outliers and the middle 98 % of the points
    along each axis; points outside it are not drawn. The view begins with a ball around
    these cameras and the middle half of the points.

    Args:
        model: With at least one registered image.
        images: The capture, for orientations.
        level: Whether to turn the cameras' mean up direction to +z; else z is up.
        outliers: Cameras that are drawn apart.
    """
    posed = [model.images[k] for k in sorted(model.reg_image_ids())]
    poses = np.array([i.cam_from_world().inverse().matrix() for i in posed])
    ids = np.array(sorted(model.point3D_ids()), np.uint64)
    chosen = ids[np.linspace(0, len(ids) - 1, min(len(ids), _MAX_POINTS)).astype(int)]
    points = [model.points3D[k] for k in chosen.tolist()]
    xyz = np.array([point.xyz for point in points]).reshape(-1, 3)
    rgb = np.array([point.color for point in points], np.uint8).reshape(-1, 3)
    if level:
        turn = _levelling(poses, [images.infos[i.name].orientation for i in posed])
        poses, xyz = turn @ poses, xyz @ turn.T
    centres = poses[:, :, 3]
    is_outlier = np.array([image.name in outliers for image in posed])
    kept = centres if is_outlier.all() else centres[~is_outlier]
    low, high = _box(xyz, kept, 1)
    near, far = _box(xyz, kept, 25)
    inside = ((xyz >= low) & (xyz <= high)).all(axis=1)
    depth = _frustum_depth(centres, high - low)
    drawn = _drawn(is_outlier)
    posed = [posed[k] for k in drawn]
    frusta = _frusta(model, posed, poses[drawn], depth)
    step = (high - low).max() / _STEPS
    return {
        "low": low.tolist(),
        "high": high.tolist(),
        "step": float(step),
        "focus": ((near + far) / 2).tolist(),
        "radius": float(np.linalg.norm(far - near) / 2),
        "points": _packed(np.round((xyz[inside] - low) / step).astype("<i2")),
        "colours": _packed(rgb[inside]),
        "frusta": np.round(frusta, 5).tolist(),
        "names": [image.name for image in posed],
        "outlier": is_outlier[drawn].tolist(),
        "num_points": len(ids),
    }


def _drawn(is_outlier: Mask) -> list[int]:
    """Cameras that are drawn: all outliers that there is room for, some of the rest."""
    outliers, others = np.flatnonzero(is_outlier), np.flatnonzero(~is_outlier)
    outliers = outliers[:_MAX_FRUSTA]
    room = min(_MAX_FRUSTA - len(outliers), len(others))
    some = others[np.linspace(0, len(others) - 1, room).astype(int)]
    return sorted([*outliers.tolist(), *some.tolist()])


def _levelling(poses: Float64, orientations: list[int]) -> Float64:
    """The rotation that turns the mean up direction of upright cameras to +z."""
    ups = [
        pose[:, :3]
        @ np.append(-coords.upright_matrix(coords.rotation_part(orientation))[1], 0)
        for pose, orientation in zip(poses, orientations, strict=True)
    ]
    up = np.mean(ups, axis=0)
    if np.linalg.norm(up) < 1e-6:
        return np.eye(3)
    up /= np.linalg.norm(up)
    ahead = np.mean(poses[:, :, 2], axis=0)
    side = np.cross(ahead, up)
    if np.linalg.norm(side) < 1e-6:  # all look up or down
        side = np.cross(np.eye(3)[np.argmin(np.abs(up))], up)
    side /= np.linalg.norm(side)
    return np.array([side, np.cross(up, side), up])


def _box(xyz: Float64, centres: Float64, per_cent: float) -> tuple[Float64, Float64]:
    """Around cameras and points, but for `per_cent` of these at each end."""
    low, high = centres.min(axis=0), centres.max(axis=0)
    if len(xyz):
        inner = np.percentile(xyz, (per_cent, 100 - per_cent), axis=0)
        low, high = np.minimum(low, inner[0]), np.maximum(high, inner[1])
    extent = beyond_rounding(float((high - low).max()), centres)
    margin = (extent or max(1e-9 * float(np.abs(centres).max()), 1e-9)) * _MARGIN
    return low - margin, high + margin


def _frustum_depth(centres: Float64, extent: Float64) -> float:
    """Half the usual distance to the next camera, within reason for the box."""
    whole = float(np.linalg.norm(extent))
    if len(centres) < 2:
        return whole / 30
    nearest = cKDTree(centres).query(centres, k=2)[0][:, 1]
    return float(np.clip(np.median(nearest) / 2, whole / 200, whole / 30))


def _frusta(
    model: pycolmap.Reconstruction,
    posed: list[pycolmap.Image],
    poses: Float64,
    depth: float,
) -> Float64:
    """The centre and the four corners of each camera's pyramid, [I, 5, 3]."""
    frusta = []
    for image, pose in zip(posed, poses, strict=True):
        camera = model.cameras[image.camera_id]
        half = np.array([camera.width, camera.height]) / camera.mean_focal_length() / 2
        half *= min(1, 1 / half.max())  # a fisheye's would be endless
        corners = np.array([[-1, -1], [1, -1], [1, 1], [-1, 1]]) * half
        rays = np.vstack([np.zeros(3), np.column_stack([corners, np.ones(4)])])
        frusta.append(rays * depth @ pose[:, :3].T + pose[:, 3])
    return np.array(frusta)


def _packed(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
