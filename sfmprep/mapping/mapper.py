"""From a verified database to models: COLMAP's mappers, sorted, the largest first."""

from __future__ import annotations

import itertools
import logging
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from statistics import median

import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.errors import ReconstructionError
from sfmprep.mapping.adjust import refine_model
from sfmprep.mapping.calibrate import Scales, calibrate_database, calibrate_pairs
from sfmprep.mapping.cameras import is_known
from sfmprep.mapping.initial_pairs import initial_pairs
from sfmprep.mapping.lenses import restore_lenses, simplify_lenses
from sfmprep.mapping.verify import VerifiedPairs
from sfmprep.progress import Progress, silent

logger = logging.getLogger(__name__)

_MAX_STARTS = 3
_MAX_IMAGES_FOR_RESTART = 300
_FEW_IMAGES = 4  # up to which points that two of them see are used


def map_images(
    database: Path,
    images: ImageSet,
    folder: Path,
    config: MappingConfig,
    *,
    cameras: DatabaseConfig | None = None,
    scales: Scales | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> list[pycolmap.Reconstruction]:
    """Recovers poses and points from a verified database.

    Focal lengths are calibrated by the verified pairs before either mapper starts, on a
    copy of the database. Of `tum-fr2-desk20` with ALIKED the incremental mapper found a
    wrong model (focal length 375 for 521) from each of three seeds without that, and a
    right one from each with it. Lenses of many coefficients are mapped with the first.

    COLMAP's thresholds, such as the 4 pixels of its filter of points, are multiplied by
    the median of `scales`: it has one of each for all images.

    Args:
        database: A COLMAP database whose pairs are verified; it is not changed.
        images: The capture, for the points' colours.
        folder: Where the models go: `0` is the largest, then `1`, ... It must not
            hold models yet.
        config: Which mapper, and its thresholds.
        cameras: What is known of cameras and may be refined; None for the defaults.
        scales: See `Scales`; None for 1.
        seed: Of everything random in COLMAP.
        progress: Wraps the loops over pairs and over images as they are registered.

    Returns:
        The models, most registered images first, after a last bundle adjustment;
        none if COLMAP found none (see `explain_failure`).

    Raises:
        ReconstructionError: there are models, but all smaller than `min_model_size`; or
            COLMAP found no solution of the last adjustment.
    """
    cameras = cameras or DatabaseConfig()
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".raw-", dir=folder) as raw:
        calibrated = Path(raw) / "database.db"
        shutil.copyfile(database, calibrated)
        told = _told_cameras(calibrated, cameras)
        calibrate_database(
            calibrated,
            known=told,
            max_error_px=cameras.max_error_px,
            scales=scales,
            seed=seed,
            progress=progress,
        )
        with pycolmap.Database.open(calibrated) as opened:
            lenses = simplify_lenses(opened, told)
        if config.type == "global":
            calibrate_pairs(
                calibrated,
                max_error_px=cameras.max_error_px,
                scales=scales,
                seed=seed,
                progress=progress,
            )
        run = _Run(
            database=calibrated,
            images=images,
            folder=Path(raw),
            config=config,
            cameras=cameras,
            scale=median(scales.values()) if scales else 1.0,
            seed=seed,
            progress=progress,
        )
        found = _map_globally(run) if config.type == "global" else _start_often(run)
    _expect_size(found, images, config)
    models = []
    for model in found:
        restore_lenses(model, lenses)
        models.append(refine_model(model, config, refine=cameras.refine))
    for number, model in enumerate(models):
        target = folder / str(number)
        target.mkdir()
        model.write(target)
    return models


def _told_cameras(database: Path, config: DatabaseConfig) -> set[int]:
    """Ids of cameras whose focal length the configuration tells."""
    with pycolmap.Database.open(database) as opened:
        return {
            image.camera_id
            for image in opened.read_all_images()
            if is_known(config, image.name)
        }


def _expect_size(
    models: list[pycolmap.Reconstruction], images: ImageSet, config: MappingConfig
) -> None:
    """Drops models that are too small, from the end; raises if no other is left."""
    limit = min(config.min_model_size, len(images))
    if not models or models[0].num_reg_images() >= limit:
        while models and models[-1].num_reg_images() < limit:
            models.pop()
        return
    largest = models[0].num_reg_images()
    raise ReconstructionError(
        f"the largest model holds {largest} of the {len(images)} images in"
        f" {images.root}, fewer than mapping.min_model_size: {limit}. Take more"
        f" photographs between the others, or --set mapping.min_model_size={largest}."
    )


def _start_often(run: _Run) -> list[pycolmap.Reconstruction]:
    """Starts again, from other pairs, where the first start fell into pieces.

    A start is better that has more images in one model, and of equals the one with the
    smaller reprojection error: a model that grew from a wrong pair fits worse. What
    only the others have stays as further models.
    """
    best = _sorted_models(_map_incrementally(run))
    if _is_whole(best, run) or len(run.images) > _MAX_IMAGES_FOR_RESTART:
        return best
    pairs = initial_pairs(
        run.database,
        [_first_images(model) for model in best],
        max_error_px=run.cameras.max_error_px * run.scale,
        limit=_MAX_STARTS - 1,
        seed=run.seed,
    )
    for pair in pairs:
        logger.info("starting again, from images %d and %d", *pair)
        found = _sorted_models(_map_incrementally(run, pair))
        if _quality(found) > _quality(best):
            held = set(found[0].reg_image_ids())
            rest = [m for m in best if not set(m.reg_image_ids()) <= held]
            best = [found[0], *rest]
        if _is_whole(best, run):
            break
    return best


def _first_images(model: pycolmap.Reconstruction) -> tuple[int, ...]:
    """Ids of the two images that a model started from."""
    frames = [model.frames[key] for key in model.reg_frame_ids()[:2]]
    return tuple(data.id for frame in frames for data in frame.image_ids)


def _is_whole(models: list[pycolmap.Reconstruction], run: _Run) -> bool:
    """Whether there is one model, of half of the images or more."""
    most = len(run.images) / 2
    return len(models) == 1 and models[0].num_reg_images() >= most


def _quality(models: list[pycolmap.Reconstruction]) -> tuple[int, float]:
    if not models:
        return 0, 0.0
    return models[0].num_reg_images(), -models[0].compute_mean_reprojection_error()
