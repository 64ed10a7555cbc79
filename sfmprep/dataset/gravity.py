"""Which way is up in a reconstruction.

Every source is a quadratic form: `up @ information @ up` is the squared error of a unit
vector over its variance, so sources add, and up is the smallest eigenvector.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap
from scipy.spatial import KDTree

from sfmprep import coords
from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet
from sfmprep.types import Float64, Mask

logger = logging.getLogger(__name__)

_MIN_SENSORS = 3
_MAX_TURN_DEG = 45.0  # between gravity and the upright image
_STEEP = math.sin(math.radians(15))  # a camera nearer to the vertical has no upright
_MAX_DISAGREEMENT_DEG = 10.0  # of one sensor from the others
_SENSOR_STDDEV_DEG = 0.5  # mounting and calibration, which no number of images averages

_ROLL_STDDEV_DEG = (1.0, 4.0)  # how level cameras are held: on a tripod, by hand
_TILT_STDDEV_DEG = 20.0  # how far all cameras of a capture look down or up together
_MIN_YAW_DEG = 40.0  # in a shorter arc a hand rolls the camera as it turns it
_MAX_INDEPENDENT = 16  # one person's habit is in all images

_PLANE_STDDEV_DEG = 1.0  # how level floors, how vertical walls are
_MAX_FLOOR_ANGLE_DEG = 30.0  # where the cameras leave it open; else three sigma
_MAX_WALL_ANGLE_DEG = 15.0
_MAX_SIGMAS = 3.0
_MIN_PLANE_SHARE = 0.08
_FULL_PLANE_SHARE = 0.2
_MAX_PLANES = 6
_MAX_PLANE_POINTS = 20_000
_MIN_PLANE_POINTS = 200
_NUM_HYPOTHESES = 400
_NUM_NEIGHBOURS = 16
_MIN_FLATNESS = 8.0  # narrower side over thickness


@dataclass(frozen=True, kw_only=True, eq=False)
class Upright:
    """The direction of up, and what it is worth."""

    direction: Float64  # [3] unit, in the frame of the reconstruction
    stddev_deg: float
    how: str


@dataclass(frozen=True, kw_only=True, eq=False)
class _View:
    """The axes of one camera in the world, and what its photograph says."""

    world_from_cam: Float64  # [3, 3]
    info: ImageInfo


def find_up(model: pycolmap.Reconstruction, images: ImageSet) -> Upright:
    """Finds the direction of up in a reconstruction.

    By gravity that the photographs carry, where it agrees with how they are shown and
    with each other. Else by the cameras, which people hold level: up is square to their
    horizontal axes, and roughly the mean of their vertical ones; the latter alone where
    the cameras turn by less than 40 degrees. Then large planes of points that may be
    level or vertical, by how well up is known, make it more exact.

    Args:
        model: Has at least one registered image.
        images: Their headers; the model's names are among them.
    """
    views = [
        _View(
            world_from_cam=image.cam_from_world().rotation.inverse().matrix(),
            info=images.infos[image.name],
        )
        for image in (model.image(k) for k in sorted(model.reg_image_ids()))
    ]
    return _from_gravity(views) or _from_cameras(views, model)


def rotation_to_z(direction: Float64) -> Float64:
    """The shortest turn [3, 3] of a unit direction to +z."""
    x, y, z = direction
    if z < -1 + 1e-12:
        return np.diag([1.0, -1.0, -1.0])
    return np.array(
        [
            [1 - x * x / (1 + z), -x * y / (1 + z), -x],
            [-x * y / (1 + z), 1 - y * y / (1 + z), -y],
            [x, y, z],
        ]
    )


# --------------------------------------------------------------------------- gravity
def _from_gravity(views: Sequence[_View]) -> Upright | None:
    """Up by the photographs' sensors; None where there are few or they disagree."""
    known = [
        (view, view.info.gravity) for view in views if view.info.gravity is not None
    ]
    if len(known) < _MIN_SENSORS:
        return None
    believed = [
        -(view.world_from_cam @ np.array(gravity))
        for view, gravity in known
        if _is_upright(np.array(gravity), view.info.orientation)
    ]
    if 2 * len(believed) <= len(known):
        logger.warning(
            "gravity in the headers of %d images contradicts how they are shown in all"
            " but %d; it is not used",
            len(known),
            len(believed),
        )
        return None
    ups = np.array(believed)
    away = _angles_deg(ups, _median_direction(ups))
    near = away <= _MAX_DISAGREEMENT_DEG
    if near.sum() < _MIN_SENSORS or 2 * near.sum() <= len(known):
        logger.warning(
            "gravity in the headers of %d images differs by %.0f degrees (median) after"
            " reconstruction; it is not used",
            len(known),
            np.median(away),
        )
        return None
    up = _unit(ups[near].mean(axis=0))
    spread_deg = float(np.sqrt(np.mean(_angles_deg(ups[near], up) ** 2)))
    return Upright(
        direction=up,
        stddev_deg=math.hypot(_SENSOR_STDDEV_DEG, spread_deg / math.sqrt(near.sum())),
        how=(
            f"gravity in the headers of {near.sum()} of {len(views)} images, which"
            f" agree to {spread_deg:.1f} degrees (rms)"
        ),
    )


def _is_upright(gravity: Float64, orientation: int) -> bool:
    """Whether gravity points to the lower edge of the image as it is shown."""
    x, y = coords.upright_matrix(orientation) @ gravity[:2]
    if math.hypot(x, y) < _STEEP:
        return True
    return abs(math.degrees(math.atan2(x, y))) <= _MAX_TURN_DEG


def _median_direction(vectors: Float64) -> Float64:
    """The unit vector with the least sum of distances to these [N, 3]."""
    median = _unit(np.median(vectors, axis=0))
    for _ in range(20):
        weights = 1 / np.maximum(np.linalg.norm(vectors - median, axis=1), 1e-6)
        median = _unit(weights @ vectors)
    return median


# --------------------------------------------------------------------------- cameras
def _from_cameras(views: Sequence[_View], model: pycolmap.Reconstruction) -> Upright:
    """Up by how cameras are held, then by planes."""
    matrices = [coords.upright_matrix(view.info.orientation) for view in views]
    axes = np.array(
        [
            view.world_from_cam[:, :2] @ matrix.T
            for view, matrix in zip(views, matrices, strict=True)
        ]
    )
    right, ups = axes[:, :, 0], -axes[:, :, 1]
    forward = np.array([view.world_from_cam[:, 2] for view in views])
    mean_up = _median_direction(ups)
    information = np.zeros((3, 3))
    if np.linalg.norm(ups.mean(axis=0)) > 0.5:  # not of cameras that look down
        information += _square_to(mean_up) / _variance(_TILT_STDDEV_DEG)
    towards = mean_up if information.any() else -_unit(forward.mean(axis=0))
    yaw_deg = _yaw_range_deg(right)
    if yaw_deg >= _MIN_YAW_DEG:
        information += _level_axes(right, information, towards)
        how = f"the horizontal axes of {len(views)} cameras that turn"
    else:
        axis = _median_direction(right)
        information = _square_to(towards) / _variance(_TILT_STDDEV_DEG) + np.outer(
            axis, axis
        ) / _variance(_ROLL_STDDEV_DEG[1])
        how = f"the vertical axes of {len(views)} cameras that turn only"
    up, stddev_deg = _solve(information, towards)
    how += f" by {yaw_deg:.0f} degrees"
    planes = [
        (normal, share, level)
        for normal, share in _planes(model)
        if (level := _is_level(normal, up, information)) is not None
    ]
    if planes:
        refined, stddev_deg = _refine(up, information, planes)
        how += (
            f", then level or vertical planes of points ({len(planes)}), which changed"
            f" it by {_angles_deg(refined[None], up)[0]:.1f} degrees"
        )
        up = refined
    return Upright(direction=up, stddev_deg=stddev_deg, how=how)


def _yaw_range_deg(right: Float64) -> float:
    """The arc that horizontal axes [N, 3] would cover evenly, degrees in 0..180."""
    variance = float(np.linalg.eigvalsh(right.T @ right)[1]) / len(right)
    # Of axes that are all the same it is 0, which rounding may make negative.
    return math.degrees(2 * math.asin(math.sqrt(min(max(3 * variance, 0.0), 1.0))))


def _level_axes(right: Float64, prior: Float64, towards: Float64) -> Float64:
    """The information of horizontal axes [N, 3]; cameras that are rolled count less."""
    scale = min(len(right), _MAX_INDEPENDENT) / len(right)
    least_deg, stddev_deg = _ROLL_STDDEV_DEG
    information = np.zeros((3, 3))
    up = towards
    for _ in range(20):
        roll_deg = np.degrees(np.arcsin(np.clip(right @ up, -1, 1)))
        weights = 1 / (1 + (roll_deg / (2 * stddev_deg)) ** 2)
        information = (right.T * weights) @ right * scale / _variance(stddev_deg)
        up, _ = _solve(prior + information, towards)
        if len(right) > 3:  # two of the residuals are those of `up` itself
            seen_deg = 1.4826 * float(np.median(np.abs(roll_deg)))
            seen_deg *= math.sqrt(len(right) / (len(right) - 2))
            stddev_deg = min(max(seen_deg, least_deg), _ROLL_STDDEV_DEG[1])
    return information


# ---------------------------------------------------------------------------- planes
def _planes(model: pycolmap.Reconstruction) -> list[tuple[Float64, float]]:
    """Large planes: their unit normals, and their shares of the points."""
    points = np.array(
        [p.xyz for p in model.points3D.values() if p.track.length() >= 3], np.float64
    ).reshape(-1, 3)
    if len(points) < _MIN_PLANE_POINTS:
        return []
    rng = np.random.default_rng(0)
    if len(points) > _MAX_PLANE_POINTS:
        points = points[rng.choice(len(points), _MAX_PLANE_POINTS, replace=False)]
    centres = np.array(
        [model.image(k).projection_center() for k in model.reg_image_ids()]
    )
    middle = np.median(points, axis=0)
    thickness = 0.01 * float(np.median(np.linalg.norm(centres - middle, axis=1)))
    total = len(points)
    found: list[tuple[Float64, float]] = []
    while len(found) < _MAX_PLANES and len(points) >= _MIN_PLANE_SHARE * total:
        normal, inliers = _largest_plane(points, thickness, rng)
        if inliers.sum() < _MIN_PLANE_SHARE * total:
            break
        flat = points[inliers] - points[inliers].mean(axis=0)
        sides = np.linalg.svd(flat, compute_uv=False)
        if sides[1] > _MIN_FLATNESS * sides[2]:
            found.append((normal, float(inliers.sum()) / total))
        points = points[~inliers]
    return found


def _largest_plane(
    points: Float64, thickness: float, rng: np.random.Generator
) -> tuple[Float64, Mask]:
    """The normal and the points of the plane that most of these points lie on."""
    seeds = rng.choice(
        len(points), min(len(points), _NUM_HYPOTHESES), replace=False, shuffle=False
    )
    _, neighbours = KDTree(points).query(points[seeds], k=_NUM_NEIGHBOURS)
    local = points[neighbours]
    centres = local.mean(axis=1)
    normals = np.linalg.svd(local - centres[:, None])[2][:, 2]
    distances = np.abs(points @ normals.T - np.einsum("ij,ij->i", normals, centres))
    best = int((distances < thickness).sum(axis=0).argmax())
    normal, inliers = normals[best], distances[:, best] < thickness
    for _ in range(5):
        if inliers.sum() < 3:  # cameras amid the points: the thickness is next to 0
            break
        centre = points[inliers].mean(axis=0)
        normal = np.linalg.svd(points[inliers] - centre, full_matrices=False)[2][2]
        inliers = np.abs((points - centre) @ normal) < thickness
    return normal, inliers


def _is_level(normal: Float64, up: Float64, information: Float64) -> bool | None:
    """Whether a plane is a floor (True) or a wall (False), or neither (None)."""
    values, vectors = np.linalg.eigh(information)
    variance = 1 / np.maximum(values[1:] - values[0], 1e-9)
    covariance = (vectors[:, 1:] * variance) @ vectors[:, 1:].T
    along = float(normal @ up)
    from_up_deg = math.degrees(math.acos(min(1.0, abs(along))))
    if from_up_deg <= _MAX_FLOOR_ANGLE_DEG:
        across = normal - along * up
        spread = covariance + _variance(_PLANE_STDDEV_DEG) * np.eye(3)
        sigmas = math.sqrt(max(float(across @ np.linalg.solve(spread, across)), 0.0))
        return True if sigmas <= _MAX_SIGMAS else None
    if 90 - from_up_deg <= _MAX_WALL_ANGLE_DEG:
        spread = normal @ covariance @ normal + _variance(_PLANE_STDDEV_DEG)
        return False if abs(along) <= _MAX_SIGMAS * math.sqrt(spread) else None
    return None


def _refine(
    up: Float64, information: Float64, planes: Sequence[tuple[Float64, float, bool]]
) -> tuple[Float64, float]:
    """Up and its standard deviation in degrees; planes that disagree count little."""
    towards, stddev_deg = up, 0.0
    for _ in range(20):
        total = information.copy()
        for normal, share, level in planes:
            from_up = math.degrees(math.acos(min(1.0, abs(float(normal @ up)))))
            away = from_up if level else 90 - from_up
            weight = min(1.0, share / _FULL_PLANE_SHARE)
            weight /= 1 + (away / (2 * _PLANE_STDDEV_DEG)) ** 2
            form = _square_to(normal) if level else np.outer(normal, normal)
            total += weight * form / _variance(_PLANE_STDDEV_DEG)
        up, stddev_deg = _solve(total, towards)
    return up, stddev_deg


# ----------------------------------------------------------------------------- forms
def _solve(information: Float64, towards: Float64) -> tuple[Float64, float]:
    """The unit vector of least error, and its standard deviation in degrees."""
    values, vectors = np.linalg.eigh(information)
    up = vectors[:, 0] * (1 if vectors[:, 0] @ towards >= 0 else -1)
    return up, math.degrees(1 / math.sqrt(max(values[1] - values[0], 1e-9)))


def _square_to(direction: Float64) -> Float64:
    """The form that is the squared sine of the angle to `direction`."""
    form: Float64 = np.eye(3) - np.outer(direction, direction)
    return form


def _variance(stddev_deg: float) -> float:
    return math.radians(stddev_deg) ** 2


def _unit(vector: Float64) -> Float64:
    norm = np.linalg.norm(vector)
    return vector / norm if norm > 0 else np.array([0.0, 0.0, 1.0])


def _angles_deg(vectors: Float64, direction: Float64) -> Float64:
    """Angles of unit [N, 3] to a unit direction, degrees in 0..180."""
    angles: Float64 = np.degrees(np.arccos(np.clip(vectors @ direction, -1, 1)))
    return angles
