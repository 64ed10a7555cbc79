"""The last stage: which models become datasets, and where they lie.

The largest is in the output folder itself, further ones in `submodels/NUMBER`: behind
`sparse`, because Brush scans the whole tree, and of equal models takes the first one.
Of point clouds it takes the last one, so `init.ply`, which it prefers, is that of the
largest.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pycolmap

from sfmprep.capture.batches import reduction_scales
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import has_masks
from sfmprep.config import ExportConfig, Recipe
from sfmprep.dataset.initial_points import seed_points
from sfmprep.dataset.world_frame import WorldFrame, apply_world, find_world
from sfmprep.errors import ConfigError, ReconstructionError
from sfmprep.executors.protocol import Shards
from sfmprep.export.dataset import ExportSummary, export_dataset
from sfmprep.export.install import INIT, SUBMODELS, WORLD
from sfmprep.export.listing import LISTING, is_begun, is_export
from sfmprep.export.spheres import CLOUD
from sfmprep.export.taken_over import EarlierExport
from sfmprep.export.targets import plan_folders
from sfmprep.export.tracks import TRACKS
from sfmprep.geometry.pointmaps import Depths
from sfmprep.geometry.uncertainty import PoseUncertainty
from sfmprep.geometry.views import ModelArrays
from sfmprep.pipelines.artefacts import in_world, open_result, read_poses
from sfmprep.pipelines.depths import find_depths
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, silent
from sfmprep.report.findings import below_floors
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import FeatureStore

logger = logging.getLogger(__name__)


def dataset_folders(
    out: Path, recipe: Recipe, models: Sequence[pycolmap.Reconstruction]
) -> dict[int, Path]:
    """The folder of each model's dataset, by the model's number, that of 0 first.

    Raises:
        ConfigError: `export.models` names a model that there is not.
    """
    wanted = recipe.export.models
    if wanted is None:
        sizes = [(m.num_reg_images(), m.num_points3D()) for m in models]
        numbers = [n for n, size in enumerate(sizes) if n and not below_floors(*size)]
    else:
        numbers = sorted({*wanted} - {0})
    if numbers and numbers[-1] >= len(models):
        there = (
            "one, 0" if len(models) == 1 else f"{len(models)}, 0 to {len(models) - 1}"
        )
        raise ConfigError(
            f"export.models: there is no model {numbers[-1]}, there are {there}."
            " `sfmprep report` lists them."
        )
    return {0: out} | {n: out / SUBMODELS / str(n) for n in numbers}


def datasets_below(out: Path) -> dict[int, str]:
    """The folders of the datasets beside the largest that are complete, by number."""
    found = {}
    for folder in out.glob(f"{SUBMODELS}/*"):
        if folder.name.isdigit() and is_export(folder) and not is_begun(folder):
            found[int(folder.name)] = f"{SUBMODELS}/{folder.name}"
    return dict(sorted(found.items()))


def _write_init(out: Path) -> None:
    """Names the cloud of the largest model to Brush, where there are others."""
    cloud = out / "sparse" / "0" / "points3D.ply"
    if cloud.is_file():
        shutil.copyfile(cloud, out / INIT)


def export_models(
    run: Run,
    models: Sequence[pycolmap.Reconstruction],
    *,
    world: WorldFrame | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> None:
    """Writes a dataset of each model that the recipe wants, unless that is done.

    Args:
        run: The run.
        models: Largest first.
        world: The frame of the largest; None to find it.
        device: Where the network runs, if one gives initial points.
        progress: Wraps the loops over images.

    Raises:
        ConfigError, ImageError, ReconstructionError, StoreError: see
            `dataset_folders`, `find_world`, `seed_points` and `export_dataset`. Where
            a model beside the largest is why, that is a warning, and it has none.
    """
    folders = dataset_folders(run.workspace.out, run.recipe, models)
    has_others = len(folders) > 1
    if run.ledger.is_done("export") and all(
        _is_whole(run, folder, has_others=has_others and not number)
        for number, folder in folders.items()
    ):
        shutil.rmtree(run.workspace.adding, ignore_errors=True)
        return
    depths = find_depths(run, models, device=device, progress=progress)
    run.begin("export")
    features, matches = open_result(run)
    parts = run.workspace.work / "export.parts"
    with features, matches:
        for number, folder in folders.items():
            try:
                write_dataset(
                    *(models[number], run.images, folder, run.recipe.export),
                    *(features, matches, read_poses(run, number).uncertainties),
                    scales=reduction_scales(run.images, run.recipe.features.max_size),
                    depths=depths[number],
                    world=None if number else world,
                    earlier=_earlier(run, folder),
                    shards=Shards(run.cluster, parts) if run.cluster else None,
                    progress=progress,
                )
            except (ConfigError, ReconstructionError) as error:
                if not number:
                    raise
                logger.warning("model %d has no dataset: %s", number, error)
    if has_others:
        _write_init(run.workspace.out)
    run.finish("export")
    for past in (run.workspace.earlier_dataset, run.workspace.adding):
        shutil.rmtree(past, ignore_errors=True)
    shutil.rmtree(parts, ignore_errors=True)


def write_dataset(
    model: pycolmap.Reconstruction,
    images: ImageSet,
    folder: Path,
    config: ExportConfig,
    features: FeatureStore,
    matches: MatchReader,
    uncertainties: Mapping[str, PoseUncertainty],
    *,
    scales: Mapping[str, float] | None,
    depths: Mapping[str, Depths] = MappingProxyType({}),
    world: WorldFrame | None = None,
    earlier: EarlierExport | None = None,
    shards: Shards | None = None,
    progress: Progress,
) -> ExportSummary:
    """Writes the dataset of a model: its frame, points to start from, and images.

    The frame is found, unless there is one.

    Raises:
        ConfigError, ImageError, ReconstructionError, StoreError: see `find_world`,
            `seed_points` and `export_dataset`.
    """
    world = world or find_world(model, images, config.world)
    seeded = seed_points(
        *(model, ModelArrays.of(model), images, features, matches, config.seed),
        scales=scales,
        depths=depths,
        progress=progress,
    )
    return export_dataset(
        *(apply_world(seeded, world.world_from_sfm), images, folder, config),
        world=world,
        uncertainties=in_world(uncertainties, float(world.world_from_sfm.scale)),
        earlier=earlier,
        shards=shards,
        progress=progress,
    )


def _earlier(run: Run, folder: Path) -> EarlierExport:
    """The dataset that lay in a folder, which was set aside."""
    place = run.workspace.earlier_dataset / folder.relative_to(run.workspace.out)
    return EarlierExport(folder=place, contents=run.ledger.keys.images)


def _is_whole(run: Run, out: Path, *, has_others: bool) -> bool:
    """Whether all that an export writes into a folder is still there."""
    config = run.recipe.export
    for folder in plan_folders(config, with_masks=has_masks(run.images)):
        is_round = folder.layout.pixels == "spheres"
        entries = ["images", CLOUD if is_round else "sparse", LISTING, WORLD]
        if folder.layout.pixels != "stored":
            entries += [f"images_{factor}" for factor in config.downscales]
        if folder.layout.has_json:
            entries.append("transforms.json")
        if config.tracks and not is_round:
            entries.append(TRACKS)
        if has_others and not folder.name and folder.layout.pixels == "upright":
            entries.append(INIT)
        place = out / folder.name
        if not all((place / entry).exists() for entry in entries):
            return False
    return True
