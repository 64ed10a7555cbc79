"""Photographs that came later join a finished result, which stays as it is.

Features and matches are added to those that are there, and the new photographs are
registered in the largest model. Its poses, its cameras and the world of the dataset
stay, so what was made with them, such as a splat, goes on being right. Or, where that
is asked for, all of it is adjusted with what the new ones tell.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.capture.batches import reduction_scales
from sfmprep.config import Recipe
from sfmprep.dataset.world_frame import WorldFrame
from sfmprep.errors import ConfigError, StoreError
from sfmprep.export.install import WORLD
from sfmprep.export.place import GEOREFERENCE
from sfmprep.files import read_table
from sfmprep.mapping.add import Moved, bring_back
from sfmprep.mapping.database import remove_database
from sfmprep.mapping.models import read_packed, write_packed
from sfmprep.mapping.trust import Trust, consistency_of
from sfmprep.pairing.pairs import Pairs
from sfmprep.pipelines import map_stages, reporting, stages
from sfmprep.pipelines.apart import add_into, apart, process_ahead
from sfmprep.pipelines.artefacts import (
    mapped_last,
    models_in,
    open_keypoints,
    pass_on,
    read_poses,
)
from sfmprep.pipelines.choose_pairs import make_pairs
from sfmprep.pipelines.closer import look_at_nothing
from sfmprep.pipelines.datasets import export_models
from sfmprep.pipelines.develop import find_capture
from sfmprep.pipelines.foreseen import foresee_nothing
from sfmprep.pipelines.matching import match_pairs
from sfmprep.pipelines.reporting import timed
from sfmprep.pipelines.run import Run, open_run
from sfmprep.pipelines.workspace import Workspace
from sfmprep.progress import Progress, silent
from sfmprep.report.schema import Added, Report

logger = logging.getLogger(__name__)

_MODELS = "models.zip"  # in `Workspace.adding`


def add_photographs(
    source: Path,
    out: Path,
    recipe: Recipe,
    *,
    adjust: bool = False,
    device: str = "cpu",
    progress: Progress = silent,
) -> Report:
    """Registers photographs that were added to a folder since its dataset was made.

    Args:
        source: The folder that the dataset was made from, with the new photographs.
        out: The output folder of a finished run.
        recipe: That of this run.
        adjust: Whether all of the largest model is adjusted with them and brought back
            to where it was; then none needs to be new.
        device: Where networks run.
        progress: Wraps the loops.

    Returns:
        What was found; also in the reports in `out`.

    Raises:
        ConfigError: there is no finished result in `out`, no new photograph (without
            `adjust`), or too few of the earlier ones are left; or the result is of
            semi-dense matching or of a closer look, or has masks of what moves, which
            depend on all photographs together.
        StoreError: the models are damaged.
        SfmprepError: as for a run; what is done until then is kept.
    """
    place = Workspace(out)
    is_begun = (place.adding / WORLD).is_file()  # an earlier call was stopped
    has_models = (place.models / "0").is_dir() and (out / WORLD).is_file()
    if not is_begun and not has_models:
        raise ConfigError(
            f"{out} holds no finished dataset to add to. Run `sfmprep reconstruct`"
            " first."
        )
    if recipe.dense is not None:
        raise ConfigError(
            "what semi-dense matching finds in one photograph depends on all of them,"
            " so none can be added alone. Run `sfmprep reconstruct` again: it goes on"
            " with what is there."
        )
    if recipe.motion_masks is not None:
        raise ConfigError(
            "what moves is found by all photographs together, so none can be added"
            " alone. Run `sfmprep reconstruct` again: it goes on with what is there."
        )
    if recipe.closer is not None and place.closer_database.is_file():
        raise ConfigError(
            f"images of {out} got their poses by a closer look, whose keypoints others"
            " do not have, so none can be added alone. Run `sfmprep reconstruct`"
            " again: it goes on with what is there."
        )
    world = _world(place.adding if is_begun else out)
    images = find_capture(source, out, recipe, device=device, progress=progress)
    seconds: dict[str, float] = {}
    with open_run(images, out, recipe, goes_on=True, progress=progress) as run:
        # what was damaged, as is told, or made by an earlier sfmprep
        start = place.adding / _MODELS if is_begun else place.models
        for path in (start, consistency_of(mapped_last(run))):
            if not path.exists():
                raise StoreError(
                    f"{path} is to be made again. Run `sfmprep reconstruct` first."
                )
        models = read_packed(start) if is_begun else models_in(start)
        posed = [{m.images[key].name for key in m.reg_image_ids()} for m in models]
        _expect_enough(source, out, posed, images.names)
        earlier = _earlier_pairs(run)
        before = {name for pair in earlier for name in pair}.union(*posed)
        new = set(images.names) - before
        if not new and not adjust and not is_begun:
            raise ConfigError(
                f"{source} holds no photograph that is not in {out} already. Put the"
                " new ones into that folder, or add --adjust to adjust what is there."
            )
        if new:
            logger.info("%d new photographs, such as %s", len(new), min(new))
        finished = models[0]
        # of what an earlier call has changed, nothing is known
        sharpness = {} if is_begun else read_poses(run).sharpness
        if not is_begun:
            _begin(place, models)
        with process_ahead():
            undecoded = _fill_database(run, earlier, seconds, device, progress)
            with timed(seconds, "map"):
                _register(run, adjust, progress)
                models = read_packed(run.workspace.mapped)
                models = map_stages.hold_rigs(
                    run,
                    models,
                    settled=[set(), *posed[1:]] if adjust else posed,
                    progress=progress,
                )
                moved = bring_back(models[0], finished) if adjust else None
                models = map_stages.set_outliers_aside(
                    run, models, sharpness=sharpness, progress=progress
                )
        with timed(seconds, "export"):
            export_models(run, models, world=world, device=device, progress=progress)
        with open_keypoints(run) as features:
            return reporting.write_report(
                *(run, models, features),
                unreadable=undecoded,
                seconds=seconds,
                added=_added(finished, models[0], moved, adjust=adjust),
            )


def _expect_enough(
    source: Path, out: Path, posed: Sequence[set[str]], names: Sequence[str]
) -> None:
    """Raises ConfigError if the largest model would not be the largest any more."""
    left = len(posed[0].intersection(names))
    if left < max([2, *map(len, posed[1:])]):
        raise ConfigError(
            f"{left} of the {len(posed[0])} photographs of the largest model in {out}"
            f" are left in {source}, too few to add to. Put the others back, or run"
            " `sfmprep reconstruct` again, which maps anew."
        )


def _begin(place: Workspace, models: list[pycolmap.Reconstruction]) -> None:
    """Keeps what a call that is stopped from now on cannot find any more."""
    shutil.rmtree(place.adding, ignore_errors=True)
    place.adding.mkdir()
    write_packed(place.adding / _MODELS, models)
    # that of the world last: with it all is there
    for name in (GEOREFERENCE, WORLD):
        if (place.out / name).is_file():
            shutil.copyfile(place.out / name, place.adding / f".{name}")
            (place.adding / f".{name}").replace(place.adding / name)


def _fill_database(
    run: Run,
    earlier: Pairs,
    seconds: dict[str, float],
    device: str,
    progress: Progress,
) -> dict[str, str]:
    """Adds features, matches and verified pairs; returns what cannot be decoded."""
    with timed(seconds, "extract"):
        features, undecoded = stages.extract(run, device=device, progress=progress)
    with features:
        pairs = make_pairs(run, features, kept=earlier, progress=progress)
        with (
            match_pairs(
                *(run, features, pairs, seconds), device=device, progress=progress
            ) as (joined, matches),
            timed(seconds, "database"),
        ):
            stages.fill_database(run, joined, pairs, matches, progress=progress)
    return undecoded


def _earlier_pairs(run: Run) -> Pairs:
    """The pairs of the finished run whose images are still there."""
    path = run.workspace.pairs
    if not path.is_file():
        return Pairs(())
    names = set(run.images.names)
    found = (line.split("\t") for line in path.read_text("utf-8").splitlines())
    return Pairs.of((a, b) for a, b in found if a in names and b in names)


def _register(run: Run, adjust: bool, progress: Progress) -> None:
    """Makes all artefacts of mapping of the finished models and the new images."""
    place = run.workspace
    finished = place.adding / _MODELS
    trust = Trust.read(consistency_of(mapped_last(run)))
    run.begin("map")
    apart(
        *(add_into, place.mapped, finished, trust, run.ledger.file("database")),
        *(run.images, run.recipe),
        reduction_scales(run.images, run.recipe.features.max_size),
        adjust,
        progress=progress,
    )
    if adjust:
        place.pose_changes.unlink(missing_ok=True)  # it tells of poses that moved since
    run.finish("map")
    if run.ledger.keys.applies("map on"):
        run.begin("second pairs")
        for path in (place.second_pairs, place.lost_pairs):
            Pairs(()).write(path)
        run.finish("second pairs")
        if run.recipe.foresee is not None:
            foresee_nothing(run)
        run.begin("map on")
        remove_database(place.second_database)
        pass_on(place.mapped, place.mapped_on)
        run.finish("map on")
    if run.recipe.closer is not None:
        look_at_nothing(run, run.recipe.closer, place.mapped)
    if run.ledger.keys.applies("refine"):  # it was, and the rest is where it was
        run.begin("refine")
        shutil.copyfile(place.mapped, place.refined)
        run.finish("refine")


def _added(
    earlier: pycolmap.Reconstruction,
    now: pycolmap.Reconstruction,
    moved: Moved | None,
    *,
    adjust: bool,
) -> Added:
    """What the report says of it; `moved` is None where that is not known, or 0."""
    before = {earlier.images[key].name for key in earlier.reg_image_ids()}
    after = {now.images[key].name for key in now.reg_image_ids()}
    sizes: list[float | None] = [None if adjust else 0.0] * 4
    if moved is not None:
        both = moved.rotation_deg, moved.share
        sizes = [float(of(each)) for each in both for of in (np.median, np.max)]
    return Added(
        num_earlier=len(before),
        num_added=len(after - before),
        is_adjusted=adjust,
        median_rotation_deg=sizes[0],
        max_rotation_deg=sizes[1],
        median_share=sizes[2],
        max_share=sizes[3],
    )


def _world(folder: Path) -> WorldFrame:
    """The frame of the finished dataset, by its files in a folder."""
    content = read_table(folder / WORLD)
    place = read_table(folder / GEOREFERENCE).get("origin")
    return WorldFrame(
        world_from_sfm=pycolmap.Sim3d(np.array(content["world_from_sfm"])[:3]),
        up=content["up"],
        scale=content["scale"],
        origin=tuple(place.values()) if place else None,
    )
