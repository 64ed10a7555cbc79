"""Begins a run in an output folder, or goes on in it."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from sfmprep.budget import Budget
from sfmprep.capture.identity import FileDigest, content_sha256, masks_sha256
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import check_masks
from sfmprep.config import Frontend, Recipe
from sfmprep.config.load import read_resolved
from sfmprep.dataset.georeference import MIN_POSITIONS
from sfmprep.errors import ConfigError, ImageError, StoreError
from sfmprep.executors.local import Processes
from sfmprep.executors.protocol import Executor
from sfmprep.export.install import set_dataset_aside
from sfmprep.export.spheres import expect_spheres
from sfmprep.export.targets import plan_folders
from sfmprep.files import as_written, read_table, write_text
from sfmprep.frontend.in_shards import changed_since, parts_of
from sfmprep.pipelines.choose_frontend import (
    choose_frontend,
    fetch_weights,
    has_weights,
    rungs_to_be_had,
)
from sfmprep.pipelines.ledger import Ledger
from sfmprep.pipelines.refine_poses import poses_of
from sfmprep.pipelines.rigs import find_rigs
from sfmprep.pipelines.stage_keys import checksum
from sfmprep.pipelines.stage_table import STAGES
from sfmprep.pipelines.workspace import Workspace
from sfmprep.progress import Progress, silent
from sfmprep.stores.ragged import DamagedError
from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore, RowStore
from sfmprep.weights import resolve_weights

logger = logging.getLogger(__name__)

Digests = Mapping[str, FileDigest]


@dataclass(frozen=True)
class Run:
    """What every stage works on."""

    images: ImageSet
    workspace: Workspace
    recipe: Recipe  # with one choice of features and matcher
    ledger: Ledger
    budget: Budget  # for what is beyond the first rung
    cluster: Executor | None = None  # has done what it can
    left_out: set[str] = field(default_factory=set)  # images named as that before

    @cached_property
    def recipe_text(self) -> str:
        """The recipe as YAML."""
        return self.recipe.to_yaml()

    def executor_on(self, device: str) -> Executor | None:
        """What does the work of networks; None for this process, on one device."""
        devices = device.split(",")
        return self.cluster or (Processes(devices) if len(devices) > 1 else None)

    def begin(self, stage: str) -> None:
        """Notes that an artefact is being written, and by which recipe.

        A dataset of an earlier run, which it will not belong to, is moved out of sight
        until the next one is complete.

        Raises:
            StoreError: it would replace what somebody edited.
        """
        self.expect_unedited(stage)
        if not self.ledger.is_done("export"):
            set_dataset_aside(self.workspace.out, self.workspace.earlier_dataset)
        if self.workspace.features.is_file():  # else the choice is still open
            write_text(self.workspace.recipe, self.recipe_text)
        self.ledger.begin(stage)

    def finish(self, stage: str) -> None:
        """Notes that an artefact is complete."""
        self.ledger.finish(stage)

    def expect_unedited(self, stage: str) -> None:
        """Raises StoreError if somebody edited the text file of a stage."""
        if self.ledger.is_edited(stage):
            raise StoreError(
                f"{self.ledger.file(stage)} was edited by hand. Delete it, and it is"
                " made anew; pairs of your own go into a file elsewhere, which --pairs"
                " names."
            )


@contextmanager
def open_run(
    images: ImageSet,
    out: Path,
    recipe: Recipe,
    *,
    goes_on: bool = False,
    cluster: Executor | None = None,
    progress: Progress = silent,
) -> Iterator[Run]:
    """Makes the output folder or goes on in it, and holds its lock.

    The choice of features and matcher is that of the features that are there, if the
    recipe has it, else the first whose weights can be had. Photographs and masks whose
    content changed lose their features and matches, which are then made anew.

    Args:
        images: The capture.
        out: The output folder.
        recipe: What to do.
        goes_on: Whether features must be there already.
        cluster: Has done what it can; None for this machine.
        progress: Wraps the loop over files whose content is not known yet.

    Raises:
        ImageError: fewer than two images can be used, or a file cannot.
        ConfigError: the dataset that is asked for cannot be made of these images, or
            results may not go to `out`.
        StoreError: another run works in `out`, it cannot be written, or it holds no
            features though the run goes on.
        WeightsError: see `choose_frontend` and `fetch_weights`.
    """
    workspace = Workspace(out)
    _check(images, workspace, recipe)
    rigs = find_rigs(images, recipe)
    if goes_on and not workspace.features.is_file():
        raise StoreError(
            f"{workspace.features} is missing or incomplete. Run `sfmprep extract`"
            " first."
        )
    # before there is a folder: it may fail
    chosen = choose(workspace, recipe, len(images))
    with workspace.locked():
        contents = read_contents(workspace, images, progress=progress)
        _note(workspace, images, contents)
        now = chosen if workspace.features.is_file() else recipe
        if not goes_on:  # else not before it is known that this stage can
            shutil.rmtree(workspace.adding, ignore_errors=True)
            write_text(workspace.recipe, now.to_yaml())
        ledger = Ledger(out, chosen, contents.now, images.developed_sha256, rigs)
        _forget_damaged(ledger)
        minutes = chosen.budget_minutes
        budget = Budget(None if minutes is None else 60 * minutes)
        yield Run(images, workspace, chosen, ledger, budget, cluster)
        if goes_on:
            write_text(workspace.recipe, now.to_yaml())


def _check(images: ImageSet, workspace: Workspace, recipe: Recipe) -> None:
    """Raises what can be known before anything is written."""
    for name, reason in images.unreadable.items():
        logger.warning("%s is left out: %s", images.path(name), reason)
    for name, first in images.copies.items():
        logger.warning(
            "%s is left out: its content is that of %s, which is used",
            *(images.path(name), first),
        )
    if len(images) < 2:
        raise ImageError(
            f"{images.root} holds one image that can be used, {images.names[0]};"
            " poses need at least two. Take twenty or more, a step apart."
        )
    check_masks(images)
    plan_folders(recipe.export, with_masks=images.mask_root is not None)
    if "nerfstudio-360" in recipe.export.targets:
        expect_spheres(images, [panorama.name for panorama in images.panoramas])
    with_gps = sum(images.infos[name].gps is not None for name in images.names)
    if recipe.export.world.georeference is True and with_gps < MIN_POSITIONS:
        raise ConfigError(
            f"georeference needs GPS in {MIN_POSITIONS} photographs or more, but"
            f" {with_gps} of the {len(images)} in {images.root} have it. Leave it out."
        )
    if recipe.known_poses is not None:
        poses_of(recipe.known_poses, images.names, images.panoramas)
    workspace.check_place(images.source)


def earlier_choice(workspace: Workspace, recipe: Recipe) -> Frontend | None:
    """The choice that the features here were made with, if the recipe has it."""
    if not (workspace.recipe.is_file() and workspace.features.is_file()):
        return None
    made = read_resolved(workspace.recipe)
    if made.otherwise:
        return None  # it was stopped between the first of a store and the choice
    same = (
        frontend
        for frontend in recipe.frontends
        if (frontend.features, frontend.matcher) == (made.features, made.matcher)
    )
    return next(same, None)


def choose(workspace: Workspace, recipe: Recipe, num_images: int) -> Recipe:
    """The recipe with one choice of features and matcher.

    Raises:
        WeightsError: see `choose_frontend` and `fetch_weights`.
    """
    flow = recipe.tracks.flow if recipe.tracks else None
    pointmaps = recipe.foresee.network if recipe.foresee else None
    deep = recipe.export.seed.pointmaps
    is_small = num_images <= getattr(recipe.pairs, "exhaustive_up_to", 0)
    retriever = None if is_small else recipe.retriever
    earlier = earlier_choice(workspace, recipe)
    if earlier is not None:
        logger.info("features: %s, as in the earlier run", earlier.label())
        _mention_better(recipe, recipe.frontends.index(earlier))
        if not workspace.matches.is_file():
            for name, path in earlier.matcher.needed_weights():
                resolve_weights(name, path)
        fetch_weights(
            None if workspace.rows.is_file() else retriever,
            None if workspace.tracks.is_file() else flow,
            None if workspace.foreseen.is_file() else pointmaps,
            None if workspace.depths.is_dir() else deep,
        )
        made = read_resolved(workspace.recipe)
        stores = {
            "stronger": workspace.stronger_matches,
            "beside": workspace.features_beside,
            "dense": workspace.dense,
            "closer": workspace.features_closer,
        }
        used = [key for key, path in stores.items() if path.is_file()]
        recipe = recipe.with_frontend(earlier)
        return rungs_to_be_had(recipe, earlier=made, used=used)
    recipe = choose_frontend(recipe)
    fetch_weights(retriever, flow, pointmaps, deep)
    return recipe


def _mention_better(recipe: Recipe, taken: int) -> None:
    for frontend in recipe.frontends[:taken]:
        if has_weights(frontend):
            logger.info(
                "the weights of %s are here now, which the recipe prefers; a new output"
                " folder would use them",
                frontend.label(),
            )
            return


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The photographs and masks as they are now, and what an earlier run saw."""

    now: dict[str, str]  # checksum of each photograph with its mask, by name
    changed: list[str]
    gone: list[str]  # since the last run
    manifest: dict[str, Digests]  # also of those that are gone: they may come back

    def to_json(self) -> str:
        """As the next run reads it."""
        table = {**self.manifest, "present": [*self.now]}
        return json.dumps(table, ensure_ascii=False)


def read_contents(
    workspace: Workspace, images: ImageSet, *, progress: Progress = silent
) -> Contents:
    """Reads the files whose size or time is not that of the last run."""
    table = read_table(workspace.manifest)
    with as_written(workspace.manifest):
        photographs, masks = (
            {
                name: FileDigest.from_json(row)
                for name, row in table.get(part, {}).items()
            }
            for part in ("photographs", "masks")
        )
        present = {str(name) for name in table.get("present", photographs)}
    now_photographs = content_sha256(images, photographs, progress=progress)
    now_masks = masks_sha256(images, masks, progress=progress)
    was, now = _checksums(photographs, masks), _checksums(now_photographs, now_masks)
    kept = {name: digest for name, digest in masks.items() if name not in now}
    return Contents(
        now=now,
        changed=[name for name in now if was.get(name, now[name]) != now[name]],
        gone=sorted(present - now.keys()),
        manifest={
            "photographs": {**photographs, **now_photographs},
            "masks": {**kept, **now_masks},
        },
    )


def _note(workspace: Workspace, images: ImageSet, contents: Contents) -> None:
    """Writes the manifest, and forgets what was made of other photographs."""
    if gone := contents.gone:
        logger.warning(
            "%d images of the earlier run, such as %s, are not in %s now, so the"
            " result will be without them",
            len(gone),
            gone[0],
            images.root,
        )
    if changed := contents.changed:
        logger.warning(
            "%d images or their masks, such as %s, changed since the earlier run; their"
            " features and matches are made anew",
            len(changed),
            changed[0],
        )
        _forget(workspace, changed)
    parts = sorted(parts_of(workspace.features).glob("*.h5"))
    if others := {name for part in parts for name in changed_since(part, contents.now)}:
        logger.warning(
            "%d images or their masks, such as %s, are not what shares were extracted"
            " of; their features are made anew",
            len(others),
            min(others),
        )
        _forget(workspace, sorted(others))
    write_text(workspace.manifest, contents.to_json())


def _forget_damaged(ledger: Ledger) -> None:
    """Has stages made again whose files are not what was written there."""
    for stage in filter(ledger.keys.applies, STAGES):
        for file in (found := ledger.damaged(stage)):
            logger.warning(
                "%s is not what was written there: it was changed, or its disk loses"
                " what it holds. It is made again; have the disk looked at if nobody"
                " changed it.",
                file,
            )
        if found:
            ledger.forget(stage)


def _checksums(photographs: Digests, masks: Digests) -> dict[str, str]:
    return {
        name: checksum([digest.sha256, masks[name].sha256 if name in masks else None])
        for name, digest in photographs.items()
    }


def _forget(workspace: Workspace, names: list[str]) -> None:
    """Takes images out of all that grows."""
    for kind, path in (
        (FeatureStore, workspace.features),
        (RowStore, workspace.rows),
        (MatchStore, workspace.matches),
        (FeatureStore, workspace.features_beside),
        (MatchStore, workspace.matches_beside),
        (MatchStore, workspace.stronger_matches),
        (FeatureStore, workspace.features_closer),
        (MatchStore, workspace.matches_closer),
        (DenseStore, workspace.dense),
    ):
        if path.is_file():
            kind.forget(path, names)
        for part in parts_of(path).glob("*.h5"):
            try:
                kind.forget(part, names)
            except DamagedError:
                part.unlink()
    if workspace.earlier.is_dir():
        for file in workspace.earlier.glob("*.h5"):
            file.unlink()
