"""What is done of a run, and why a stage would run again; changes nothing."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import Recipe
from sfmprep.errors import ConfigError
from sfmprep.pipelines.choose_frontend import has_weights
from sfmprep.pipelines.ledger import Ledger
from sfmprep.pipelines.motion_masks import STAGE as MOTION_MASKS
from sfmprep.pipelines.motion_masks import ledger_of_given, masked
from sfmprep.pipelines.rigs import find_rigs
from sfmprep.pipelines.run import earlier_choice, read_contents
from sfmprep.pipelines.stage_table import STAGES
from sfmprep.pipelines.workspace import Workspace
from sfmprep.progress import Progress, silent


@dataclass(frozen=True, kw_only=True)
class StageStatus:
    """One stage of the recipe."""

    name: str
    file: Path
    is_done: bool
    why: list[str]  # why it would run again; none where it is done


def stages_of(
    images: ImageSet, out: Path, recipe: Recipe, *, progress: Progress = silent
) -> Iterator[StageStatus]:
    """Yields the stages that the recipe has, in the order in which they run.

    Photographs whose content is not known from the last run are read.

    Args:
        images: The capture, with the masks that were given.
        out: The output folder of a run.
        recipe: What is to be done there.
        progress: Wraps the loop over files whose content is not known.

    Raises:
        ConfigError: `out` is no output of sfmprep.
        StoreError: what the run noted there is damaged.
    """
    workspace = Workspace(out)
    if not workspace.recipe.is_file():
        raise ConfigError(f"{out} is not an output of sfmprep: it has no recipe.yaml.")
    before = None
    if recipe.motion_masks is not None:
        before = ledger_of_given(images, out, recipe, progress=progress)
        images = masked(images, workspace) if before.is_done(MOTION_MASKS) else images
    contents = read_contents(workspace, images, progress=progress)
    here = (frontend for frontend in recipe.frontends if has_weights(frontend))
    choice = earlier_choice(workspace, recipe) or next(here, recipe.frontends[0])
    ledger = Ledger(
        *(out, recipe.with_frontend(choice), contents.now, images.developed_sha256),
        find_rigs(images, recipe),
    )
    for name in STAGES:
        of = before if before and name == MOTION_MASKS else ledger
        if of.keys.applies(name):
            damaged = [file.relative_to(out).as_posix() for file in of.damaged(name)]
            yield StageStatus(
                name=name,
                file=of.file(name),
                is_done=of.is_done(name) and not damaged,
                why=[*of.why(name), *(f"{file} was changed" for file in damaged)],
            )
