"""How certain poses, points and principal points are, one standard deviation.

What the photographs say is blurred by the noise of the keypoints. Its size is taken
from the model's own reprojection errors; the rest follows from the geometry.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap

from sfmprep.coords import beyond_rounding
from sfmprep.geometry.adjustment import cameras_in, config_of
from sfmprep.geometry.blocks import blocks
from sfmprep.geometry.robust import LOSS_SCALE, deviation_of
from sfmprep.geometry.triangulate import relative_stddev, reprojection_errors
from sfmprep.geometry.views import ModelArrays, Views
from sfmprep.types import Float64

logger = logging.getLogger(__name__)

MAX_IMAGES = 500
"""Above that, poses' uncertainties are those in blocks: they need a dense inverse.

Measured with 8 cameras a point on one core: 50 images 0.2 s, 300 images 4 s, 500 images
15 s and 1.2 GB; of 1000 images COLMAP's part alone takes 77 s and 3.5 GB.
"""
_BLOCK_IMAGES = 250
_MIN_IMAGES = 2
MIN_IMAGES_OF_CENTRE = 3  # with fewer, turns of the images do what it does
_MAX_DATUM_RATIO = 3.0


@dataclass(frozen=True, kw_only=True)
class PoseUncertainty:
    """How well the photographs fix a camera, one standard deviation.

    Both are along the most uncertain axis, relative to the cameras as a whole: see
    `pose_uncertainties`.
    """

    rotation_stddev_deg: float
    position_stddev: float  # world units


def pose_uncertainties(
    model: pycolmap.Reconstruction, arrays: ModelArrays
) -> dict[str, PoseUncertainty]:
    """The uncertainty of every registered camera, with points and lenses free.

    COLMAP's bundle adjustment covariance holds three points still, which makes cameras
    look the worse the further they are from these. It is moved to the frame that fits
    the cameras as a whole: of all rotations, translations and scales of the world, that
    which changes their poses least (Baarda's S-transformation), angles counted in
    radians and positions in root mean square distances from the middle. Cameras more
    than three times as uncertain as the median do not take part in fixing it. So no
    camera is perfect by definition, and a number says how far this camera may be off
    while the others stay where they are. It agrees with the spread of poses adjusted
    from keypoints with noise (8 synthetic images, 200 runs) within a tenth.

    Of more than `MAX_IMAGES` cameras, those that stay are a block of some 250 that see
    the same points, and some around it: how blocks may drift against each other is not
    said.

    Args:
        model: Not changed.
        arrays: Of this model.

    Returns:
        By image name; empty, with the reason in the log, where COLMAP finds no
        covariance, or with fewer than two images. Of more than `MAX_IMAGES`, those of a
        block for which it finds none are missing.
    """
    views, noise = arrays.views, noise_px(arrays)
    if len(views) <= MAX_IMAGES:
        return _uncertainties(model, views, noise)
    found: dict[str, PoseUncertainty] = {}
    for core, block in blocks(arrays, _BLOCK_IMAGES):
        of_block = _uncertainties(block, Views.of(block), noise)
        names = [views.names[row] for row in core.tolist()]
        found |= {name: of_block[name] for name in names if name in of_block}
    return found


def _uncertainties(
    model: pycolmap.Reconstruction, views: Views, noise: float
) -> dict[str, PoseUncertainty]:
    """Those of all cameras of a model, relative to these as a whole."""
    if len(views) < _MIN_IMAGES:
        logger.info("the uncertainty of poses needs two images, not %d", len(views))
        return {}
    covariance = _covariance(model, views)
    if covariance is None:
        logger.warning(
            "the uncertainty of the %d poses cannot be computed: some camera, point or"
            " lens parameter is not fixed by the photographs",
            len(views),
        )
        return {}
    covariance *= noise**2
    covariance = _relative_to_the_whole(covariance, views.centres)
    blocks = _diagonal_blocks(covariance)
    rotation, position = (
        _largest_axis(blocks[:, :3, :3]),
        _largest_axis(blocks[:, 3:, 3:]),
    )
    return {
        name: PoseUncertainty(
            rotation_stddev_deg=math.degrees(angle), position_stddev=distance
        )
        for name, angle, distance in zip(
            views.names, rotation.tolist(), position.tolist(), strict=True
        )
    }


def principal_point_deviations(
    model: pycolmap.Reconstruction, fixed: Collection[int] = ()
) -> dict[int, Float64]:
    """How well photographs fix principal points, with poses, points and lenses free.

    Of a model of more than `MAX_IMAGES` images, a camera is asked in that block of some
    250 that has most of its images (see `geometry.blocks`), which all of them would
    tell better.

    Args:
        model: Not changed.
        fixed: Ids of cameras that are known.

    Returns:
        By camera id standard deviations [2] in pixels; those are missing that nothing
        fixes, and those of cameras of fewer than three images in any block.
    """
    arrays = ModelArrays.of(model)
    noise = noise_px(arrays)
    parts: Iterable[pycolmap.Reconstruction] = [model]
    if len(arrays.views) > MAX_IMAGES:
        parts = (part for _, part in blocks(arrays, _BLOCK_IMAGES))
    most: dict[int, tuple[int, pycolmap.Reconstruction]] = {}
    for part in parts:
        counts = cameras_in(part)
        for key in counts.keys() - set(fixed):
            if counts[key] > most.get(key, (MIN_IMAGES_OF_CENTRE - 1, part))[0]:
                most[key] = counts[key], part
    asked: dict[int, tuple[pycolmap.Reconstruction, list[int]]] = {}
    for key, (_, part) in most.items():
        asked.setdefault(id(part), (part, []))[1].append(key)
    found: dict[int, Float64] = {}
    for part, keys in asked.values():
        found |= _centre_deviations(part, keys, noise)
    return found


def point_uncertainties(arrays: ModelArrays) -> dict[int, float]:
    """The uncertainty of every point, with the poses as they are.

    Returns:
        By point id: the standard deviation along the point's most uncertain axis as a
        share of its distance to the nearest camera that sees it; infinite where its
        rays are parallel. Empty for a model without points.
    """
    stddev = relative_stddev(
        arrays.views, arrays.observations, arrays.xyz, noise_px(arrays)
    )
    return dict(zip(arrays.point_ids.tolist(), stddev.tolist(), strict=True))


def noise_px(arrays: ModelArrays) -> float:
    """The standard deviation of a keypoint's coordinate, as the residuals tell.

    The variance of a Cauchy M-estimate from these residuals, E[psi^2] / E[psi']^2
    (Huber, Annals of Mathematical Statistics 35, 1964), with the loss of
    `adjust.refine_model`: wrong matches, which a robust adjustment leaves as they are,
    count by what they still pull. Times their number over what the parameters of
    points, poses and cameras leave of it. 0 for a model without points.
    """
    errors = reprojection_errors(arrays.views, arrays.observations, arrays.xyz)
    errors = errors[np.isfinite(errors)]
    scale = LOSS_SCALE * deviation_of(errors, 2) if len(errors) else 0
    if scale == 0:
        return 0.0
    weights = 1 / (1 + (errors / scale) ** 2)
    pulls = (weights * errors) ** 2
    stddev = math.sqrt(pulls.mean() / 2) / float((weights - pulls / scale**2).mean())
    parameters = 3 * len(arrays.xyz) + 6 * len(arrays.views) - 7
    redundancy = max(2 * len(errors) - parameters, 1)
    return stddev * math.sqrt(2 * len(errors) / redundancy)


# ------------------------------------------------------------------- COLMAP's part
def _estimated(
    model: pycolmap.Reconstruction,
    params: pycolmap.BACovarianceOptionsParams,
    options: pycolmap.BundleAdjustmentOptions,
    fixed: Collection[int] = (),
) -> pycolmap.BACovariance | None:
    """The covariance of an adjustment for one pixel of noise, if COLMAP finds one."""
    if not model.num_points3D() or not model.is_valid():
        return None
    config = config_of(model, fixed)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.THREE_POINTS)
    adjuster = pycolmap.create_default_ceres_bundle_adjuster(options, config, model)
    wanted = pycolmap.BACovarianceOptions()
    wanted.params = params
    return pycolmap.estimate_ba_covariance(wanted, model, adjuster)


# --------------------------------------------------------------- principal points
def _centre_deviations(
    model: pycolmap.Reconstruction, asked: Collection[int], noise: float
) -> dict[int, Float64]:
    """Those of some cameras; the others are fixed."""
    model = pycolmap.Reconstruction(model)
    model.tear_down()  # COLMAP's estimate stops at images without a pose
    options = pycolmap.BundleAdjustmentOptions()
    options.refine_principal_point = True
    # with less than all, what COLMAP tells of lenses is wrong
    params = pycolmap.BACovarianceOptionsParams.ALL
    fixed = cameras_in(model).keys() - set(asked)
    covariance = _estimated(model, params, options, fixed)
    if covariance is None:
        logger.info("the photographs fix no principal point of %s", sorted(asked))
        return {}
    found = {}
    for key in sorted(asked):
        camera = model.cameras[key]
        own = covariance.get_other_params_cov(camera.params)
        if own is None or own.shape != (len(camera.params),) * 2:
            continue
        variance = np.diag(own)[list(camera.principal_point_idxs())]
        if np.isfinite(variance).all() and (variance > 0).all():
            found[key] = noise * np.sqrt(variance)
    return found


# --------------------------------------------------------------------------- poses
def _covariance(model: pycolmap.Reconstruction, views: Views) -> Float64 | None:
    """[6 V, 6 V] of turns in world axes (radians) and centres, for one pixel of noise.

    None where COLMAP finds none, for all cameras or for one.
    """
    params = pycolmap.BACovarianceOptionsParams.POSES
    found = _estimated(model, params, pycolmap.BundleAdjustmentOptions())
    if found is None:
        return None
    ids = views.ids.tolist()
    joint = np.empty((len(ids), 6, len(ids), 6))
    for i, image_id in enumerate(ids):
        own = found.get_cam_cov_from_world(image_id)
        if own is None or own.shape != (6, 6):
            return None
        joint[i, :, i] = own
        for j in range(i):
            cross = found.get_cam_cross_cov_from_world(image_id, ids[j])
            joint[i, :, j] = cross
            joint[j, :, i] = np.asarray(cross).T
    if not np.isfinite(joint).all():
        return None
    return _in_world(joint, views)


def _in_world(joint: Float64, views: Views) -> Float64:
    """From COLMAP's tangent space to turns and centres in world axes.

    Ceres' quaternions are turned from the left by twice the tangent vector (measured
    against a numerical derivative), and centre = -R^T t.
    """
    back = np.swapaxes(views.rotations, 1, 2)
    change = np.zeros((len(views), 6, 6))
    change[:, :3, :3] = 2 * back
    change[:, 3:, 3:] = -back
    # A turned camera at the same t: its centre goes to the other side of the origin.
    change[:, 3:, :3] = _cross(views.centres) @ change[:, :3, :3]
    joint = np.einsum("iab,ibjc,jdc->iajd", change, joint, change, optimize=True)
    size = 6 * len(views)
    return joint.reshape(size, size)


def _relative_to_the_whole(covariance: Float64, centres: Float64) -> Float64:
    """The covariance in the frame that the well known cameras fix together."""
    offsets = centres - np.median(centres, axis=0)
    spread = float(np.sqrt((offsets**2).sum(axis=1).mean()))
    spread = beyond_rounding(spread, centres) or 1.0
    scale = np.tile([1.0, 1.0, 1.0, spread, spread, spread], len(centres))
    covariance = covariance / np.outer(scale, scale)
    motions = _motions(offsets / spread)
    everyone = range(len(centres))
    covariance = _fixed_by(covariance, motions, everyone)
    size = np.trace(_diagonal_blocks(covariance), axis1=1, axis2=2)
    size = np.sqrt(np.maximum(size, 0))  # rounding, where the others fix a camera
    known = np.flatnonzero(size <= _MAX_DATUM_RATIO * np.median(size)).tolist()
    if len(known) > _MIN_IMAGES:
        covariance = _fixed_by(covariance, motions, known)
    return covariance * np.outer(scale, scale)


def _motions(centres: Float64) -> Float64:
    """[6 V, 7] what a turn, a shift and a growth of the world do to the poses."""
    motions = np.zeros((len(centres), 6, 7))
    motions[:, :3, :3] = -np.eye(3)
    motions[:, 3:, :3] = -_cross(centres)
    motions[:, 3:, 3:6] = np.eye(3)
    motions[:, 3:, 6] = centres
    return motions.reshape(-1, 7)


def _fixed_by(covariance: Float64, motions: Float64, who: Sequence[int]) -> Float64:
    """Takes out the motion of the world that fits the poses of these cameras."""
    rows = (6 * np.array(who)[:, None] + np.arange(6)).ravel()
    fit = np.zeros((7, len(motions)))
    fit[:, rows] = np.linalg.pinv(motions[rows])
    half = covariance - motions @ (fit @ covariance)
    fixed: Float64 = half - (half @ fit.T) @ motions.T
    return fixed


def _diagonal_blocks(covariance: Float64) -> Float64:
    """The covariance [V, 6, 6] of every camera alone."""
    each = np.arange(len(covariance) // 6)
    return covariance.reshape(len(each), 6, len(each), 6)[each, :, each]


def _largest_axis(blocks: Float64) -> Float64:
    """The standard deviation [V] along the most uncertain axis of [V, 3, 3]."""
    stddev: Float64 = np.sqrt(np.maximum(np.linalg.eigvalsh(blocks)[:, -1], 0))
    return stddev


def _cross(vectors: Float64) -> Float64:
    """[N, 3, 3] matrices that multiply as the cross product with [N, 3]."""
    return np.cross(np.eye(3), vectors[:, None, :]).swapaxes(1, 2) * -1
