"""Further photographs in a finished model, whose poses and cameras stay as they are."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.mapping.carry_over import carry_over, open_cache
from sfmprep.mapping.mapper import prepared
from sfmprep.mapping.runs import map_incrementally, sorted_models
from sfmprep.mapping.view_reader import Scales
from sfmprep.progress import Progress, silent


def add_images(
    models: Sequence[pycolmap.Reconstruction],
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
    """Registers images of a database that a model does not hold yet.

    Poses and cameras of the models stay; points may be seen by more images, new ones
    are made, and these move with the new images. What the largest model does not take
    is left without a pose.

    Args:
        models: Largest first, of an earlier state of the database, whose keypoints are
            the same and in the same rows, but may have been refined; one or more.
        database: A COLMAP database whose pairs are verified; it is not changed.
        images: The capture, for the points' colours.
        folder: For what is in between; made if it is missing.
        config: Thresholds of the mapper.
        cameras: What is known of cameras; None for the defaults.
        scales: See `Scales`; None for 1.
        seed: Of everything random in COLMAP.
        progress: Wraps the loop over images as they are registered.

    Returns:
        Models, largest first; those of `models` but for the largest.
    """
    cameras = cameras or DatabaseConfig()
    largest = models[0]
    with prepared(
        *(database, images, folder, config, cameras, scales, seed, progress),
        models=models,
    ) as (run, _):
        with pycolmap.Database.open(run.database) as opened:
            cache = open_cache(opened, config.min_num_matches)
        start = carry_over(largest, cache, same_rows=True)
        known = {start.images[key].camera_id for key in start.reg_image_ids()}
        names = sorted(image.name for image in cache.images.values())
        (grown,) = map_incrementally(run, onwards=start, names=names, fixed=known)
        return sorted_models([grown, *models[1:]])
