"""Masks of what moves, before all else but films.

`work/motion_masks` holds, in plain sight for an editor, a mask for every image: what
moves, and what the user's own masks leave out. They stay, with what an editor changed,
as long as the photographs, the given masks and the settings of this stage are the same.
"""

from __future__ import annotations

import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pycolmap

from sfmprep.capture.identity import FileDigest, content_sha256, masks_sha256, signature
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import MappingConfig, MotionMasksConfig, Recipe
from sfmprep.files import not_written, read_table, write_text
from sfmprep.frontend.motion_masks import find_motion, write_masks
from sfmprep.geometry.views import ModelArrays
from sfmprep.models.build import build_flow_estimator
from sfmprep.models.identity import identity_with
from sfmprep.pipelines import stages
from sfmprep.pipelines.matching import match_photographs
from sfmprep.pipelines.poses import find_poses
from sfmprep.pipelines.run import open_run
from sfmprep.pipelines.stage_keys import checksum
from sfmprep.pipelines.workspace import Workspace
from sfmprep.progress import Progress, silent
from sfmprep.weights import weights_here

logger = logging.getLogger(__name__)

_VERSION = 1  # raised by hand when the masks change


def with_motion_masks(
    images: ImageSet,
    out: Path,
    recipe: Recipe,
    *,
    makes: bool = True,
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
        makes: Whether what is missing is made; else the capture stays as it is.
        device: Where networks run.
        progress: Wraps the loops.

    Raises:
        SfmprepError: no poses were found without masks, or they cannot be written.
    """
    config = recipe.motion_masks
    if config is None:
        return images
    workspace = Workspace(out)
    key = _key(images, workspace, config)
    table = read_table(workspace.motion_masks_table)
    is_whole = not table.get("share") or workspace.motion_masks.is_dir()
    if table.get("key") != key or not is_whole:
        if not makes:
            return images
        share = _make(images, workspace, recipe, config, device, progress)
        table = {"key": key, "share": share}
        write_text(workspace.motion_masks_table, json.dumps(table))
    if not table["share"]:
        logger.info("nothing was found to move, so nothing more is masked")
        return images
    logger.info(
        "%.1f%% of the pixels move and are masked; the masks are in %s",
        100 * table["share"],
        workspace.motion_masks,
    )
    return replace(images, mask_root=workspace.motion_masks)


def _key(images: ImageSet, workspace: Workspace, config: MotionMasksConfig) -> str:
    """What the masks depend on; that poses may come out otherwise does not count."""
    known = read_table(workspace.manifest).get("photographs", {})
    digests = {name: FileDigest(*row) for name, row in known.items()}
    here = [weights_here(*needed) for needed in config.flow.needed_weights()]
    return checksum(
        [
            *(_VERSION, config.model_dump(mode="json", exclude={"flow"})),
            identity_with(config.flow, here[0] if here else None, half=False),
            signature(content_sha256(images, digests)),
            signature(masks_sha256(images)),
        ]
    )


def _make(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    config: MotionMasksConfig,
    device: str,
    progress: Progress,
) -> float:
    """Writes the masks, and returns the share of all pixels that move."""
    estimator = build_flow_estimator(config.flow, device=device)
    models = _models_without(images, recipe, workspace, device, progress)
    arrays = [ModelArrays.of(model) for model in models]
    still = dict(find_motion(images, arrays, estimator, config, progress=progress))
    share = float(sum((~mask).mean() for mask in still.values())) / len(images)
    try:
        shutil.rmtree(workspace.motion_masks, ignore_errors=True)
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
