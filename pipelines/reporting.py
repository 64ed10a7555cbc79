"""The stages behind mapping: unsupported poses, the dataset, the report."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import pycolmap

from sfmprep.capture.identity import masks_signature
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import has_masks
from sfmprep.config import Recipe
from sfmprep.dataset.initial_points import seed_points
from sfmprep.dataset.world_frame import WorldFrame, apply_world, find_world
from sfmprep.export.dataset import ExportSummary, export_dataset
from sfmprep.export.install import WORLD
from sfmprep.export.listing import LISTING
from sfmprep.export.targets import plan_folders
from sfmprep.files import write_text
from sfmprep.geometry.uncertainty import PoseUncertainty, pose_uncertainties
from sfmprep.mapping.outliers import find_outliers, without_images
from sfmprep.pipelines.workspace import Workspace
from sfmprep.progress import Progress, silent
from sfmprep.report.collect import collect_report
from sfmprep.report.page import write_page
from sfmprep.report.reasons import UNREADABLE
from sfmprep.report.schema import Report
from sfmprep.stores.tables import FeatureStore, MatchStore


@dataclass(frozen=True, kw_only=True)
class Poses:
    """What is known of the largest model's poses, by image name."""

    # in the units of the model
    uncertainties: dict[str, PoseUncertainty] = field(default_factory=dict)
    # images that have no pose any more: reason
    outliers: dict[str, str] = field(default_factory=dict)


def set_outliers_aside(
    model: pycolmap.Reconstruction, workspace: Workspace, recipe: Recipe
) -> pycolmap.Reconstruction:
    """Takes poses that are not supported out of a model, and writes down which.

    They leave the model in `work/models` too: tools that scan a folder for models,
    such as Brush, take the one with most images.
    """
    uncertainties = pose_uncertainties(model)
    outliers = find_outliers(model, recipe.export.outliers, uncertainties)
    poses = Poses(uncertainties=uncertainties, outliers=outliers)
    write_text(workspace.poses, json.dumps(asdict(poses), ensure_ascii=False))
    if outliers:
        model = without_images(model, outliers)
        model.write(workspace.models / "0")
    return model


def read_poses(workspace: Workspace) -> Poses:
    """Reads what `set_outliers_aside` left; nothing where there was no mapping."""
    if not workspace.poses.is_file():
        return Poses()
    found = json.loads(workspace.poses.read_text("utf-8"))
    return Poses(
        uncertainties={
            name: PoseUncertainty(**values)
            for name, values in found["uncertainties"].items()
        },
        outliers=found["outliers"],
    )


def export(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    model: pycolmap.Reconstruction,
    features: FeatureStore,
    matches: MatchStore,
    *,
    progress: Progress = silent,
) -> ExportSummary | None:
    """Writes the dataset into the output folder, unless that is done (then None).

    Raises:
        ConfigError, ImageError, ReconstructionError, StoreError: see `find_world`,
            `seed_points` and `export_dataset`.
    """
    inputs = [
        workspace.done("map"),
        masks_signature(images),
        recipe.export.model_dump(mode="json"),
    ]
    if workspace.is_done("export", inputs) and _is_whole(images, workspace, recipe):
        return None
    workspace.start("export")
    world = find_world(model, images, recipe.export.world)
    seeded = seed_points(
        model, images, features, matches, recipe.export.seed, progress=progress
    )
    summary = export_dataset(
        apply_world(seeded, world),
        images,
        workspace.out,
        recipe.export,
        world=world,
        uncertainties=_in_world(read_poses(workspace).uncertainties, world),
        progress=progress,
    )
    workspace.finish("export", inputs)
    return summary


def _is_whole(images: ImageSet, workspace: Workspace, recipe: Recipe) -> bool:
    """Whether all that an export writes is still there."""
    config = recipe.export
    for folder in plan_folders(config, with_masks=has_masks(images)):
        entries = ["images", "sparse", LISTING, WORLD]
        if folder.layout.pixels == "upright":
            entries += [f"images_{factor}" for factor in config.downscales]
        if folder.layout.has_json:
            entries.append("transforms.json")
        place = workspace.out / folder.name
        if not all((place / entry).exists() for entry in entries):
            return False
    return True


def write_report(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    models: Sequence[pycolmap.Reconstruction],
    features: FeatureStore | None,
    *,
    unreadable: Mapping[str, str],
    seconds: Mapping[str, float],
    failure: str | None = None,
) -> Report:
    """Writes report.json and report.html, also of a run that found no model.

    Lengths are those of the dataset, where there is one.
    """
    poses = read_poses(workspace) if models else Poses()
    path = workspace.database(recipe)
    database = path if path.is_file() else None
    world = num_dataset_points = None
    if models and workspace.done("export"):
        world = WorldFrame.from_json(_read_json(workspace.out / WORLD))
        num_dataset_points = _read_json(workspace.out / LISTING)["num_points"]
    report = collect_report(
        images,
        recipe=recipe,
        frontend=recipe.frontends[0].label(),
        database=database,
        features=features,
        models=models,
        seconds=seconds,
        unreadable=unreadable,
        outliers=poses.outliers,
        uncertainties=_in_world(poses.uncertainties, world),
        world=world.to_json() if world else None,
        num_dataset_points=num_dataset_points,
        failure=failure,
    )
    write_text(workspace.report, report.to_json())
    write_page(
        workspace.report_page,
        report,
        images,
        model=apply_world(models[0], world) if world else next(iter(models), None),
        features=features,
        database=database,
    )
    return report


def write_report_again(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    models: Sequence[pycolmap.Reconstruction],
    features: FeatureStore | None,
) -> Report:
    """Writes the report anew, with what only the run itself could know from the old."""
    unreadable, seconds = {}, {}
    if workspace.report.is_file():
        old = Report.model_validate_json(workspace.report.read_text("utf-8"))
        seconds = old.seconds
        unreadable = {
            image.name: image.reason.removeprefix(UNREADABLE)
            for image in old.images
            if image.status == "unreadable"
        }
    return write_report(
        *(images, workspace, recipe, models, features),
        unreadable=unreadable,
        seconds=seconds,
    )


def _read_json(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text("utf-8")))


def _in_world(
    uncertainties: Mapping[str, PoseUncertainty], world: WorldFrame | None
) -> dict[str, PoseUncertainty]:
    """In units of the dataset, or as they are without one."""
    scale = float(world.world_from_sfm.scale) if world else 1.0
    return {
        name: replace(each, position_stddev=scale * each.position_stddev)
        for name, each in uncertainties.items()
    }
