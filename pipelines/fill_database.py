"""An existing COLMAP project gets other features: its database is filled in place."""

from __future__ import annotations

from pathlib import Path

from sfmprep.capture.batches import reduction_scales
from sfmprep.mapping.project import Filled, check_images, fill_project
from sfmprep.mapping.verify import VerifiedPairs, read_verified, verify_matches
from sfmprep.pipelines.matching import match_photographs
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, silent


def fill_existing_database(
    run: Run,
    database: Path,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[Filled, VerifiedPairs]:
    """Replaces keypoints, matches and two-view geometries in a COLMAP database.

    Images, their names and ids, and cameras stay as they are; images of the folder
    that the database lacks are added.

    Returns:
        What became of the database, and what verification left.

    Raises:
        SfmprepError: see `fill_project`; until everything is matched the database is
            not touched.
    """
    images, recipe = run.images, run.recipe
    check_images(database, images)  # now, and not after hours of matching
    with match_photographs(run, {}, device=device, progress=progress) as found:
        pairs = found.pairs
        filled = fill_project(
            *(database, images, found.features, found.matches, pairs, recipe.database),
            progress=progress,
        )
    verify_matches(
        *(database, pairs, recipe.database),
        scales=reduction_scales(images, recipe.features.max_size),
        seed=recipe.seed,
        progress=progress,
    )
    return filled, read_verified(database)
