"""An existing COLMAP project gets other features: its database is filled in place."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

from sfmprep.capture.batches import reduction_scales
from sfmprep.mapping.project import Filled, check_images, fill_project
from sfmprep.mapping.verify import VerifiedPairs, read_verified, verify_matches
from sfmprep.pipelines import stages
from sfmprep.pipelines.run import Run
from sfmprep.pipelines.semidense import join_semi_dense
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
    features, _ = stages.extract(run, device=device, progress=progress)
    with (
        features,
        stages.match(
            run,
            pairs := stages.make_pairs(run, features, progress=progress),
            features,
            device=device,
            progress=progress,
        ) as matches,
        ExitStack() as stores,
    ):
        if recipe.dense is not None:
            features, matches = join_semi_dense(
                *(run, recipe.dense, features, pairs, matches),
                device=device,
                progress=progress,
            )
            stores.enter_context(features)
            stores.enter_context(matches)
        filled = fill_project(
            *(database, images, features, matches, pairs, recipe.database),
            progress=progress,
        )
    verify_matches(
        *(database, pairs, recipe.database),
        scales=reduction_scales(images, recipe.features.max_size),
        seed=recipe.seed,
        progress=progress,
    )
    return filled, read_verified(database)
