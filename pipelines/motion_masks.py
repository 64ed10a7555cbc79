"""Masks of what moves, before all else but films.

`work/motion_masks` holds, in plain sight for an editor, a mask for every image: what
moves, and what the user's own masks leave out; it is empty where nothing moves. They
stay, with what an editor changed, as long as the photographs, the given masks and the
settings of this stage are the same; that poses may come out otherwise does not count.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import MappingConfig, MotionMasksConfig, Recipe
from sfmprep.files import not_written, read_table, write_text
from sfmprep.frontend.motion_masks import find_motion, write_masks
from sfmprep.geometry.views import ModelArrays
from sfmprep.models.build import build_flow_estimator
from sfmprep.pipelines import stages
from sfmprep.pipelines.ledger import Ledger
from sfmprep.pipelines.matching import match_photographs
from sfmprep.pipelines.poses import find_poses
from sfmprep.pipelines.run import open_run, read_contents
from sfmprep.pipelines.workspace import Workspace
from sfmprep.progress import Progress, silent

logger = logging.getLogger(__name__)

STAGE = "motion masks"


def with_motion_masks(
    images: ImageSet,
    out: Path,
    recipe: Recipe,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> ImageSet:
    """The same capture with masks of what moves too, if the recipe asks for them.

    Poses are found without them first, in `work/unmasked`, which is deleted when the
    masks are there.

    Args:
        images: The capture.
        out: The output folder.
        recipe: What to do.
        device: Where networks run.
        progress: Wraps the loops.

    Raises:
        SfmprepError: no poses were found without masks, they cannot be written, or
            `out` is no place for results.
    """
    config = recipe.motion_masks
    if config is None:
        return images
    workspace = Workspace(out)
    ledger = ledger_of_given(images, out, recipe, progress=progress)
    if not ledger.is_done(STAGE):
        workspace.check_place(images.source)
        with workspace.locked():
            ledger.begin(STAGE)
            share = _make(images, workspace, recipe, config, device, progress)
            write_text(workspace.motion_masks_table, json.dumps({"share": share}))
            ledger.finish(STAGE)
    return masked(images, workspace)


def masked(images: ImageSet, workspace: Workspace) -> ImageSet:
    """The same capture with the masks of what moves, which are done."""
    share = read_table(workspace.motion_masks_table).get("share", 0)
    if not share:
        logger.info("nothing was found to move, so nothing more is masked")
        return images
    logger.info(
        "%.1f%% of the pixels move and are masked; the masks are in %s",
        100 * share,
        workspace.motion_masks,
    )
    return replace(images, mask_root=workspace.motion_masks)


def ledger_of_given(
    images: ImageSet, out: Path, recipe: Recipe, *, progress: Progress = silent
) -> Ledger:
    """What is done there for a capture with the masks that were given, if any.

    Raises:
        SfmprepError: see `read_contents` and `Ledger`.
    """
    contents = read_contents(Workspace(out), images, progress=progress)
    return Ledger(out, recipe, contents.now, images.developed_sha256)


def _make(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    config: MotionMasksConfig,
    device: str,
    progress: Progress,
) -> float:
    """Writes the masks, and returns the share of all pixels that move."""
    one = device.partition(",")[0]
    estimator = build_flow_estimator(config.flow, device=one)
    models = _models_without(images, recipe, workspace, device, progress)
    arrays = [ModelArrays.of(model) for model in models]
    still = dict(find_motion(images, arrays, estimator, config, progress=progress))
    share = float(sum((~mask).mean() for mask in still.values())) / len(images)
    try:
        shutil.rmtree(workspace.motion_masks, ignore_errors=True)
        workspace.motion_masks.mkdir(parents=True)
        if share:
            write_masks(images, still, workspace.motion_masks)
        shutil.rmtree(workspace.unmasked)
    except OSError as error:
        raise not_written(workspace.motion_masks, error) from error
    return share


def _models_without(
    images: ImageSet,
    recipe: Recipe,
    workspace: Workspace,
    device: str,
    progress: Progress,
) -> list[pycolmap.Reconstruction]:
    """The poses that are found without the masks."""
    mapping = MappingConfig() if recipe.mapping.type == "none" else recipe.mapping
    plain = recipe.model_copy(
        update={"motion_masks": None, "refinement": None, "mapping": mapping}
    )
    seconds: dict[str, float] = {}
    logger.info("poses without masks first, to tell what moves")
    with open_run(images, workspace.unmasked, plain, progress=progress) as run:
        with match_photographs(run, seconds, device=device, progress=progress) as found:
            verified = stages.fill_database(
                run, found.features, found.pairs, found.matches, progress=progress
            )
        return find_poses(run, verified, seconds, device=device, progress=progress)
