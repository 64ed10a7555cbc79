"""Photographs in, a dataset for splat training out."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path

import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import check_masks
from sfmprep.config import Recipe
from sfmprep.dataset.georeference import MIN_POSITIONS
from sfmprep.errors import ConfigError, ImageError, SfmprepError
from sfmprep.export.targets import plan_folders
from sfmprep.pipelines import reporting as results
from sfmprep.pipelines import semidense, stages
from sfmprep.pipelines.choose_frontend import check_dense_weights, choose_frontend
from sfmprep.pipelines.workspace import Workspace
from sfmprep.progress import Progress, silent
from sfmprep.report.schema import Report

logger = logging.getLogger(__name__)


def reconstruct(
    image_folder: Path,
    out: Path,
    recipe: Recipe,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Report:
    """Turns a folder of photographs into a dataset, doing only what is missing.

    What was found is also in `out/report.json` and `out/report.html`, even where no
    poses were.

    Args:
        image_folder: Photographs, also in sub-folders; they are never modified.
        out: A new folder, or that of an earlier run with the same recipe.
        recipe: What to do; see `sfmprep.load_recipe`.
        device: Where networks run, such as `cpu`, `cuda`, or `cuda:0,cuda:1`: one
            process on each, for which a script needs `if __name__ == "__main__":`.
        progress: Wraps the loops of long stages; tqdm fits.

    Raises:
        SfmprepError: see `errors.py`; what is done until then is kept.
    """
    images = ImageSet.scan(image_folder, mask_root=recipe.masks)
    workspace, recipe = open_workspace(images, out, recipe)
    run = (images, workspace, recipe)
    seconds: dict[str, float] = {}

    with ExitStack() as stores:
        with _timed(seconds, "extract"):
            features, undecoded = stages.extract(*run, device=device, progress=progress)
            stores.enter_context(features)
        with _timed(seconds, "pairs"):
            pairs = stages.make_pairs(*run, features, progress=progress)
        with _timed(seconds, "match"):
            matches = stores.enter_context(
                stages.match(
                    pairs, workspace, recipe, features, device=device, progress=progress
                )
            )
        if recipe.dense is not None:
            with _timed(seconds, "semi-dense"):
                features, matches = semidense.join_semi_dense(
                    *(*run, recipe.dense, features, pairs, matches),
                    device=device,
                    progress=progress,
                )
                stores.enter_context(features)
                stores.enter_context(matches)
        with _timed(seconds, "database"):
            verified = stages.fill_database(
                *run, features, pairs, matches, progress=progress
            )
        report = partial(
            results.write_report, *run, unreadable=undecoded, seconds=seconds
        )
        if recipe.mapping.type == "none":
            return report([], features)
        models: list[pycolmap.Reconstruction] = []
        try:
            with _timed(seconds, "map"):
                models = stages.map_and_refine(*run, verified, progress=progress)
            with _timed(seconds, "export"):
                results.export(*run, models[0], features, matches, progress=progress)
        except SfmprepError as error:
            report(models, features, failure=str(error))
            logger.warning("what was found is in %s", workspace.report_page)
            raise
        return report(models, features)


def open_workspace(
    images: ImageSet, out: Path, recipe: Recipe
) -> tuple[Workspace, Recipe]:
    """Makes the output folder or goes on in it, with one choice of features made.

    Raises:
        ImageError: fewer than two images can be read.
        ConfigError: the dataset that is asked for cannot be made of these images.
        ConfigError, ImageError, StoreError: see `Workspace.open`.
        WeightsError: see `choose_frontend` and `check_dense_weights`.
    """
    for name, reason in images.unreadable.items():
        logger.warning("%s is left out: %s", images.path(name), reason)
    if len(images) < 2:
        raise ImageError(
            f"{images.root} holds one image that can be read, {images.names[0]};"
            " poses need at least two. Take twenty or more, a step apart."
        )
    check_masks(images)
    plan_folders(recipe.export, with_masks=images.mask_root is not None)
    with_gps = sum(images.infos[name].gps is not None for name in images.names)
    if recipe.export.world.georeference and with_gps < MIN_POSITIONS:
        raise ConfigError(
            f"georeference needs GPS in {MIN_POSITIONS} photographs or more, but"
            f" {with_gps} of the {len(images)} in {images.root} have it. Leave it out."
        )
    workspace = Workspace(out)
    workspace.check_place(images.root)
    earlier = workspace.chosen_frontend(recipe)
    if earlier is None:
        recipe = choose_frontend(recipe)
        check_dense_weights(recipe)
    else:
        logger.info("features: %s, as in the earlier run", earlier.label())
        recipe = recipe.with_frontend(earlier)
    workspace.open(recipe, images)
    return workspace, recipe


@contextmanager
def _timed(seconds: dict[str, float], stage: str) -> Iterator[None]:
    start = time.monotonic()
    yield
    seconds[stage] = round(time.monotonic() - start, 2)
