"""Further photographs in a finished model, whose poses and cameras stay as they are.

Or all of it is adjusted with them, and brought back to where it was.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.geometry.adjustment import cameras_in
from sfmprep.mapping.adjust import (
    image_middle,
    refine_further,
    refine_model,
    set_centre,
)
from sfmprep.mapping.alignment import align
from sfmprep.mapping.carry_over import carry_over, open_cache
from sfmprep.mapping.given_cameras import with_known_centre, with_known_params
from sfmprep.mapping.lens_choice import choose_lenses
from sfmprep.mapping.mapper import prepared
from sfmprep.mapping.runs import map_incrementally, sorted_models
from sfmprep.mapping.view_reader import Scales
from sfmprep.progress import Progress, silent
from sfmprep.types import Float64

logger = logging.getLogger(__name__)

_MIN_FOR_FRAME = 2  # poses that have a scale
_LEAST_EXTENT = 1e-9  # of their places, in depths of points: less is rounding


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
        The first of `models` as it is now, then the others, largest first.
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
        known = cameras_in(start).keys()
        names = sorted(image.name for image in cache.images.values())
        grown = start
        if start.num_reg_images() < len(names):
            (grown,) = map_incrementally(run, onwards=start, names=names, fixed=known)
        others = sorted_models([grown, *models[1:]])
        return [grown, *(model for model in others if model is not grown)]


def adjust_whole(
    model: pycolmap.Reconstruction,
    config: MappingConfig,
    cameras: DatabaseConfig,
    *,
    given: Mapping[str, pycolmap.Camera] = MappingProxyType({}),
) -> pycolmap.Reconstruction:
    """Returns a copy of a model whose poses, points and cameras all its images tell.

    Lens models of one coefficient are asked again. Where one changes, all is adjusted
    as of a new model, principal points from the middle of the image: where fewer images
    did not tell them, they were left at what more of them contradict. Else it goes on
    from where it is, and principal points come out as from the middle; those stay that
    cannot tell theirs, such as of two images (`refine_further`).

    Args:
        model: It stays as it is.
        config: When principal points move.
        cameras: What is known of cameras and may be refined.
        given: Cameras that came with given poses, by image name.

    Raises:
        ReconstructionError: see `refine_model`.
    """
    known = with_known_centre(model, cameras, given)
    whole = pycolmap.Reconstruction(model)
    if cameras.refine == "all" and cameras.camera_model == "auto":
        whole = choose_lenses(whole, with_known_params(whole, cameras))
    searches = cameras.refine == "all" and config.refine_principal_point == "auto"
    keys = cameras_in(model).keys()
    same = all(whole.cameras[key].model == model.cameras[key].model for key in keys)
    if searches and same:
        return refine_further(whole, config, known_centres=known)
    if searches:
        for key in keys - known:
            set_centre(whole.cameras[key], image_middle(whole.cameras[key]))
    return refine_model(*(whole, config), refine=cameras.refine, known_centres=known)


@dataclass(frozen=True, kw_only=True, eq=False)
class Moved:
    """By how much poses moved, one entry an image."""

    rotation_deg: Float64  # [N]
    share: Float64  # [N] of the distance of the farthest camera from their middle


def bring_back(
    model: pycolmap.Reconstruction, earlier: pycolmap.Reconstruction
) -> Moved | None:
    """Moves a model in place to where an earlier one lies, by the poses of both.

    The similarity is that of most poses (see `align`). Fewer than two poses in both,
    or poses on one spot, have no scale: then nothing moves, with a warning.

    Args:
        model: Of images that the earlier one has a pose of, and others.
        earlier: It stays as it is.

    Returns:
        What poses of the earlier model differ by after that; None if nothing moved.
    """
    names = {model.images[key].name for key in model.reg_image_ids()}
    both = [
        image.name
        for image in sorted(earlier.images.values(), key=lambda image: image.name)
        if image.has_pose and image.name in names
    ]
    (rotations, centres), given = _poses(model, both), _poses(earlier, both)
    middle = np.median(given[1], axis=0) if both else np.zeros(3)
    extent = float(np.linalg.norm(given[1] - middle, axis=1).max(initial=0))
    points = [point.xyz for point in earlier.points3D.values()]
    depth = float(np.median(np.linalg.norm(points - middle, axis=1))) if points else 1.0
    if len(both) < _MIN_FOR_FRAME or extent <= _LEAST_EXTENT * depth:
        logger.warning(
            "%d earlier photographs, on one spot or alone, tell no scale: the model"
            " lies where its adjustment left it, and the world may have moved; take the"
            " dataset as a new one",
            len(both),
        )
        return None
    found = align((rotations, centres), given)
    model.transform(found.given_from_own)
    return Moved(rotation_deg=found.rotation_off_deg, share=found.position_off / extent)


def _poses(
    model: pycolmap.Reconstruction, names: Sequence[str]
) -> tuple[Float64, Float64]:
    """Rotations [N, 3, 3] camera from world, and centres [N, 3]."""
    of = {image.name: image for image in model.images.values()}
    images = [of[name] for name in names]
    rotations = [image.cam_from_world().rotation.matrix() for image in images]
    centres = [image.projection_center() for image in images]
    return np.reshape(rotations, (-1, 3, 3)), np.reshape(centres, (-1, 3))
