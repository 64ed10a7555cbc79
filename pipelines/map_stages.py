"""Stages from a verified database to models: each does what is missing, no more."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, replace

import pycolmap

from sfmprep.capture.batches import reduction_scales
from sfmprep.dataset.sharpness import relative_sharpness
from sfmprep.errors import ConfigError, ReconstructionError
from sfmprep.files import write_text
from sfmprep.geometry.uncertainty import pose_uncertainties
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.failure import explain_failure
from sfmprep.mapping.models import read_packed
from sfmprep.mapping.outliers import find_outliers, without_images
from sfmprep.mapping.rigs import frames_of_rigs
from sfmprep.mapping.verify import VerifiedPairs
from sfmprep.pipelines.apart import apart, hold_rigs_into, map_into, refine_into
from sfmprep.pipelines.artefacts import (
    Poses,
    mapped_last,
    pairs_as_written,
    read_models,
    result_database,
)
from sfmprep.pipelines.run import Run
from sfmprep.pipelines.tracks import film_focal_lengths, film_poses
from sfmprep.progress import Progress, silent
from sfmprep.report.findings import below_floors

logger = logging.getLogger(__name__)


def map_verified(
    run: Run, verified: VerifiedPairs, *, progress: Progress = silent
) -> list[pycolmap.Reconstruction]:
    """Finds poses, unless that is done; returns the mapper's models, largest first.

    Raises:
        ConfigError: the recipe is one without mapping.
        ReconstructionError: there is no model, and why.
    """
    if run.recipe.mapping.type == "none":
        raise ConfigError(
            f"recipe {run.recipe.name!r} has mapping.type: none, so there is nothing to"
            " map here; go on with COLMAP, or use a recipe with a mapper."
        )
    packed = run.workspace.mapped
    if run.ledger.is_done("map"):
        return read_packed(packed)
    run.begin("map")
    # a stopped `add` cannot go on: what it would add to is made anew
    shutil.rmtree(run.workspace.adding, ignore_errors=True)
    run.images.expect_there()  # COLMAP reads colours
    recipe = run.recipe
    num_models, budget = apart(
        *(map_into, packed, run.ledger.file("database"), run.images),
        *(recipe.mapping, recipe.database),
        reduction_scales(run.images, recipe.features.max_size),
        recipe.seed,
        run.budget,
        recipe.known_poses,
        film_poses(run),
        film_focal_lengths(run),
        progress=progress,
    )
    if not num_models:
        raise ReconstructionError(
            explain_failure(run.images, verified, run.ledger.file("database"))
        )
    run.images.expect_there()
    run.budget.seconds = budget.seconds
    run.ledger.note_budget("map", was_short=budget.was_short)
    run.finish("map")
    return read_packed(packed)


def refine(
    run: Run, models: list[pycolmap.Reconstruction], *, progress: Progress = silent
) -> list[pycolmap.Reconstruction]:
    """Measures the keypoints of tracks better and adjusts to them, as the recipe says.

    The models that came in stay as they are; without refinement they are returned.
    """
    if not run.ledger.keys.applies("refine"):
        return models
    packed = run.workspace.refined
    if not run.ledger.is_done("refine"):
        run.begin("refine")
        place, names = run.workspace, run.images.names
        mapped = mapped_last(run)
        has_dense = run.recipe.dense is not None
        tried = pairs_as_written(place.pairs_left, names) if has_dense else None
        apart(
            *(refine_into, packed, mapped, place.dense, tried),
            *(run.images, run.recipe, run.cluster),
            progress=progress,
        )
        run.finish("refine")
    return read_packed(packed)


def hold_rigs(
    run: Run,
    models: list[pycolmap.Reconstruction],
    *,
    settled: Sequence[Collection[str]] = (),
    progress: Progress = silent,
) -> list[pycolmap.Reconstruction]:
    """Brings poses into the rigs of the capture, if it has some.

    The models that came in stay as they are; without rigs they are returned. Settled
    are the images of each model that keeps to the rigs already; see `hold_rigs_into`.
    """
    keys = run.ledger.keys
    if not keys.applies("hold rigs"):
        return models
    packed = run.workspace.held
    if not run.ledger.is_done("hold rigs"):
        run.begin("hold rigs")
        write_text(run.workspace.rigs, json.dumps(keys.rigs, indent=1))
        apart(
            *(hold_rigs_into, packed, run.ledger.file(keys.nearest("refine"))),
            *(result_database(run), run.workspace.rigs, settled),
            progress=progress,
        )
        run.finish("hold rigs")
    return read_packed(packed)


def set_outliers_aside(
    run: Run,
    models: list[pycolmap.Reconstruction],
    *,
    sharpness: Mapping[str, float] | None = None,
    progress: Progress = silent,
) -> list[pycolmap.Reconstruction]:
    """Takes poses that are not supported out of the models; says which.

    The models that came in stay as they are; those that are returned are in the order
    of what is left, largest first. Of the largest it is noted how sharp the photographs
    are; where `sharpness` knows that already, it is not asked again.

    Raises:
        ImageError: a photograph cannot be read any more.
    """
    if run.ledger.is_done("outliers"):
        return read_models(run)
    run.begin("outliers")
    frames: dict[str, tuple[int, str]] = {}
    if run.ledger.keys.applies("hold rigs"):
        rigs = pycolmap.read_rig_config(run.workspace.rigs)
        frames = frames_of_rigs(run.images.names, rigs)
    found: list[tuple[pycolmap.Reconstruction, Poses]] = []
    for model in models:
        arrays = ModelArrays.of(model)
        uncertainties = pose_uncertainties(model, arrays)
        size = model.num_reg_images(), model.num_points3D()
        outliers: dict[str, str] = {}
        if not found or not below_floors(*size):  # else there is no dataset to spoil
            outliers = find_outliers(
                arrays, run.recipe.export.outliers, uncertainties, frames
            )
        rest = without_images(model, outliers) if outliers else model
        found.append((rest, Poses(uncertainties=uncertainties, outliers=outliers)))
    found.sort(key=lambda pair: -pair[0].num_reg_images())
    kept = [model for model, _ in found]
    if kept:
        sharp = _sharpness(run, kept[0], sharpness or {}, progress)
        found[0] = kept[0], replace(found[0][1], sharpness=sharp)
    text = json.dumps([asdict(poses) for _, poses in found], ensure_ascii=False)
    write_text(run.workspace.poses, text)
    part = run.workspace.work / ".models"
    shutil.rmtree(part, ignore_errors=True)
    for number, model in enumerate(kept):
        (part / str(number)).mkdir(parents=True)
        model.write(part / str(number))
    if run.workspace.models.exists():
        shutil.rmtree(run.workspace.models)
    part.replace(run.workspace.models)
    run.finish("outliers")
    return kept


def _sharpness(
    run: Run,
    model: pycolmap.Reconstruction,
    known: Mapping[str, float],
    progress: Progress,
) -> dict[str, float]:
    arrays = ModelArrays.of(model)
    there = {name: known[name] for name in arrays.views.names if name in known}
    asked = set(arrays.views.names).difference(there)
    return there | relative_sharpness(
        run.images, arrays, names=asked, progress=progress
    )
