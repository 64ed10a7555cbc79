"""The last bundle adjustment of a model, and when principal points move in it."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping
from functools import partial
from statistics import NormalDist
from types import MappingProxyType
from typing import Literal, cast

import numpy as np
import pycolmap

from sfmprep.config import MappingConfig
from sfmprep.errors import ReconstructionError
from sfmprep.geometry.adjustment import cameras_in, config_of
from sfmprep.geometry.robust import LOSS_SCALE, MEAN_LENGTH
from sfmprep.geometry.triangulate import reprojection_errors
from sfmprep.geometry.uncertainty import (
    MIN_IMAGES_OF_CENTRE,
    principal_point_deviations,
)
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.lenses import is_plausible
from sfmprep.mapping.solver import choose_solver
from sfmprep.types import Float64, Mask

logger = logging.getLogger(__name__)

Refine = Literal["none", "focal", "all"]

_MIN_IMAGES = 8  # of a camera whose distortion is to be told
# Of principal points, as a share of the longer side: lenses and sensors are centred to
# about that.
_PRIOR_DEVIATION = 0.01
# Residuals are not independent: principal points that are known (fountain-P11,
# Herz-Jesus-P8, fox, whole and thinned) were missed by three times what they promise.
_OVERDISPERSION = 3.0
# By chance one of all principal points moves as seldom as one alone at two deviations.
_CHANCE = 0.0455
_MAX_OFFSET = 0.1  # of the side of the image
# Of the longer side: by 0.13 to 0.2 % known principal points were missed whatever the
# number of points, for keypoints err systematically (the same three, and the demo).
_LEAST_OFFSET = 0.0025
_FINAL_BA_ITERATIONS = 100
TOLERANCE = 1e-7  # of the loss: a focal length of 450 px moves by less than 0.01 px
# The same of Cauchy's, which falls more slowly: AUC@1 of fox, fountain-P11 and
# Herz-Jesus-P8 as with 1e-7, in 0.3 of the time, and two points less with 1e-4.
_ROBUST_TOLERANCE = 1e-5
# Where it begins near its end: AUC@1 of the same three, of which one photograph came
# later, is within 0.04 of that with 1e-7.
_NEAR_TOLERANCE = 1e-4
# Times the scale of the loss, a keypoint weighs a sixtieth of one that fits, and is
# dropped; but none is that COLMAP's filter keeps.
_LOST, _LOST_PX = 8.0, 4.0


def refine_model(
    model: pycolmap.Reconstruction,
    config: MappingConfig,
    *,
    refine: Refine = "all",
    known_centres: Collection[int] = (),
) -> pycolmap.Reconstruction:
    """Returns a copy of a model after a last bundle adjustment.

    Errors count as in Cauchy's loss, whose scale is taken from those of the copy
    adjusted without it: most keypoints are far more exact than the few that are not, of
    refined ones above all.

    Lenses of many coefficients get those that are still zero where eight images or more
    share the camera; a lens that then is none (see `is_plausible`) keeps what it had.

    Principal points move only after everything else has settled. With
    `refine_principal_point: auto` each coordinate moves as far as the errors tell it: a
    share s^2 / (s^2 + e^2) of the way to where they are least, for a prior deviation s
    of 1 % of the image's longer side and the deviation e of the estimate, three times
    that of `principal_point_deviations`. So one that is told well moves to where it is
    told. One stays that is told by less than two deviations (more, where several
    cameras ask), that would move by less than 0.25 % of the longer side, which is what
    keypoints err by, or be more than a tenth of the image's side from the middle. Those
    of cameras of one or two images stay, and those whose lens is held back.

    At last keypoints are dropped that miss their points by 19 standard deviations and
    4 pixels, and points behind their images.

    Args:
        model: It stays as it is.
        config: When principal points move.
        refine: What of the cameras may change; principal points only with `all`.
        known_centres: Ids of cameras whose principal point stays with `auto`.

    Raises:
        ReconstructionError: COLMAP found no solution.
    """
    held = _held_back(model)
    model = _with_lenses(model, refine, held, None)
    loss_scale = LOSS_SCALE * noise_px(model)
    model = _with_lenses(model, refine, held, loss_scale)
    if refine == "all":
        model = _with_told_centres(model, config, held, known_centres, loss_scale)
    _drop_lost(model, loss_scale)
    return model


def refine_further(
    model: pycolmap.Reconstruction,
    config: MappingConfig,
    *,
    known_centres: Collection[int] = (),
) -> pycolmap.Reconstruction:
    """Returns a copy of a refined model with a few more images, adjusted to them.

    As `refine_model`, from where the model is: its own errors tell the scale of the
    loss, and principal points move at once with all else. What they move by counts from
    the middle of the image.

    Args:
        model: It stays as it is.
        config: When principal points move.
        known_centres: Ids of cameras whose principal point stays with `auto`.

    Raises:
        ReconstructionError: COLMAP found no solution.
    """
    old = {key: image_middle(model.cameras[key]) for key in cameras_in(model)}
    held = _held_back(model)
    cameras = {key: model.cameras[key] for key in cameras_in(model).keys() - held}
    is_near = not any(_has_zeros(camera) for camera in cameras.values())
    tolerance = _NEAR_TOLERANCE if is_near else None
    loss_scale = LOSS_SCALE * noise_px(model)
    found = _with_told_centres(
        *(model, config, held, known_centres, loss_scale),
        old=old,
        tolerance=tolerance,
    )
    if found is model or not all(
        is_plausible(found.cameras[key], cameras[key]) for key in cameras
    ):
        found = _with_lenses(model, "all", held, loss_scale, tolerance)
    _drop_lost(found, loss_scale)
    return found


def _held_back(model: pycolmap.Reconstruction) -> set[int]:
    """Cameras of few images whose lens has all but the first coefficient zero still."""
    fewer = _cameras_of_fewer(model, _MIN_IMAGES)
    return {key for key in fewer if _has_zeros(model.cameras[key])}


def _has_zeros(camera: pycolmap.Camera) -> bool:
    extra = np.array(camera.params)[list(camera.extra_params_idxs())]
    return len(extra) > 1 and not extra[1:].any()


def _with_told_centres(
    model: pycolmap.Reconstruction,
    config: MappingConfig,
    held: Collection[int],
    known_centres: Collection[int],
    loss_scale: float,
    *,
    old: Mapping[int, Float64] = MappingProxyType({}),
    tolerance: float | None = None,
) -> pycolmap.Reconstruction:
    """A copy adjusted to the principal points that errors tell; `model` if none moves.

    Args:
        model: It stays as it is.
        config: When principal points move.
        held: Cameras whose lens stays.
        known_centres: Cameras whose principal point stays with `auto`.
        loss_scale: See `adjust`.
        old: Where principal points are that nothing tells, if not where they are.
        tolerance: See `adjust`.
    """
    when = config.refine_principal_point
    still = set(held)
    if when == "auto":
        still |= cameras_in(model).keys() & set(known_centres)
        still |= _cameras_of_fewer(model, MIN_IMAGES_OF_CENTRE)
    free = cameras_in(model).keys() - still
    if when == "never" or not free:
        return model
    robust = partial(adjust, loss_scale=loss_scale, tolerance=tolerance)
    moved = pycolmap.Reconstruction(model)
    robust(moved, centres=True, fixed=still)
    if when == "always":
        return moved
    here = {key: _centre(model.cameras[key]) for key in free}
    told = _told_centres({key: old.get(key, here[key]) for key in free}, moved)
    if all((told[key] == here[key]).all() for key in free):
        return model
    for key, centre in told.items():
        set_centre(moved.cameras[key], centre)
    robust(moved, fixed=held)
    return moved


def _with_lenses(
    model: pycolmap.Reconstruction,
    refine: Refine,
    held: set[int],
    loss_scale: float | None,
    tolerance: float | None = None,
) -> pycolmap.Reconstruction:
    """An adjusted copy; cameras whose lens would be none any more join those held."""
    before = model
    while True:
        model = pycolmap.Reconstruction(before)
        adjust(
            model,
            refine=refine,
            loss_scale=loss_scale,
            fixed=held,
            tolerance=tolerance,
        )
        lost = {
            key
            for key in cameras_in(model).keys() - held
            if not is_plausible(model.cameras[key], before.cameras[key])
        }
        if not lost:
            return model
        logger.info("the lenses of cameras %s stay as they were", sorted(lost))
        held |= lost


def _drop_lost(model: pycolmap.Reconstruction, loss_scale: float) -> None:
    """Drops what is so far from its keypoint, or behind it, that it counts for nothing.

    Nothing holds a point where a robust loss lets go of all that sees it.
    """
    arrays = ModelArrays.of(model)
    errors = reprojection_errors(arrays.views, arrays.observations, arrays.xyz)
    lost = np.flatnonzero(~(errors <= max(_LOST * loss_scale, _LOST_PX)))
    image_ids = arrays.views.ids[arrays.observations.view[lost]].tolist()
    keypoints = arrays.observations.keypoint[lost].tolist()
    for image_id, row in zip(image_ids, keypoints, strict=True):
        # a point goes with its last but one
        if model.images[image_id].points2D[row].has_point3D():
            model.delete_observation(image_id, row)
    if len(lost):
        logger.debug("%d keypoints fit no point any more", len(lost))
        model.update_point_3d_errors()


def _told_centres(
    old: Mapping[int, Float64], moved: pycolmap.Reconstruction
) -> dict[int, Float64]:
    """Where errors and prior together put principal points.

    Args:
        old: Where they are if nothing tells them, by camera id.
        moved: The model with those that make the errors least.
    """
    told: dict[int, Float64] = {}
    steps = {key: _centre(moved.cameras[key]) - old[key] for key in sorted(old)}
    if any(_are_large(steps[key], moved.cameras[key]).any() for key in old):
        told = principal_point_deviations(moved, cameras_in(moved).keys() - old.keys())
    least = NormalDist().inv_cdf(1 - _CHANCE / 2 / len(old))
    centres = {}
    for key, step in steps.items():
        camera = moved.cameras[key]
        size = np.array([camera.width, camera.height])
        deviation = _OVERDISPERSION * told.get(key, np.full(2, np.inf))
        prior = _PRIOR_DEVIATION * size.max()
        taken = step * prior**2 / (prior**2 + deviation**2)
        is_told = abs(step) > least * deviation
        is_told &= _are_large(taken, camera)
        is_far = is_told & (abs(_centre(camera) - size / 2) > _MAX_OFFSET * size)
        if is_far.any():
            logger.info(
                "the principal point of camera %d would move by %s px and stays",
                *(key, " and ".join(f"{pixels:.0f}" for pixels in step[is_far])),
            )
        taken[~is_told | is_far] = 0
        centres[key] = old[key] + taken
        logger.debug("principal point %d: %s of %s px", key, taken, step)
    return centres


def _are_large(steps: Float64, camera: pycolmap.Camera) -> Mask:
    """Whether steps [2] of a principal point are more than keypoints err by."""
    return abs(steps) > _LEAST_OFFSET * max(camera.width, camera.height)


def image_middle(camera: pycolmap.Camera) -> Float64:
    """The middle [2] of its image, pixels."""
    return np.array([camera.width, camera.height]) / 2


def _centre(camera: pycolmap.Camera) -> Float64:
    return np.array([camera.principal_point_x, camera.principal_point_y])


def set_centre(camera: pycolmap.Camera, centre: Float64) -> None:
    """Moves the principal point of a camera to a place [2] in pixels."""
    params = np.array(camera.params)
    params[list(camera.principal_point_idxs())] = centre
    camera.params = params.tolist()


def _cameras_of_fewer(model: pycolmap.Reconstruction, images: int) -> set[int]:
    return {key for key, count in cameras_in(model).items() if count < images}


def noise_px(model: pycolmap.Reconstruction) -> float:
    """About the standard deviation of keypoints in x and in y.

    It is from the errors of points, which are smaller: a point follows its keypoints,
    by a fifth of the deviation where there are four. Of two images, three of the four
    coordinates that see a point place it, so twice the errors count; where they are
    normal that still lacks a quarter.
    """
    errors = [point.error for point in model.points3D.values()]
    if not errors:
        return 1.0
    factor = 2.0 if model.num_reg_images() == 2 else 1.0
    return max(factor * float(np.median(errors)) / MEAN_LENGTH, 1e-6)


def adjust(
    model: pycolmap.Reconstruction,
    *,
    refine: Refine = "all",
    loss_scale: float | None = None,
    centres: bool = False,
    fixed: Collection[int] = (),
    tolerance: float | None = None,
) -> None:
    """Adjusts in place; with a scale in pixels, by Cauchy's loss.

    With `centres`, principal points move; nothing does of cameras that are `fixed`.
    It ends where a step makes the loss smaller by no more than the share `tolerance`;
    None: 1e-7, and 1e-5 of Cauchy's loss.
    """
    if tolerance is None:
        tolerance = TOLERANCE if loss_scale is None else _ROBUST_TOLERANCE
    options = pycolmap.BundleAdjustmentOptions()
    if loss_scale is not None:
        options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
        options.ceres.loss_function_scale = loss_scale
    options.print_summary = False
    options.refine_focal_length = refine != "none"
    options.refine_extra_params = refine == "all"
    options.refine_principal_point = centres
    options.ceres.solver_options.max_num_iterations = _FINAL_BA_ITERATIONS
    options.ceres.solver_options.function_tolerance = tolerance
    choose_solver(options, model)
    config = config_of(model, fixed)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    adjuster = pycolmap.create_default_ceres_bundle_adjuster(options, config, model)
    # The stubs know the base class alone.
    summary = cast(pycolmap.CeresBundleAdjustmentSummary, adjuster.solve())
    if not summary.is_solution_usable():
        raise ReconstructionError(
            f"the last bundle adjustment of {model.num_reg_images()} images failed"
            f" ({summary.termination_type.name}); please report it with the database."
        )
    model.update_point_3d_errors()
