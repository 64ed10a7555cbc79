"""Photographs in, a dataset for splat training out."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path

import pycolmap

from sfmprep.config import Recipe
from sfmprep.errors import SfmprepError
from sfmprep.executors.protocol import Executor
from sfmprep.pipelines import reporting, stages
from sfmprep.pipelines.apart import ready_to_map
from sfmprep.pipelines.artefacts import open_keypoints
from sfmprep.pipelines.datasets import export_models
from sfmprep.pipelines.develop import find_capture
from sfmprep.pipelines.matching import match_photographs
from sfmprep.pipelines.motion_masks import with_motion_masks
from sfmprep.pipelines.poses import find_poses
from sfmprep.pipelines.reporting import timed
from sfmprep.pipelines.run import open_run
from sfmprep.progress import Progress, silent
from sfmprep.report.schema import Report

logger = logging.getLogger(__name__)


def reconstruct(
    source: Path,
    out: Path,
    recipe: Recipe,
    *,
    device: str = "cpu",
    cluster: Executor | None = None,
    progress: Progress = silent,
) -> Report:
    """Turns photographs and films into a dataset, doing only what is missing.

    What was found is also in `out/report.json` and `out/report.html`, even where no
    poses were.

    Args:
        source: A folder of photographs and films, also in sub-folders, or one film;
            they are never modified.
        out: A new folder, or that of an earlier run.
        recipe: What to do; see `sfmprep.load_recipe`.
        device: Where networks run, such as `cpu`, `cuda`, or `cuda:0,cuda:1`: one
            process on each, for which a script needs `if __name__ == "__main__":`.
        cluster: Has the large stages done, such as `executors.ray.RayCluster`; None for
            this machine.
        progress: Wraps the loops of long stages; tqdm fits.

    Raises:
        SfmprepError: see `errors.py`; what is done until then is kept.
    """
    seconds: dict[str, float] = {}
    with timed(seconds, "develop"):
        images = find_capture(source, out, recipe, device=device, progress=progress)
    if images.developed is None:
        seconds.clear()  # there was nothing to develop
    if recipe.motion_masks is not None:
        with timed(seconds, "motion masks"):
            images = with_motion_masks(
                images, out, recipe, device=device, progress=progress
            )
    with (
        open_run(images, out, recipe, cluster=cluster, progress=progress) as run,
        ready_to_map(run),
    ):
        with (
            match_photographs(run, seconds, device=device, progress=progress) as found,
            timed(seconds, "database"),
        ):
            verified = stages.fill_database(
                run, found.features, found.pairs, found.matches, progress=progress
            )
        models: list[pycolmap.Reconstruction] = []

        def report(failure: str | None = None) -> Report:
            with open_keypoints(run) as features:
                return reporting.write_report(
                    *(run, models, features),
                    unreadable=found.undecoded,
                    seconds=seconds,
                    failure=failure,
                )

        if run.recipe.mapping.type == "none":
            return report()
        try:
            models = find_poses(
                run, verified, seconds, device=device, progress=progress
            )
            with timed(seconds, "export"):
                export_models(run, models, device=device, progress=progress)
        except SfmprepError as error:
            _report_failure(report, error, run.workspace.report_page)
            raise
        return report()


def _report_failure(
    report: Callable[..., Report], error: SfmprepError, page: Path
) -> None:
    """Writes the report of a run that failed; its own failure hides nothing."""
    try:
        report(failure=str(error))
    except (SfmprepError, OSError, ValueError) as second:
        logger.warning("the report could not be written: %s", second)
    else:
        logger.warning("what was found is in %s", page)
