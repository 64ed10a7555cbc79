"""Semi-dense matching beside the features: both go into one pair of stores."""

from __future__ import annotations

import logging

from sfmprep.config import DenseConfig
from sfmprep.frontend.in_shards import merge_parts
from sfmprep.models.build import build_dense_matcher
from sfmprep.pairing.pairs import Pairs, pairs_from_file
from sfmprep.pairing.weak_pairs import weak_pairs
from sfmprep.pipelines import stages
from sfmprep.pipelines.bounded import Attempt, within_budget
from sfmprep.pipelines.ladder import find_pairs
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, foretold, silent
from sfmprep.semidense.in_shards import match_dense_in_shards
from sfmprep.semidense.join import aggregate
from sfmprep.semidense.match import match_dense
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore

logger = logging.getLogger(__name__)


def join_semi_dense(
    run: Run,
    config: DenseConfig,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchReader,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[FeatureStore, MatchStore]:
    """Matches without a detector where the recipe says so, and joins both results.

    Without a cluster, one device is used: the first.

    Returns:
        Keypoints and matches of features and semi-dense matches together, open for
        reading. The features' keypoints have the same rows as before.

    Raises:
        SfmprepError: see the functions that it calls.
    """

    def attempt(some: Pairs) -> None:
        def foretell(seconds: float) -> None:
            logger.info(
                "%s: about %.0f min for %d pairs; fewer with `--budget-minutes N`",
                *(config.name, seconds / 60, len(some)),
            )

        shown = foretold(progress, foretell)
        _match(run, config, some, device=device.split(",")[0], progress=shown)

    tried = _pairs_to_try(
        *(run, config, attempt, features, pairs, matches), progress=progress
    )
    with run.budget.spending():
        attempt(tried)
    paths = run.workspace.joined_features, run.workspace.joined_matches
    if not (run.ledger.is_done("join") and paths[0].is_file()):
        run.begin("join")
        for path in paths:
            path.unlink(missing_ok=True)
        made = {"key": run.ledger.keys.key("join")}
        with (
            DenseStore(run.workspace.dense) as dense,
            FeatureStore(paths[0], made) as new_features,
            MatchStore(paths[1], made) as new_matches,
        ):
            aggregate(
                *(run.images, features, matches, dense, config),
                new_features=new_features,
                new_matches=new_matches,
                pairs=pairs,
                tried=tried,
                seed=run.recipe.seed,
                progress=progress,
            )
        run.finish("join")
    return FeatureStore(paths[0]), MatchStore(paths[1])


def _pairs_to_try(
    run: Run,
    config: DenseConfig,
    attempt: Attempt,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchReader,
    *,
    progress: Progress,
) -> Pairs:
    """All pairs, or those that the rungs below leave weak, as the budget allows."""
    there = stages.pairs_there(run, "match semi-densely")
    if config.pairs == "weak":
        below = run.ledger.keys.nearest("verify again")
        return find_pairs(
            *(run, "pairs left", below, weak_pairs, attempt, there, config),
            *(features, pairs, matches),
            progress=progress,
        )
    if not run.ledger.is_done("pairs left"):
        name = config.matcher.name
        within = within_budget(
            run, "pairs left", name, pairs.items, attempt, there=there
        )
        pairs = Pairs.of(within)
        pairs.write(run.ledger.file("pairs left"))
        run.finish("pairs left")
    return pairs_from_file(run.ledger.file("pairs left"), run.images.names)


def _match(
    run: Run, config: DenseConfig, tried: Pairs, *, device: str, progress: Progress
) -> None:
    """Matches the pairs to try that are not matched yet, in both directions."""
    made = stages.open_store(run, "match semi-densely")
    with DenseStore(run.workspace.dense, made) as store:
        merge_parts(store)
        is_whole = all(p in store for pair in tried for p in (pair, pair[::-1]))
    if is_whole:
        run.finish("match semi-densely")
        return
    if run.cluster is not None:
        unreadable = match_dense_in_shards(
            *(run.images, tried, config.matcher, run.workspace.dense, made),
            executor=run.cluster,
            engine=run.recipe.engine,
            progress=progress,
        )
    else:
        matcher = build_dense_matcher(
            config.matcher, device=device, precision=run.recipe.engine.precision
        )
        with DenseStore(run.workspace.dense, made) as store:
            unreadable = match_dense(
                run.images,
                tried,
                matcher,
                store,
                max_size=config.matcher.max_size,
                cache_gb=run.recipe.engine.cache_gb,
                num_workers=run.recipe.engine.num_workers,
                progress=progress,
            )
    for name, reason in unreadable.items():
        logger.warning(
            "%s has no semi-dense matches: %s", run.images.path(name), reason
        )
    run.finish("match semi-densely")
