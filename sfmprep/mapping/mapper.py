"""From a verified database to models: COLMAP's mappers, sorted, the largest first."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType

import pycolmap

from sfmprep.budget import Budget
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, MappingConfig
from sfmprep.errors import ReconstructionError
from sfmprep.geometry.parallax import only_turns
from sfmprep.mapping.adjust import refine_model
from sfmprep.mapping.calibrate import (
    calibrate_database,
    calibrate_pairs,
    restore_pairs,
    set_contradicted,
)
from sfmprep.mapping.cameras import is_known
from sfmprep.mapping.focal_length import is_fisheye, with_focal_length
from sfmprep.mapping.given_cameras import (
    take_cameras,
    with_known_centre,
    with_known_params,
)
from sfmprep.mapping.lens_choice import choose_lenses
from sfmprep.mapping.lenses import restore_lenses, simplify_lenses
from sfmprep.mapping.partitioned import is_cut, map_in_parts
from sfmprep.mapping.rounds import complete, go_on
from sfmprep.mapping.runs import Run, map_globally, map_incrementally, sorted_models
from sfmprep.mapping.split_cameras import (
    cameras_apart,
    split_cameras,
    split_zooms,
)
from sfmprep.mapping.view_reader import Scales
from sfmprep.progress import Progress, silent

logger = logging.getLogger(__name__)


def map_images(
    database: Path,
    images: ImageSet,
    folder: Path,
    config: MappingConfig,
    *,
    cameras: DatabaseConfig | None = None,
    scales: Scales | None = None,
    focal_lengths: Mapping[str, float] = MappingProxyType({}),
    seed: int = 0,
    progress: Progress = silent,
    budget: Budget | None = None,
) -> list[pycolmap.Reconstruction]:
    """Recovers poses and points from a verified database.

    Focal lengths are calibrated by the verified pairs before either mapper starts, on a
    copy of the database. Of `tum-fr2-desk20` with ALIKED the incremental mapper found a
    wrong model (focal length 375 for 521) from each of three seeds without that, and a
    right one from each with it. Lenses of many coefficients are mapped with the first.
    Where images are missing and the model contradicts a calibrated focal length, it is
    mapped again with that of the model, and the larger result is kept.

    Captures of more than two times `part_size` images are mapped in parts (see
    `map_in_parts`).

    Where one model does not hold all images that verified pairs join to it, more
    follows (see `complete`). Cameras that were zoomed in between become several (see
    `split_zooms`).

    COLMAP's thresholds, such as the 4 pixels of its filter of points, are multiplied by
    the median of `scales`: it has one of each for all images.

    COLMAP adds up in several threads, in an order that differs: the same seed gives the
    same model but for some 0.01 degrees in rotations, and another scale by a per cent.

    Args:
        database: A COLMAP database whose pairs are verified; it is not changed.
        images: The capture, for the points' colours.
        folder: Where the models go: `0` is the largest, then `1`, ... It must not
            hold models yet.
        config: Which mapper, and its thresholds.
        cameras: What is known of cameras and may be refined; None for the defaults.
        scales: See `Scales`; None for 1.
        focal_lengths: Pixels, of the cameras of these images, which are not calibrated
            then; those that `cameras` tells count before them.
        seed: Of everything random in COLMAP.
        progress: Wraps the loops over pairs and over images as they are registered.
        budget: For starts beside the first, which use it up; None for no limit.

    Returns:
        The models, most registered images first, after a last bundle adjustment;
        none if COLMAP found none (see `explain_failure`).

    Raises:
        ReconstructionError: there are models, but all smaller than `min_model_size`; or
            COLMAP found no solution of the last adjustment.
    """
    cameras = cameras or DatabaseConfig()
    with prepared(
        *(database, images, folder, config, cameras, scales, seed, progress),
        focal_lengths=focal_lengths,
        budget=budget,
    ) as (run, lenses):
        began = time.perf_counter()
        found = _first_models(run)
        has_lost = found and found[0].num_reg_images() < len(images)
        may_change = cameras.refine != "none"
        told = _told_cameras(database, cameras)
        may_gain = has_lost and may_change and not only_turns(found, images.names)
        if may_gain and set_contradicted(run.database, found[0], known=told):
            restore_pairs(run.database, database)  # some may have been cut
            found = max(found, _first_models(run), key=_num_registered)
        found = complete(run, found, time.perf_counter() - began)
        if may_change:
            found = split_zooms(run, found, told)
            lenses = lenses | _of_split_cameras(database, found, lenses)
    return finished(found, lenses, images, folder, config, cameras)


def continue_models(
    models: Sequence[pycolmap.Reconstruction],
    database: Path,
    images: ImageSet,
    folder: Path,
    config: MappingConfig,
    *,
    cameras: DatabaseConfig | None = None,
    scales: Scales | None = None,
    given: Mapping[str, pycolmap.Camera] = MappingProxyType({}),
    seed: int = 0,
    progress: Progress = silent,
) -> list[pycolmap.Reconstruction]:
    """Goes on with models in a database that has more verified pairs than they knew.

    New pairs make points between images that have poses; images without one are
    registered, by COLMAP's thresholds and then by those of the capture; models that
    share enough are joined; images that no model takes are mapped among themselves.
    Cameras of the models stay as they are there, others are calibrated.

    Args:
        models: Largest first, of an earlier state of the database, as the mapper left
            them or adjusted; they stay as they are. Images are known by their names,
            keypoints by their places: those that moved since then lose their points.
        database: As for `map_images`.
        images: Likewise.
        folder: Likewise.
        config: Likewise.
        cameras: Likewise.
        scales: Likewise.
        given: Cameras that came with given poses, by image name.
        seed: Likewise.
        progress: Likewise.

    Returns:
        As `map_images`; no models give none.

    Raises:
        ReconstructionError: As `map_images`.
    """
    cameras = cameras or DatabaseConfig()
    if not models:
        return []
    with prepared(
        *(database, images, folder, config, cameras, scales, seed, progress),
        models=models,
        given=given,
    ) as (run, lenses):
        found = go_on(run, list(models))
    return finished(found, lenses, images, folder, config, cameras, given)


def _first_models(run: Run) -> list[pycolmap.Reconstruction]:
    if is_cut(run.config, len(run.images)):
        return map_in_parts(run)
    if run.config.type != "global":
        return sorted_models(map_incrementally(run))
    calibrate_pairs(
        run.database,
        max_error_px=run.cameras.max_error_px,
        scales=run.scales,
        seed=run.seed,
        progress=run.progress,
    )
    return map_globally(run)


def _of_split_cameras(
    database: Path,
    models: Sequence[pycolmap.Reconstruction],
    lenses: Mapping[int, pycolmap.CameraModelId],
) -> dict[int, pycolmap.CameraModelId]:
    """The lenses of cameras that were split from others: as those had."""
    with pycolmap.Database.open(database) as opened:
        owner = {image.name: image.camera_id for image in opened.read_all_images()}
    return {
        image.camera_id: lenses[owner[image.name]]
        for model in models
        for image in model.images.values()
        if owner[image.name] in lenses
    }


def _num_registered(models: Sequence[pycolmap.Reconstruction]) -> int:
    return models[0].num_reg_images() if models else 0


@contextmanager
def prepared(
    database: Path,
    images: ImageSet,
    folder: Path,
    config: MappingConfig,
    cameras: DatabaseConfig,
    scales: Scales | None,
    seed: int,
    progress: Progress,
    *,
    models: Sequence[pycolmap.Reconstruction] = (),
    given: Mapping[str, pycolmap.Camera] = MappingProxyType({}),
    focal_lengths: Mapping[str, float] = MappingProxyType({}),
    budget: Budget | None = None,
) -> Iterator[tuple[Run, dict[int, pycolmap.CameraModelId]]]:
    """A calibrated copy of a database, and the lenses that were made simpler in it.

    Cameras of `models` count as known, and so does what those `given` by image name
    tell (see `take_cameras`); of those of `focal_lengths` the focal length does.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".raw-", dir=folder) as raw:
        calibrated = Path(raw) / "database.db"
        shutil.copyfile(database, calibrated)
        for model in models:
            split_cameras(calibrated, cameras_apart(calibrated, model))
        told = _told_cameras(calibrated, cameras)
        with pycolmap.Database.open(calibrated) as opened:
            told |= _take_cameras(opened, models)
            lenses, focal_alone = take_cameras(opened, given, told)
            told |= lenses
            with_focal = told | focal_alone
            with_focal |= _take_focal_lengths(opened, focal_lengths, with_focal)
        calibrate_database(
            calibrated,
            known=with_focal,
            max_error_px=cameras.max_error_px,
            scales=scales,
            seed=seed,
            progress=progress,
        )
        with pycolmap.Database.open(calibrated) as opened:
            simplified = simplify_lenses(opened, told)
        run = Run(
            database=calibrated,
            images=images,
            folder=Path(raw),
            config=config,
            cameras=cameras,
            scales=scales,
            seed=seed,
            progress=progress,
            budget=budget or Budget(),
        )
        yield run, simplified


def finished(
    found: list[pycolmap.Reconstruction],
    lenses: Mapping[int, pycolmap.CameraModelId],
    images: ImageSet,
    folder: Path,
    config: MappingConfig,
    cameras: DatabaseConfig,
    given: Mapping[str, pycolmap.Camera] = MappingProxyType({}),
) -> list[pycolmap.Reconstruction]:
    """Models after a last adjustment, as they are written.

    Principal points that are known, of those `given` by image name and those in the
    configuration, are not searched.
    """
    _expect_size(found, images, config)
    models = []
    for model in found:
        restore_lenses(model, lenses)
        if cameras.camera_model == "auto" and cameras.refine == "all":
            model = choose_lenses(model, with_known_params(model, cameras))
        models.append(
            refine_model(
                *(model, config),
                refine=cameras.refine,
                known_centres=with_known_centre(model, cameras, given),
            )
        )
    for number, model in enumerate(models):
        target = folder / str(number)
        target.mkdir()
        model.write(target)
    return models


def _take_cameras(
    database: pycolmap.Database, models: Sequence[pycolmap.Reconstruction]
) -> set[int]:
    """Gives a database the cameras of models; returns their ids there."""
    owner = {image.name: image.camera_id for image in database.read_all_images()}
    taken: set[int] = set()
    for model in models:
        for image_id in sorted(model.reg_image_ids()):
            image = model.images[image_id]
            key = owner.get(image.name)
            if key is None or key in taken:
                continue
            camera = database.read_camera(key)
            camera.model = model.cameras[image.camera_id].model
            camera.params = model.cameras[image.camera_id].params.tolist()
            camera.has_prior_focal_length = True
            database.update_camera(camera)
            taken.add(key)
    return taken


def _take_focal_lengths(
    database: pycolmap.Database, pixels: Mapping[str, float], told: Collection[int]
) -> set[int]:
    """Gives cameras of a database those of their surest images; returns their ids."""
    given: set[int] = set()
    camera_of = {image.name: image.camera_id for image in database.read_all_images()}
    for name, focal in pixels.items():  # the surest first
        key = camera_of.get(name)
        if key is None or key in given or key in told:
            continue
        camera = database.read_camera(key)
        if not is_fisheye(camera):  # they are told of pinholes
            database.update_camera(with_focal_length(camera, focal))
            given.add(key)
    return given


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
