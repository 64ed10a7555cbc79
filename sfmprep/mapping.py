"""From a verified database to models: COLMAP's mappers, sorted, the largest first."""

from __future__ import annotations

import itertools
import logging
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import SimpleQueue

import pycolmap

from sfmprep.config import MappingConfig
from sfmprep.database import VerifiedPairs
from sfmprep.errors import ReconstructionError
from sfmprep.images import ImageSet
from sfmprep.progress import Progress, silent

logger = logging.getLogger(__name__)

_MIN_IMAGES_FOR_PRINCIPAL_POINT = 8
_FINAL_BA_ITERATIONS = 100


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

    Args:
        database: A COLMAP database whose pairs are verified; focal lengths in it may
            be changed by the global mapper's calibration.
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
    pycolmap.set_random_seed(seed)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".raw-", dir=folder) as raw:
        if config.type == "global":
            found = _map_globally(database, images, Path(raw), config, seed)
        else:
            found = _map_incrementally(
                database, images, Path(raw), config, seed, progress
            )
    models = sorted(
        (model for model in found if model.num_points3D()),
        key=lambda model: (model.num_reg_images(), model.num_points3D()),
        reverse=True,
    )
    for number, model in enumerate(models):
        refine_model(model, config)
        target = folder / str(number)
        target.mkdir()
        model.write(target)
    return models


def refine_model(model: pycolmap.Reconstruction, config: MappingConfig) -> None:
    """Runs the last bundle adjustment of a model, in place.

    With `refine_principal_point` it runs twice: principal points move only after
    everything else has settled.
    """
    _adjust(model, refine_principal_point=False)
    if _moves_principal_point(model, config):
        _adjust(model, refine_principal_point=True)
    model.update_point_3d_errors()


def _adjust(model: pycolmap.Reconstruction, *, refine_principal_point: bool) -> None:
    options = pycolmap.BundleAdjustmentOptions()
    options.print_summary = False
    options.refine_principal_point = refine_principal_point
    options.ceres.solver_options.max_num_iterations = _FINAL_BA_ITERATIONS
    config = pycolmap.BundleAdjustmentConfig()
    for image_id in model.reg_image_ids():
        config.add_image(image_id)
    config.fix_gauge(pycolmap.BundleAdjustmentGauge.TWO_CAMS_FROM_WORLD)
    summary = pycolmap.create_default_bundle_adjuster(options, config, model).solve()
    if not summary.is_solution_usable():
        raise ReconstructionError(
            f"the last bundle adjustment of {model.num_reg_images()} images failed"
            f" ({summary.termination_type.name}); please report it with the database."
        )


def _moves_principal_point(
    model: pycolmap.Reconstruction, config: MappingConfig
) -> bool:
    if config.refine_principal_point != "auto":
        return config.refine_principal_point == "always"
    images_per_camera = model.num_reg_images() / max(model.num_cameras(), 1)
    return images_per_camera >= _MIN_IMAGES_FOR_PRINCIPAL_POINT


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
    options.min_num_matches = config.min_num_matches
    options.min_model_size = min(config.min_model_size, len(images))
    options.random_seed = seed
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
    """Calibrates focal lengths from the view graph first: without, poses go wrong."""
    calibration = pycolmap.ViewGraphCalibrationOptions()
    calibration.random_seed = seed
    if not pycolmap.calibrate_view_graph(database, calibration):
        logger.warning(
            "focal lengths could not be calibrated from the verified pairs; poses of"
            " the global mapper may be wrong. Set database.focal_length if it is known."
        )
    options = pycolmap.GlobalPipelineOptions()
    options.min_num_matches = config.min_num_matches
    options.min_model_size = min(config.min_model_size, len(images))
    options.random_seed = seed
    return list(
        pycolmap.global_mapping(database, images.root, folder, options).values()
    )


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
