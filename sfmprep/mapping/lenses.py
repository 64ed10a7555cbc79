"""Lens models with many parameters: held back until there is enough to find them by.

Two views do not tell four coefficients of distortion apart: in the first adjustments
they run away, and the images that follow find no place. So models are mapped with the
first of their coefficients alone, and get the others when all poses are known.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import pycolmap

from sfmprep.types import Float64

_Model = pycolmap.CameraModelId
# Their first coefficient means the same, their others are held at zero.
_SIMPLER = {
    _Model.RADIAL: _Model.SIMPLE_RADIAL,
    _Model.OPENCV: _Model.SIMPLE_RADIAL,
    _Model.FULL_OPENCV: _Model.SIMPLE_RADIAL,
    _Model.RADIAL_FISHEYE: _Model.SIMPLE_RADIAL_FISHEYE,
    _Model.OPENCV_FISHEYE: _Model.SIMPLE_RADIAL_FISHEYE,
}
_NUM_SAMPLES = 1000
_MAX_CHANGE = 1.5  # of the focal length, when the others are set free


def simplify_lenses(
    database: pycolmap.Database, known: Collection[int]
) -> dict[int, pycolmap.CameraModelId]:
    """Gives cameras of many coefficients a model of one, unless some are known.

    Args:
        database: It is changed.
        known: Ids of cameras that stay as they are.

    Returns:
        The models that they had, by id, for `restore_lenses`.
    """
    had = {}
    for camera in database.read_all_cameras():
        extra = np.array(camera.params)[list(camera.extra_params_idxs())]
        if camera.camera_id in known or extra.any():
            continue
        if camera.model in _SIMPLER:
            had[camera.camera_id] = camera.model
            change_model(camera, _SIMPLER[camera.model])
            database.update_camera(camera)
    return had


def restore_lenses(
    model: pycolmap.Reconstruction, had: Mapping[int, pycolmap.CameraModelId]
) -> None:
    """Gives the cameras of a model back the models that `simplify_lenses` took."""
    for key, kind in had.items():
        if key in model.cameras:
            change_model(model.cameras[key], kind)


def change_model(camera: pycolmap.Camera, model: pycolmap.CameraModelId) -> None:
    """Gives a camera another model of the same kind, its new coefficients zero."""
    old = np.array(camera.params)
    extra = old[list(camera.extra_params_idxs())]
    like = pycolmap.Camera.create_from_model_id(
        0, model, camera.mean_focal_length(), camera.width, camera.height
    )
    params = np.array(like.params)
    params[list(like.principal_point_idxs())] = old[list(camera.principal_point_idxs())]
    both = list(like.extra_params_idxs())[: len(extra)]
    params[both] = extra[: len(both)]
    camera.model = model
    camera.params = params.tolist()


def with_model(
    camera: pycolmap.Camera, model: pycolmap.CameraModelId
) -> pycolmap.Camera:
    """A copy with another model, which images as much as it can as the camera does."""
    copy = pycolmap.Camera(camera.todict())
    was_fisheye = copy.is_perspective_fisheye()
    like = pycolmap.Camera.create_from_model_id(0, model, 1, 1, 1)
    if was_fisheye or not like.is_perspective_fisheye():
        change_model(copy, model)
        return copy
    # r = f (a + k1 a^3 + k2 a^5 ...) of the angle a from the axis, to the corner
    angle, radius = _curve(camera)
    extra = range(len(like.extra_params_idxs()))
    powers = angle[:, None] ** np.array([1, *(2 * k + 3 for k in extra)])
    found = np.linalg.lstsq(powers, radius, rcond=None)[0]
    change_model(copy, _Model.SIMPLE_PINHOLE)
    change_model(copy, model)
    params = np.array(copy.params)
    params[list(copy.focal_length_idxs())] = found[0]
    params[list(copy.extra_params_idxs())] = found[1:] / found[0]
    copy.params = params.tolist()
    return copy


def is_plausible(camera: pycolmap.Camera, before: pycolmap.Camera) -> bool:
    """Whether a lens that was set free is still one.

    What it images must move outwards with the angle from the axis as far as the corner
    that is farthest from the principal point, and the focal length must be within half
    as much again as before. How `before` is distorted does not count.
    """
    ratio = camera.mean_focal_length() / before.mean_focal_length()
    if not 1 / _MAX_CHANGE <= ratio <= _MAX_CHANGE:
        return False
    return is_monotonic(camera)


def is_monotonic(camera: pycolmap.Camera) -> bool:
    """Whether no two angles from the axis share a place between middle and corners.

    Rays behind the camera, which COLMAP does not image, do not count.
    """
    angle, radius = _curve(camera)
    if len(angle) == _NUM_SAMPLES:
        return True
    return bool(radius[-1] >= _to_corner(camera)[1])


def _curve(camera: pycolmap.Camera) -> tuple[Float64, Float64]:
    """Angles from the axis and how far from the principal point they are imaged, px.

    Both rise: they end behind the farthest corner, before the lens folds, or at 90
    degrees.
    """
    towards, distance = _to_corner(camera)
    angle = np.linspace(0, np.pi / 2, _NUM_SAMPLES, endpoint=False)
    rays = np.column_stack([np.sin(angle)[:, None] * towards, np.cos(angle)])
    xy = np.asarray(camera.img_from_cam(rays), np.float64)
    centre = np.array([camera.principal_point_x, camera.principal_point_y])
    radius = np.linalg.norm(xy - centre, axis=1)
    ends = ~(np.diff(radius) > 0) | (radius[:-1] >= distance)  # NaN does not grow
    end = int(ends.argmax()) + 1 if ends.any() else len(angle)
    return angle[:end], radius[:end]


def _to_corner(camera: pycolmap.Camera) -> tuple[Float64, float]:
    """The direction [2] from the principal point to the farthest corner; its pixels."""
    centre = np.array([camera.principal_point_x, camera.principal_point_y])
    size = np.array([camera.width, camera.height])
    corner = np.where(centre > size / 2, 0.0, size) - centre
    distance = float(np.linalg.norm(corner))
    return corner / distance, distance
