"""Semi-dense matching beside the features: both go into one pair of stores."""

from __future__ import annotations

import logging
from contextlib import ExitStack

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DenseConfig, Recipe
from sfmprep.errors import StoreError
from sfmprep.mapping.database import remove_database, write_database
from sfmprep.mapping.verify import count_inliers, verify_matches
from sfmprep.models.build import build_dense_matcher
from sfmprep.pairing.pairs import Pairs, pairs_from_file
from sfmprep.pipelines.workspace import Workspace
from sfmprep.progress import Progress, silent
from sfmprep.semidense.join import aggregate
from sfmprep.semidense.match import match_dense, weak_pairs
from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore

logger = logging.getLogger(__name__)


def join_semi_dense(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    config: DenseConfig,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchStore,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[FeatureStore, MatchStore]:
    """Matches without a detector where the recipe says so, and joins both results.

    Several devices are not used at once: it is the first that matches.

    Returns:
        Keypoints and matches of features and semi-dense matches together, open for
        reading. The features' keypoints have the same rows as before.

    Raises:
        SfmprepError: see the functions that it calls.
    """
    tried = _pairs_to_try(
        *(images, workspace, recipe, config, features, pairs, matches),
        progress=progress,
    )
    matcher = build_dense_matcher(
        config.matcher, device=device.split(",")[0], precision=recipe.engine.precision
    )
    provenance = {
        "config": config.matcher.model_dump(mode="json"),
        "weights_sha256": matcher.weights_sha256,
    }
    with DenseStore(workspace.dense, provenance) as store:
        unreadable = match_dense(
            images,
            tried,
            matcher,
            store,
            max_size=config.matcher.max_size,
            cache_gb=recipe.engine.cache_gb,
            num_workers=recipe.engine.num_workers,
            progress=progress,
        )
    for name, reason in unreadable.items():
        logger.warning("%s has no semi-dense matches: %s", images.path(name), reason)
    return _join(
        *(images, workspace, recipe, config, features, pairs, matches, tried),
        progress=progress,
    )


def _pairs_to_try(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    config: DenseConfig,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchStore,
    *,
    progress: Progress,
) -> Pairs:
    """All pairs, or those that the features leave weak once they are verified."""
    if config.pairs == "all":
        return pairs
    inputs = [
        recipe.database.model_dump(mode="json"),
        config.min_num_inliers,
        recipe.seed,
        features.provenance,
        matches.provenance,
        sorted(features.names()),
        list(pairs),
    ]
    if workspace.weak_pairs.is_file() and workspace.is_done("weak", inputs):
        return pairs_from_file(workspace.weak_pairs, images.names)
    workspace.start("weak")
    scratch = workspace.scratch_database
    try:
        remove_database(scratch)
        write_database(
            *(scratch, images, features, matches, pairs, recipe.database),
            progress=progress,
        )
        verify_matches(
            scratch, pairs, recipe.database, seed=recipe.seed, progress=progress
        )
        weak = weak_pairs(
            pairs, count_inliers(scratch), min_num_inliers=config.min_num_inliers
        )
    finally:
        remove_database(scratch)
    weak.write(workspace.weak_pairs)
    workspace.finish("weak", inputs)
    logger.info(
        "%d of %d pairs are weak and matched semi-densely", len(weak), len(pairs)
    )
    return weak


def _join(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    config: DenseConfig,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchStore,
    tried: Pairs,
    *,
    progress: Progress,
) -> tuple[FeatureStore, MatchStore]:
    """Joins both kinds of matches, unless that is done."""
    paths = workspace.joined_features, workspace.joined_matches
    with ExitStack() as stores:
        dense = stores.enter_context(DenseStore(workspace.dense))
        inputs = _join_inputs(recipe, config, features, pairs, matches, dense, tried)
        if not _is_joined(workspace, inputs):
            workspace.start("join")
            for path in paths:
                path.unlink(missing_ok=True)
            provenance = {
                "dense": config.model_dump(mode="json"),
                "dense_matches": dense.provenance,
                "features": features.provenance,
                "matches": matches.provenance,
            }
            aggregate(
                *(images, features, matches, dense, config),
                new_features=stores.enter_context(FeatureStore(paths[0], provenance)),
                new_matches=stores.enter_context(MatchStore(paths[1], provenance)),
                pairs=pairs,
                tried=tried,
                seed=recipe.seed,
                progress=progress,
            )
            workspace.finish("join", inputs)
    return FeatureStore(paths[0]), MatchStore(paths[1])


def _is_joined(workspace: Workspace, inputs: list[object]) -> bool:
    paths = workspace.joined_features, workspace.joined_matches
    return all(path.is_file() for path in paths) and workspace.is_done("join", inputs)


def _join_inputs(
    recipe: Recipe,
    config: DenseConfig,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchStore,
    dense: DenseStore,
    tried: Pairs,
) -> list[object]:
    """What the joined stores depend on, as the stores hold it now."""
    return [
        config.model_dump(mode="json"),
        recipe.seed,
        *(features.provenance, matches.provenance, dense.provenance),
        sorted(features.names()),
        [pair for pair in pairs if pair in matches],
        [p for pair in tried for p in (pair, pair[::-1]) if p in dense],
    ]


def open_semi_dense(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    config: DenseConfig,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchStore,
) -> tuple[FeatureStore, MatchStore]:
    """Opens what `join_semi_dense` left of these stores, for reading.

    Raises:
        StoreError: it left nothing, or the stores or settings are others now.
    """
    tried = pairs
    if config.pairs == "weak" and workspace.weak_pairs.is_file():
        tried = pairs_from_file(workspace.weak_pairs, images.names)
    paths = workspace.joined_features, workspace.joined_matches
    is_joined = False
    if workspace.dense.is_file():
        with DenseStore(workspace.dense) as dense:
            inputs = _join_inputs(
                recipe, config, features, pairs, matches, dense, tried
            )
        is_joined = _is_joined(workspace, inputs)
    if not is_joined:
        raise StoreError(
            f"{paths[1]} is missing, or was made of other matches or settings. Run"
            " `sfmprep match` first."
        )
    return FeatureStore(paths[0]), MatchStore(paths[1])
