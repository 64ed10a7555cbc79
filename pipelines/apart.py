"""What runs in a process of its own: COLMAP's mapper and long adjustments.

A failed check of COLMAP, a lack of memory or a fault in native code ends that process
and no more; and it can be stopped at once. Models come back through files.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pycolmap

from sfmprep.budget import Budget
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig, KnownPosesConfig, MappingConfig, Recipe
from sfmprep.errors import ReconstructionError
from sfmprep.executors.isolated import DiedError, begun_ahead, run_isolated
from sfmprep.executors.protocol import Executor, Shards
from sfmprep.geometry.views import ModelArrays
from sfmprep.known_poses.poses import KnownPoses
from sfmprep.known_poses.read import read_poses
from sfmprep.mapping.add import add_images, adjust_whole
from sfmprep.mapping.adjust import refine_model
from sfmprep.mapping.database import write_errors
from sfmprep.mapping.from_poses import map_from_poses, map_from_start
from sfmprep.mapping.given_cameras import with_known_centre
from sfmprep.mapping.mapper import continue_models, map_images
from sfmprep.mapping.models import read_packed, write_packed
from sfmprep.mapping.rigs import hold_rigs
from sfmprep.mapping.trust import Trust, consistency_of, leave_out, measure_trust
from sfmprep.mapping.trusted import Mapper, map_trusted, part_unheld
from sfmprep.mapping.view_reader import Scales
from sfmprep.pairing.pairs import Pairs
from sfmprep.pipelines.refine_poses import given_cameras, read_known
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, silent
from sfmprep.refinement.refine import refine_keypoints
from sfmprep.semidense.join import network_scales
from sfmprep.semidense.remeasure import remeasure
from sfmprep.stores.tables import DenseStore

logger = logging.getLogger(__name__)

CHANGES = "pose_changes.json"  # beside the archive: what became of given poses


def apart(function: Callable[..., Any], *args: Any, progress: Progress = silent) -> Any:
    """Returns what a function of this module does in another process.

    Raises:
        ReconstructionError: the process died.
    """
    try:
        return run_isolated(function, *args, progress=progress)
    except DiedError as error:
        said = f" It said: {error.said.rstrip('.')}." if error.said else ""
        raise ReconstructionError(
            f"the process of COLMAP was ended {error.how}.{said} Features, matches and"
            " database are kept: the same command goes on from there. If it happens"
            " again, report it with the database, or try --set mapping.type=global."
        ) from error


@contextmanager
def ready_to_map(run: Run) -> Iterator[None]:
    """Begins the process of the mapper beside extraction, unless the run has mapped."""
    if run.recipe.mapping.type == "none" or run.ledger.is_done("map"):
        yield
        return
    with process_ahead():
        yield


def process_ahead() -> AbstractContextManager[None]:
    """Begins the process of the first `apart` of a block, beside what is before it."""
    return begun_ahead(__name__)


def map_into(
    packed: Path,
    database: Path,
    images: ImageSet,
    config: MappingConfig,
    cameras: DatabaseConfig,
    scales: Scales,
    seed: int,
    budget: Budget,
    given: KnownPosesConfig | None = None,
    start: Path | None = None,
    focal_lengths: Mapping[str, float] = MappingProxyType({}),
    *,
    progress: Progress = silent,
) -> tuple[int, Budget]:
    """Maps into an archive, and writes none if there is no model.

    Returns:
        How many models there are, and the budget as it is then.

    Beside it goes what the largest model is worth (see `consistency_of`), and where
    poses are given, `pose_changes.json`.

    Raises:
        SfmprepError: see `map_images`, `Trust.write` and `write_packed`.
    """
    poses = None if given is None else read_known(given)

    def mapper(path: Path, place: Path) -> list[pycolmap.Reconstruction]:
        if given is not None and poses is not None:
            models, changes = map_from_poses(
                *(path, images, place, config, poses),
                where=str(given.path),
                time_offset=given.time_offset,
                cameras=cameras,
                scales=scales,
                seed=seed,
                progress=progress,
            )
            changes.write(packed.with_name(CHANGES))
            return models
        if start is not None:
            begun = read_poses(start, axes="opencv", direction="world_from_cam")
            assert isinstance(begun, KnownPoses)  # a table
            models = map_from_start(
                *(path, images, place, config, begun),
                cameras=cameras,
                scales=scales,
                focal_lengths=focal_lengths,
                seed=seed,
                progress=progress,
            )
            if models:
                return models
            logger.warning("the poses in %s are no start; others are searched", start)
        return map_images(
            *(path, images, place, config),
            cameras=cameras,
            scales=scales,
            focal_lengths=focal_lengths,
            seed=seed,
            progress=progress,
            budget=budget,
        )

    with _scratch(packed) as folder:
        models, trust = map_trusted(database, folder, mapper)
    if models:
        trust.write(consistency_of(packed))
        write_packed(packed, models)
    return len(models), budget


def continue_into(
    packed: Path,
    mapped: Path,
    database: Path,
    images: ImageSet,
    config: MappingConfig,
    cameras: DatabaseConfig,
    scales: Scales,
    seed: int,
    given: KnownPosesConfig | None = None,
    *,
    progress: Progress = silent,
) -> int:
    """Goes on with the models of an archive, into another; returns how many there are.

    Pairs that were left out before stay so, views that hang against most of their own
    pairs are parted from their model, and what the largest is worth is measured again.

    Raises:
        SfmprepError: see `continue_models`, `read_packed`, `Trust` and `write_packed`.
    """
    trust = Trust.read(consistency_of(mapped))

    def go_on(reduced: Path, folder: Path) -> list[pycolmap.Reconstruction]:
        models = continue_models(
            *(read_packed(mapped), reduced, images, folder, config),
            cameras=cameras,
            scales=scales,
            given=given_cameras(given, images),
            seed=seed,
            progress=progress,
        )
        return part_unheld(database, models, trust)

    return _without_left_out(packed, database, trust, go_on)


def add_into(
    packed: Path,
    finished: Path,
    trust: Trust,
    database: Path,
    images: ImageSet,
    recipe: Recipe,
    scales: Scales,
    adjust: bool,
    *,
    progress: Progress = silent,
) -> None:
    """Adds images to the models of an archive, into another.

    With `adjust`, all of the largest is then adjusted, and lies where that leaves it.

    Raises:
        SfmprepError: see `add_images`, `adjust_whole`, `read_packed`, `Trust` and
            `write_packed`.
    """

    def add(reduced: Path, folder: Path) -> list[pycolmap.Reconstruction]:
        largest, *others = add_images(
            *(read_packed(finished), reduced, images, folder, recipe.mapping),
            cameras=recipe.database,
            scales=scales,
            seed=recipe.seed,
            progress=progress,
        )
        if adjust:
            largest = adjust_whole(
                *(largest, recipe.mapping, recipe.database),
                given=given_cameras(recipe.known_poses, images),
            )
        return [largest, *others]

    _without_left_out(packed, database, trust, add)


def _without_left_out(
    packed: Path, database: Path, trust: Trust, mapper: Mapper
) -> int:
    """Maps on without the pairs that were left out; measures trust, and writes both."""
    with _scratch(packed) as folder:
        reduced = database
        if trust.left_out:
            reduced = folder / "reduced.db"
            leave_out(database, reduced, trust.left_out)
        models = mapper(reduced, folder / "models")
    trust = measure_trust(database, models, trust.left_out, trust.cleared)
    trust.write(consistency_of(packed))
    write_packed(packed, models)
    return len(models)


@contextmanager
def _scratch(packed: Path) -> Iterator[Path]:
    """A new folder beside an archive, for what is in between; it is gone afterwards."""
    folder = packed.with_name(".mapping")
    shutil.rmtree(folder, ignore_errors=True)  # of a process that died
    folder.mkdir()
    try:
        with write_errors(packed):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def refine_into(
    packed: Path,
    mapped: Path,
    dense: Path,
    tried: Pairs | None,
    images: ImageSet,
    recipe: Recipe,
    cluster: Executor | None = None,
    *,
    progress: Progress = silent,
) -> None:
    """Measures keypoints of tracks better and adjusts to them, from archive to archive.

    Raises:
        SfmprepError: see the functions that it calls.
    """
    parts = packed.with_name(f"{packed.name}.parts")
    shards = None if cluster is None else Shards(cluster, parts)
    given = given_cameras(recipe.known_poses, images)
    models = [
        _refined(model, dense, tried, images, recipe, given, shards, progress)
        for model in read_packed(mapped)
    ]
    write_packed(packed, models)
    shutil.rmtree(parts, ignore_errors=True)


def hold_rigs_into(
    packed: Path,
    mapped: Path,
    database: Path,
    rigs: Path,
    settled: Sequence[Collection[str]] = (),
    *,
    progress: Progress = silent,
) -> None:
    """Brings poses into rigs, from archive to archive.

    Settled are the images of finished models: those of the first stay as they are in
    the model that has grown from it, and the other models stay whole.

    Raises:
        SfmprepError: see `hold_rigs`, `read_packed` and `write_packed`.
    """
    configs = pycolmap.read_rig_config(rigs)
    models = []
    kept = settled[0] if settled else ()
    for model in progress(read_packed(mapped), desc="rigs"):
        if {model.images[key].name for key in model.reg_image_ids()} in settled:
            models.append(model)
            continue
        with _scratch(packed) as folder:
            models.append(hold_rigs(model, configs, database, folder, settled=kept))
    write_packed(packed, models)


def _refined(
    model: pycolmap.Reconstruction,
    dense: Path,
    tried: Pairs | None,
    images: ImageSet,
    recipe: Recipe,
    given: Mapping[str, pycolmap.Camera],
    shards: Shards | None,
    progress: Progress,
) -> pycolmap.Reconstruction:
    known = with_known_centre(model, recipe.database, given)
    if recipe.dense is not None:
        scales = network_scales(images, recipe.dense)
        with DenseStore(dense) as store:
            remeasure(
                model,
                ModelArrays.of(model),
                store,
                radii={name: recipe.dense.radius * s for name, s in scales.items()},
                tried=tried,
            )
        model = refine_model(
            *(model, recipe.mapping), refine=recipe.database.refine, known_centres=known
        )
    if recipe.refinement is not None and recipe.refinement.is_for(len(images)):
        refine_keypoints(
            model,
            ModelArrays.of(model),
            images,
            recipe.refinement,
            max_size=recipe.features.max_size,
            num_workers=recipe.engine.num_workers,
            shards=shards,
            progress=progress,
        )
        model = refine_model(
            *(model, recipe.mapping), refine=recipe.database.refine, known_centres=known
        )
    return model
