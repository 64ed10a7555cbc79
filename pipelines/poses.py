"""A verified database to models: two rounds of mapping, refinement, outliers aside.

The second round matches what the models of the first propose, and maps on. It costs
nothing worth naming where all images have a pose and all views that see the same were
matched.
"""

from __future__ import annotations

import logging
from functools import partial

import pycolmap

from sfmprep.capture.batches import reduction_scales
from sfmprep.config import SecondRoundConfig
from sfmprep.geometry.parallax import only_turns
from sfmprep.mapping.database import remove_database
from sfmprep.mapping.models import read_packed
from sfmprep.mapping.second_round import propose_pairs
from sfmprep.mapping.verify import VerifiedPairs
from sfmprep.mapping.view_graph import read_pair_table
from sfmprep.pairing.pairs import Pairs
from sfmprep.pipelines import artefacts, map_stages, stages
from sfmprep.pipelines.apart import apart, continue_into
from sfmprep.pipelines.artefacts import pairs_as_written
from sfmprep.pipelines.bounded import within_budget
from sfmprep.pipelines.closer import look_closer
from sfmprep.pipelines.foreseen import match_foreseen
from sfmprep.pipelines.reporting import timed
from sfmprep.pipelines.rigs import views_at_one_spot
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, foretold, renamed, silent

logger = logging.getLogger(__name__)


def find_poses(
    run: Run,
    verified: VerifiedPairs,
    seconds: dict[str, float],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[pycolmap.Reconstruction]:
    """Does what is missing until there are models, and returns them, largest first.

    Args:
        run: Its stores are complete, and nothing has them open.
        verified: What verification left, to explain a failure.
        seconds: Gets the wall-clock time of each step.
        device: Where the matchers of the second round run.
        progress: Wraps the loops.

    Raises:
        ConfigError, ReconstructionError: see `map_stages.map_verified`.
        SfmprepError: see the other stages.
    """
    with timed(seconds, "map"):
        models = map_stages.map_verified(run, verified, progress=progress)
    with timed(seconds, "second round"):
        models = map_on(run, models, device=device, progress=progress)
    if run.recipe.closer is not None:
        with timed(seconds, "closer look"):
            models = look_closer(run, models, device=device, progress=progress)
    with timed(seconds, "refine"):
        models = map_stages.refine(run, models, progress=progress)
        models = map_stages.hold_rigs(run, models, progress=progress)
        return map_stages.set_outliers_aside(run, models, progress=progress)


def map_on(
    run: Run,
    models: list[pycolmap.Reconstruction],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[pycolmap.Reconstruction]:
    """Matches what the models propose and maps on, if the recipe has a second round.

    Args:
        run: Its stores are complete, and nothing has them open.
        models: Of the first round, largest first; at least one.
        device: Where the matchers run.
        progress: Wraps the loops.

    Returns:
        Models, largest first; those of the first round where nothing was proposed.

    Raises:
        SfmprepError: see the stages.
    """
    config = run.recipe.second_round
    if config is None:
        return models
    packed = run.workspace.mapped_on
    if run.ledger.is_done("map on"):
        return read_packed(packed)
    second = _second_pairs(run, config, models, device=device, progress=progress)
    foreseen = match_foreseen(run, models, device=device, progress=progress)
    new = Pairs.of((*second, *foreseen))
    run.begin("map on")
    remove_database(run.workspace.second_database)
    if len(new):
        again = renamed(progress, "{} again")
        with run.budget.spending():
            lost = pairs_as_written(run.workspace.lost_pairs, run.images.names)
            if len(second):
                _match(run, second, lost, device=device, progress=again)
            _fill_database(run, new, progress=again)
        recipe = run.recipe
        run.images.expect_there()  # COLMAP reads colours
        apart(
            *(
                continue_into,
                packed,
                run.workspace.mapped,
                run.workspace.second_database,
            ),
            *(run.images, recipe.mapping, recipe.database),
            reduction_scales(run.images, recipe.features.max_size),
            recipe.seed,
            progress=again,
        )
        run.images.expect_there()
    else:
        artefacts.pass_on(run.workspace.mapped, packed)
    run.finish("map on")
    return read_packed(packed) if len(new) else models


def _second_pairs(
    run: Run,
    config: SecondRoundConfig,
    models: list[pycolmap.Reconstruction],
    *,
    device: str,
    progress: Progress,
) -> Pairs:
    """What the models propose; pairs of images without a pose are noted apart."""
    place, names = run.workspace, run.images.names
    if run.ledger.is_done("second pairs"):
        return pairs_as_written(place.second_pairs, names)
    run.begin("second pairs")
    largest = {models[0].images[key].name for key in models[0].reg_image_ids()}
    tried = set(artefacts.read_pairs(run))
    at_one_spot = set(views_at_one_spot(run.images))
    again = set(names)
    if run.recipe.closer is not None:  # who is in no model is looked at closer instead
        again = {m.images[key].name for m in models for key in m.reg_image_ids()}
    if run.recipe.stronger is not None:
        # what only the first matcher tried may be tried again for who has no pose
        tried = {p for p in tried if largest.issuperset(p) or not again.issuperset(p)}
        tried.update(pairs_as_written(run.ledger.file("weak pairs"), names))
    proposed = propose_pairs(
        models,
        read_pair_table(run.ledger.file("database"), names),
        tried | at_one_spot,
        per_image=config.per_image,
        max_pairs=config.max_pairs,
    )
    if proposed and only_turns(models, {name for pair in proposed for name in pair}):
        logger.info("second round: the camera only turned, and no pair can mend that")
        proposed = []
    outside = [pair for pair in proposed if not largest.issuperset(pair)]
    lost = Pairs.of(pair for pair in outside if again.issuperset(pair))
    second = Pairs.of(proposed)
    if len(second):
        logger.info(
            "second round: %d pairs of images without a pose in the largest model, %d"
            " of views that should see the same",
            len(outside),
            len(second) - len(outside),
        )
    # what is dear is bounded: the stronger matcher, else all
    has_stronger = run.recipe.stronger is not None
    asked = set(lost if has_stronger and run.budget.left else second)

    def attempt(some: Pairs) -> None:
        lost = some if has_stronger else Pairs.of(())
        _match(run, some, lost, device=device, progress=progress)

    there = stages.pairs_there(run, "match weak pairs" if has_stronger else "match")
    kept = within_budget(
        *(run, "second pairs", "second round"),
        *([pair for pair in proposed if pair in asked], attempt),
        there=there,
    )
    left_out = asked.difference(kept)
    lost, second = (
        Pairs.of(pair for pair in every if pair not in left_out)
        for every in (lost, second)
    )
    lost.write(place.lost_pairs)
    second.write(place.second_pairs)
    run.finish("second pairs")
    return second


def _match(
    run: Run, second: Pairs, lost: Pairs, *, device: str, progress: Progress
) -> None:
    """Adds the pairs to the stores of both matchers."""
    recipe = run.recipe

    def foretell(seconds: float) -> None:
        logger.info(
            "second round: about %.0f min for %d pairs; fewer with `--budget-minutes"
            " N`",
            *(seconds / 60, len(second) + len(lost)),
        )

    with artefacts.open_features(run) as features:
        shown = foretold(progress, foretell)
        match = partial(stages.match_with, device=device, progress=shown)
        pairs = Pairs.of((*artefacts.read_pairs(run), *second))
        match(run, "match", recipe.matcher, pairs, features).close()
        if recipe.stronger is not None:
            names = run.images.names
            weak = pairs_as_written(run.ledger.file("weak pairs"), names)
            both = Pairs.of((*weak, *lost))
            stage, matcher = "match weak pairs", recipe.stronger.matcher
            match(run, stage, matcher, both, features).close()


def _fill_database(run: Run, new: Pairs, *, progress: Progress) -> None:
    features, matches = artefacts.open_second(run)
    with features, matches:
        stages.write_database(
            *(run, run.workspace.second_database, features),
            Pairs.of((*artefacts.read_pairs(run), *new)),
            matches,
            lower=run.ledger.file("database"),
            progress=progress,
        )
