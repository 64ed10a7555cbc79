"""The ladder: one matcher for all pairs, dearer ones for what stays weak and matters.

    match               all pairs
    match weak pairs    a stronger matcher of the same features
    match semi-densely  without a detector; see `semidense.py`

What a rung leaves is verified before the next one, and only once: each database takes
over from the one below what is the same in it.
"""

from __future__ import annotations

import logging

from sfmprep.config import DenseConfig, StrongerConfig
from sfmprep.mapping.verify import count_inliers
from sfmprep.pairing.pairs import Pairs, pairs_from_file
from sfmprep.pairing.weak_pairs import weak_pairs
from sfmprep.pipelines import stages
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, foretold, renamed, silent
from sfmprep.stores.layers import MatchLayers, MatchReader
from sfmprep.stores.tables import FeatureStore, MatchStore

logger = logging.getLogger(__name__)


def match_weak_pairs(
    run: Run,
    config: StrongerConfig,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchStore,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> MatchLayers:
    """Has the stronger matcher try the pairs that stayed weak and matter.

    Returns:
        `matches`, with those of the stronger matcher on top; open for reading.

    Raises:
        SfmprepError: see the functions that it calls.
    """
    tried = find_weak_pairs(
        *(run, "weak pairs", "verify", config, features, pairs, matches),
        progress=progress,
    )

    def foretell(seconds: float) -> None:
        logger.info(
            "%s: about %.0f min for %d pairs; fewer with `--set stronger.per_image=N`",
            *(config.matcher.name, seconds / 60, len(tried)),
        )

    upper = stages.match_with(
        *(run, "match weak pairs", config.matcher, tried, features),
        device=device,
        progress=foretold(renamed(progress, "{} weak pairs"), foretell),
    )
    return MatchLayers(matches, upper, tried)


def find_weak_pairs(
    run: Run,
    stage: str,
    verification: str,
    config: StrongerConfig | DenseConfig,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchReader,
    *,
    progress: Progress = silent,
) -> Pairs:
    """The pairs that the next rung tries, of those that this one matched.

    Args:
        run: The run.
        stage: What finds them.
        verification: The stage whose database they are found in.
        config: Of the next rung.
        features: What the matches are of.
        pairs: All that were matched.
        matches: What the rungs until now found.
        progress: Wraps the loops of the verification.
    """
    path = run.ledger.file(stage)
    if run.ledger.is_done(stage):
        return pairs_from_file(path, run.images.names)
    stages.fill_database(
        *(run, features, pairs, matches),
        stage=verification,
        progress=renamed(progress, "{}, first"),
    )
    run.begin(stage)
    num_inliers = count_inliers(run.ledger.file(verification))
    tried = weak_pairs(
        *(pairs, num_inliers),
        min_num_inliers=config.min_num_inliers,
        num_matches=matches.num_matches(),
        per_image=config.per_image,
    )
    strong = sum(num >= config.min_num_inliers for num in num_inliers.values())
    logger.info(
        "%d of %d pairs have %d verified matches or more%s",
        *(strong, len(pairs), config.min_num_inliers),
        f"; {config.matcher.name} tries {len(tried)} that matter" if tried else "",
    )
    tried.write(path)
    run.finish(stage)
    return tried
