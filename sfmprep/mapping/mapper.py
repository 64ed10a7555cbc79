"""From a verified database to models: COLMAP's mappers, sorted, the largest first."""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue
from typing import cast

import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import MappingConfig
from sfmprep.errors import ReconstructionError
from sfmprep.mapping.verify import VerifiedPairs
from sfmprep.progress import Progress, silent

logger = logging.getLogger(__name__)

_MIN_IMAGES_FOR_PRINCIPAL_POINT = 8
# Residuals are not independent, so far more than the 14 that would be significant (two
# parameters, 0.1 %). Measured: scenes with a known offset 205 to 1700, rendered ones
# without 1 to 6.
_MIN_CHI2_OF_PRINCIPAL_POINT = 100
_FINAL_BA_ITERATIONS = 100
# Standard deviations: as good as squares to 95 % where errors are normal (Holland and
# Welsch, Communications in Statistics 6, 1977).
_LOSS_SCALE = 2.385
_MEAN_LENGTH = 1.2533  # of a vector whose components have the deviation 1
_MAX_STARTS = 3
_MAX_IMAGES_FOR_RESTART = 300


def map_images(
    database: Path,
    images: ImageSet,
    folder: Path,
    config: MappingConfig,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> list[pycolmap.Reconstruction]:
    """Recovers poses and points from a verified database.

    Focal lengths that are unknown are calibrated from the view graph before either
    mapper starts, on a copy of the database. Of `tum-fr2-desk20` with ALIKED the
    incremental mapper found a wrong model (focal length 375 for 521) from each of three
    seeds without that, and a right one from each with it.

    Args:
        database: A COLMAP database whose pairs are verified; it is not changed.
        images: The capture, for the points' colours.
        folder: Where the models go: `0` is the largest, then `1`, ... It must not
            hold models yet.
        config: Which mapper, and its thresholds.
        seed: Of everything random in COLMAP.
        progress: Wraps the loop over images as the incremental mapper registers them.

    Returns:
        The models, most registered images first, after a last bundle adjustment;
        none if COLMAP found none (see `explain_failure`).
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".raw-", dir=folder) as raw:
        calibrated = Path(raw) / "database.db"
        shutil.copyfile(database, calibrated)
        _calibrate_focal_lengths(calibrated, seed)
        if config.type == "global":
            found = _map_globally(calibrated, images, Path(raw), config, seed)
        else:
            found = _map_from_several_starts(
                calibrated, images, Path(raw), config, seed, progress
            )
    models = [refine_model(model, config) for model in found]
    for number, model in enumerate(models):
        target = folder / str(number)
        target.mkdir()
        model.write(target)
    return models


def refine_model(
    model: pycolmap.Reconstruction, config: MappingConfig, *, robust: bool = False
) -> pycolmap.Reconstruction:
    """Returns a copy of a model after a last bundle adjustment.

    With `robust`, errors count as in Cauchy's loss, whose scale is taken from those of
    the copy adjusted without it. That suits refined keypoints: most are far more exact
    than the few that had to stay.

    Principal points move only after everything else has settled. With
    `refine_principal_point: auto` that is kept where at least eight images share a
    camera on average and the squared reprojection error falls by far more than chance
    allows (by 100 times its mean; with `robust`, the loss). On fountain-P11, whose true
    principal point is 9 and 11 px from the centre, that raises AUC@1 from 68 to 81.

    Raises:
        ReconstructionError: COLMAP found no solution.
    """
    model = pycolmap.Reconstruction(model)
    summary, loss_scale = _adjust(model), None
    if robust:
        loss_scale = _LOSS_SCALE * _noise_px(model)
        summary = _adjust(model, loss_scale=loss_scale)
    when = config.refine_principal_point
    if when == "never" or (when == "auto" and not _can_place_centres(model)):
        return model
    moved = pycolmap.Reconstruction(model)
    after = _adjust(moved, loss_scale=loss_scale, refine_principal_point=True)
    before, cost = (each.ceres_summary.final_cost for each in (summary, after))
    chi2 = (before - cost) * after.num_residuals / max(cost, 1e-12)
    logger.debug("moving the principal point lowers the loss by %.0f means", chi2)
    return moved if when == "always" or chi2 >= _MIN_CHI2_OF_PRINCIPAL_POINT else model


def _can_place_centres(model: pycolmap.Reconstruction) -> bool:
    cameras = {image.camera_id for image in model.images.values() if image.has_pose}
    images_per_camera = model.num_reg_images() / max(len(cameras), 1)
    return images_per_camera >= _MIN_IMAGES_FOR_PRINCIPAL_POINT


def _noise_px(model: pycolmap.Reconstruction) -> float:
    """About the standard deviation of keypoints in x and in y.

    It is from the errors of points, which are smaller: a point follows its keypoints,
    by a fifth of the deviation where there are four.
    """
    errors = [point.error for point in model.points3D.values()]
    return max(float(np.median(errors)) / _MEAN_LENGTH, 1e-6) if errors else 1.0


def _adjust(
    model: pycolmap.Reconstruction,
    *,
    loss_scale: float | None = None,
    refine_principal_point: bool = False,
) -> pycolmap.CeresBundleAdjustmentSummary:
    """Adjusts in place; with a scale in pixels, by Cauchy's loss."""
    options = pycolmap.BundleAdjustmentOptions()
    if loss_scale is not None:
        options.ceres.loss_function_type = pycolmap.LossFunctionType.CAUCHY
        options.ceres.loss_function_scale = loss_scale
    options.print_summary = False
    options.refine_principal_point = refine_principal_point
    options.ceres.solver_options.max_num_iterations = _FINAL_BA_ITERATIONS
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
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
    return summary


def _calibrate_focal_lengths(database: Path, seed: int) -> None:
    """Replaces guessed focal lengths by those that the verified pairs agree on."""
    with pycolmap.Database.open(database) as opened:
        if all(camera.has_prior_focal_length for camera in opened.read_all_cameras()):
            return
    options = pycolmap.ViewGraphCalibrationOptions()
    options.random_seed = seed
    if not pycolmap.calibrate_view_graph(database, options):
        logger.warning(
            "the verified pairs do not tell the focal length, so it stays a guess;"
            " poses may be wrong. If it is known: --set database.focal_length=PIXELS"
        )


def _map_from_several_starts(
    database: Path,
    images: ImageSet,
    folder: Path,
    config: MappingConfig,
    seed: int,
    progress: Progress,
) -> list[pycolmap.Reconstruction]:
    """Starts again, from another pair, where the first start fell into pieces.

    The start with the most images in one model is kept, and of equals the one with the
    smaller reprojection error: a model that grew from a wrong pair fits worse.
    """
    best: list[pycolmap.Reconstruction] = []
    for start in range(_MAX_STARTS):
        found = _map_incrementally(
            database, images, folder, config, seed + start, progress
        )
        best = max(best, _sorted_models(found), key=_quality)
        if len(found) <= 1 or len(images) > _MAX_IMAGES_FOR_RESTART:
            break
    return best


def _quality(models: list[pycolmap.Reconstruction]) -> tuple[int, float]:
    if not models:
        return 0, 0.0
    return models[0].num_reg_images(), -models[0].compute_mean_reprojection_error()


def _sorted_models(
    models: Iterable[pycolmap.Reconstruction],
) -> list[pycolmap.Reconstruction]:
    """Largest first, without those whose images are all in a larger one."""
    kept: list[pycolmap.Reconstruction] = []
    covered: list[set[int]] = []
    for model in sorted(
        (model for model in models if model.num_points3D()),
        key=lambda model: (model.num_reg_images(), model.num_points3D()),
        reverse=True,
    ):
        ids = set(model.reg_image_ids())
        if not any(ids <= larger for larger in covered):
            kept.append(model)
            covered.append(ids)
    return kept


def _set_options(
    options: pycolmap.IncrementalPipelineOptions | pycolmap.GlobalPipelineOptions,
    images: ImageSet,
    config: MappingConfig,
    seed: int,
) -> None:
    """Sets what both mappers have in common."""
    options.min_num_matches = config.min_num_matches
    options.min_model_size = min(config.min_model_size, len(images))
    options.random_seed = seed


def _map_incrementally(
    database: Path,
    images: ImageSet,
    folder: Path,
    config: MappingConfig,
    seed: int,
    progress: Progress,
) -> list[pycolmap.Reconstruction]:
    """Runs the mapper in a thread, so that it can be watched and stopped."""
    options = pycolmap.IncrementalPipelineOptions()
    _set_options(options, images, config, seed)
    registered: SimpleQueue[int] = SimpleQueue()
    token = pycolmap.CancellationToken()

    def run() -> list[pycolmap.Reconstruction]:
        try:
            models = pycolmap.incremental_mapping(
                database,
                images.root,
                folder,
                options,
                initial_image_pair_callback=lambda: registered.put(2),
                next_image_callback=lambda: registered.put(1),
                cancellation_token=token,
            )
        finally:
            registered.put(0)
        return list(models.values())

    def steps() -> Iterator[None]:
        while count := registered.get():
            yield from itertools.repeat(None, count)

    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(run)
        try:
            for _ in progress(steps(), desc="map", total=len(images)):
                pass
        except BaseException:
            token.cancel()
            raise
        return job.result()


def _map_globally(
    database: Path,
    images: ImageSet,
    folder: Path,
    config: MappingConfig,
    seed: int,
) -> list[pycolmap.Reconstruction]:
    options = pycolmap.GlobalPipelineOptions()
    _set_options(options, images, config, seed)
    found = pycolmap.global_mapping(database, images.root, folder, options)
    return _sorted_models(found.values())


def explain_failure(images: ImageSet, verified: VerifiedPairs) -> str:
    """Says in plain words why a capture gave no model, and what to do."""
    alone = len(images) - len(verified.images)
    if not verified.num_pairs:
        return (
            f"none of the {len(images)} images in {images.root} matches another: the"
            " photographs do not overlap, are blurred or show no texture. Take them so"
            " that neighbours share two thirds of what they show."
        )
    if not verified.num_verified:
        return (
            f"{verified.num_pairs} pairs of images in {images.root} have matches, but"
            " no pair agrees on one geometry: the photographs probably do not overlap."
            " Take them so that neighbours share two thirds of what they show."
        )
    if verified.num_rotation_only > verified.num_verified / 2:
        return (
            f"{verified.num_rotation_only} of {verified.num_verified} verified pairs in"
            f" {images.root} are explained without any depth: the camera only turned,"
            " or it saw one plane, or the images are copies of each other. Walk"
            " sideways between photographs."
        )
    return (
        f"{verified.num_verified} pairs of images in {images.root} were verified"
        f" ({alone} images have none), but no two of them see the scene from"
        " sufficiently different places with enough matches. Take more photographs, a"
        " step apart, or try more keypoints (--set features.max_keypoints=8192)."
    )
