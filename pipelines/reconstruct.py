"""Photographs in, a dataset for splat training out."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import pycolmap

from sfmprep.config import Recipe
from sfmprep.database import VerifiedPairs
from sfmprep.errors import ImageError
from sfmprep.images import ImageSet
from sfmprep.mapping import median_triangulation_angle_deg
from sfmprep.pipelines import stages
from sfmprep.pipelines.choose import choose_frontend
from sfmprep.progress import Progress, silent
from sfmprep.stores import FeatureStore
from sfmprep.workspace import Workspace, write_text

logger = logging.getLogger(__name__)

_FEW_DEGREES = 10  # a film of a camera that turns on a tripod gives 9, a walk 18 to 46


@dataclass(kw_only=True)
class Summary:
    """What a run found; written to `work/summary.json`."""

    recipe: str
    frontend: str
    num_images: int
    num_pairs: int = 0
    num_verified: int = 0
    num_registered: int = 0
    num_points: int = 0
    num_models: int = 0
    mean_reprojection_error_px: float = 0.0
    mean_track_length: float = 0.0
    left_out: dict[str, str] = field(default_factory=dict)  # image: reason
    seconds: dict[str, float] = field(default_factory=dict)  # stage: this run's time


def reconstruct(
    image_folder: Path,
    out: Path,
    recipe: Recipe,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Summary:
    """Turns a folder of photographs into a dataset, doing only what is missing.

    Args:
        image_folder: Photographs, also in sub-folders; they are never modified.
        out: A new folder, or that of an earlier run with the same recipe.
        recipe: What to do; see `sfmprep.load_recipe`.
        device: Where networks run, such as `cpu` or `cuda`.
        progress: Wraps the loops of long stages; tqdm fits.

    Raises:
        SfmprepError: see `errors.py`; what is done until then is kept.
    """
    images = ImageSet.scan(image_folder)
    workspace, recipe = open_workspace(images, out, recipe)
    summary = Summary(
        recipe=recipe.name,
        frontend=recipe.frontends[0].label(),
        num_images=len(images) + len(images.unreadable),
        left_out=dict(images.unreadable),
    )

    with ExitStack() as stores:
        with _timed(summary, "extract"):
            features, undecoded = stages.extract(
                images, workspace, recipe, device=device, progress=progress
            )
            stores.enter_context(features)
        with _timed(summary, "pairs"):
            pairs = stages.make_pairs(
                images, workspace, recipe, features, progress=progress
            )
        with _timed(summary, "match"):
            matches = stores.enter_context(
                stages.match(
                    pairs, workspace, recipe, features, device=device, progress=progress
                )
            )
        with _timed(summary, "database"):
            verified = stages.fill_database(
                images, workspace, recipe, features, pairs, matches, progress=progress
            )
        few = _few_keypoints(images, features)
    summary.left_out |= undecoded
    summary.num_pairs, summary.num_verified = len(pairs), verified.num_verified
    if recipe.mapping.type != "none":
        with _timed(summary, "map"):
            models = stages.map_and_refine(
                images, workspace, recipe, verified, progress=progress
            )
        _warn_of_little_parallax(models[0], verified)
        with _timed(summary, "export"):
            stages.export(images, workspace, recipe, models[0], progress=progress)
        _describe_model(summary, images, models, verified, few)
    write_text(workspace.summary, json.dumps(asdict(summary), indent=1))
    return summary


def open_workspace(
    images: ImageSet, out: Path, recipe: Recipe
) -> tuple[Workspace, Recipe]:
    """Makes the output folder or goes on in it, with one choice of features made.

    Raises:
        ImageError: fewer than two images can be read.
        ConfigError, ImageError, StoreError: see `Workspace.open`.
        WeightsError: see `choose_frontend`.
    """
    for name, reason in images.unreadable.items():
        logger.warning("%s is left out: %s", images.path(name), reason)
    if len(images) < 2:
        raise ImageError(
            f"{images.root} holds one image that can be read, {images.names[0]};"
            " poses need at least two. Take twenty or more, a step apart."
        )
    if alpha := [name for name in images.names if images.infos[name].has_alpha]:
        logger.warning(
            "%d images have transparency, such as %s; it is ignored, also as a mask",
            len(alpha),
            images.path(alpha[0]),
        )
    workspace = Workspace(out)
    workspace.check_place(images.root)
    earlier = workspace.chosen_frontend(recipe)
    if earlier is None:
        recipe = choose_frontend(recipe)
    else:
        logger.info("features: %s, as in the earlier run", earlier.label())
        recipe = recipe.with_frontend(earlier)
    workspace.open(recipe, images)
    return workspace, recipe


def _warn_of_little_parallax(
    model: pycolmap.Reconstruction, verified: VerifiedPairs
) -> None:
    """Flat walls look like turns in pairs, so the model's rays must be narrow too."""
    angle = median_triangulation_angle_deg(model)
    if verified.num_rotation_only > verified.num_verified / 2 and angle < _FEW_DEGREES:
        logger.warning(
            "%d of %d verified pairs show no parallax, and half of the points are seen"
            " within %.0f degrees: where the camera only turned, poses and points"
            " cannot be trusted. Walk sideways between photographs.",
            verified.num_rotation_only,
            verified.num_verified,
            angle,
        )


def _describe_model(
    summary: Summary,
    images: ImageSet,
    models: list[pycolmap.Reconstruction],
    verified: VerifiedPairs,
    few_keypoints: dict[str, int],
) -> None:
    """Fills in what the largest model holds, and why images are not in it."""
    best = models[0]
    summary.num_models = len(models)
    summary.num_registered = best.num_reg_images()
    summary.num_points = best.num_points3D()
    summary.mean_reprojection_error_px = best.compute_mean_reprojection_error()
    summary.mean_track_length = best.compute_mean_track_length()
    registered = [
        {model.images[k].name for k in model.reg_image_ids()} for model in models
    ]
    for name in images.names:
        if name in registered[0] or name in summary.left_out:
            continue
        other = next((k for k, names in enumerate(registered) if name in names), None)
        if name in few_keypoints:
            reason = f"only {few_keypoints[name]} keypoints: blurred, dark or blank"
        elif name not in verified.images:
            reason = "no other image matches it"
        elif other is not None:
            reason = f"not connected to the main model; it is in work/models/{other}"
        else:
            reason = "it matches others, but too weakly for a pose"
        summary.left_out[name] = reason


def _few_keypoints(images: ImageSet, features: FeatureStore) -> dict[str, int]:
    counts = {n: features.num_keypoints(n) for n in images.names if n in features}
    return {name: count for name, count in counts.items() if count < 50}


@contextmanager
def _timed(summary: Summary, stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    summary.seconds[stage] = round(time.monotonic() - start, 2)
