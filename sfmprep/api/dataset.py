"""The dataset, and all in one call."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

import pycolmap
from pydantic import ValidationError

from sfmprep.api.given import max_size_of
from sfmprep.capture.batches import reduction_scales
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import ExportConfig, Recipe, Target
from sfmprep.config.load import load_recipe
from sfmprep.devices import pick_device
from sfmprep.errors import ConfigError, StoreError
from sfmprep.export.dataset import ExportSummary
from sfmprep.geometry.uncertainty import pose_uncertainties
from sfmprep.geometry.views import ModelArrays
from sfmprep.pipelines import reconstruct as pipeline
from sfmprep.pipelines.datasets import write_dataset
from sfmprep.progress import Progress, silent
from sfmprep.report.schema import Report
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import FeatureStore, MatchStore


def export(
    model: pycolmap.Reconstruction,
    images: ImageSet,
    folder: str | Path,
    *,
    targets: Sequence[Target] | None = None,
    config: ExportConfig | None = None,
    features: FeatureStore | None = None,
    matches: MatchReader | None = None,
    progress: Progress = silent,
) -> ExportSummary:
    """Writes the registered images, poses and points as datasets for trainers.

    The world is turned upright and centred, and points that are badly supported are
    left out, as `config` says.

    Args:
        model: Of these images; not changed.
        images: The photographs and their masks; never changed.
        folder: Made if it is missing. A dataset of an earlier export is replaced.
        targets: What will open it, in place of those of `config`.
        config: World frame, initial points, sizes and quality.
        features: What the model was made from, whose scale thresholds in pixels then
            follow; needed for `seed.level: semi` only.
        matches: Likewise.
        progress: Wraps the loop over images; tqdm fits.

    Returns:
        What was written, and which folder each target opens.

    Raises:
        ConfigError: a target is unknown or cannot read what is asked for, `semi`
            without stores, points by a network, or the folder holds something else.
        ImageError: an image or a mask is missing, unreadable, or has changed.
        ReconstructionError: no image is registered, or no point is left.
        StoreError: the folder cannot be written.
    """
    config, folder = config or ExportConfig(), Path(folder)
    if targets is not None:
        if isinstance(targets, str) or not set(targets) <= set(get_args(Target)):
            raise ConfigError(
                f"targets={targets!r} but expected a list of some of"
                f" {', '.join(get_args(Target))}"
            )
        config = config.model_copy(update={"targets": tuple(targets)})
    if config.seed.level == "semi" and (features is None or matches is None):
        raise ConfigError(
            "config.seed.level is 'semi', which makes points of matches. Give features"
            " and matches too."
        )
    if config.seed.pointmaps is not None:
        raise ConfigError(
            "config.seed.pointmaps makes points by a network, which only a run does."
            " Leave it out, or set export.seed.pointmaps in the recipe of a run."
        )
    scales = None
    if features is not None:
        scales = reduction_scales(images, max_size_of(features))
    return write_dataset(
        *(model, images, folder, config),
        FeatureStore() if features is None else features,
        MatchStore() if matches is None else matches,
        pose_uncertainties(model, ModelArrays.of(model)),
        scales=scales,
        progress=progress,
    )


def reconstruct(
    folder: str | Path,
    out: str | Path,
    recipe: Recipe | str = "splat",
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Report:
    """Photographs in, dataset out, as `sfmprep reconstruct` does; only what is missing.

    Args:
        folder: Photographs, also in sub-folders; they are never changed.
        out: A new folder, or that of an earlier run with the same recipe.
        recipe: A recipe, or the name or file of one; see `load_recipe`.
        device: As in `extract`.
        progress: Wraps the loops of long stages; tqdm fits.

    Returns:
        What was found; it is also in `out/report.json` and `out/report.html`.

    Raises:
        SfmprepError: see `sfmprep.errors`; what is done until then is kept.
    """
    return pipeline.reconstruct(
        Path(folder),
        Path(out),
        load_recipe(recipe) if isinstance(recipe, str) else recipe,
        device=pick_device(device),
        progress=progress,
    )


def read_report(path: str | Path) -> Report:
    """Reads what a run found: a report.json, or the one in an output folder.

    Raises:
        StoreError: there is none, or it is not one of this version of sfmprep.
    """
    path = Path(path)
    path = path / "report.json" if path.is_dir() else path
    try:
        return Report.model_validate_json(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, ValidationError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not a report"
        raise StoreError(
            f"{path} cannot be read ({reason}). Give the report.json, or the output"
            " folder, of a run with this version of sfmprep."
        ) from error
