"""The ladder: one matcher for all pairs, dearer ones for what stays weak and matters.

    match               all pairs
    match beside        other features, of images that are badly held
    match weak pairs    a stronger matcher of the same features
    match semi-densely  without a detector; see `semidense.py`

What a rung leaves is verified before the next one, and only once: each database takes
over from the one below what is the same in it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Iterable
from dataclasses import replace

from sfmprep.config import BesideConfig, DenseConfig, StrongerConfig
from sfmprep.mapping.verify import count_inliers
from sfmprep.pairing.pairs import Pairs, pairs_from_file
from sfmprep.pairing.weak_pairs import pairs_of_badly_held, weak_pairs
from sfmprep.pipelines import stages
from sfmprep.pipelines.artefacts import join_beside
from sfmprep.pipelines.bounded import Attempt, Count, within_budget
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, foretold, renamed, silent
from sfmprep.stores.beside import join_keypoints
from sfmprep.stores.layers import MatchLayers, MatchReader
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Pair

logger = logging.getLogger(__name__)

_SHOWN = {
    "verify": "{}, first",
    "verify beside": "{} beside",
    "verify again": "{}, second",
}


def match_beside(
    run: Run,
    config: BesideConfig,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchStore,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[FeatureStore, MatchReader]:
    """Gives images that are badly held other features beside the first.

    Returns:
        Keypoints and matches of both kinds, open for reading; `features` and `matches`
        themselves where no image is badly held.

    Raises:
        SfmprepError: see the functions that it calls.
    """
    shown = renamed(progress, "{} beside")

    def attempt(some: Pairs) -> None:
        wanted = images_of(some)
        names = tuple(name for name in run.images.names if name in wanted)

        def foretell(seconds: float) -> None:
            logger.info(
                "%s: about %.0f min for %d images; fewer with `--budget-minutes N`",
                *(config.features.name, seconds / 60, len(names)),
            )

        stages.extract_with(
            *(run, "extract beside", config.features),
            replace(run.images, names=names),
            device=device,
            progress=foretold(shown, foretell),
        )
        run.finish("extract beside")
        with FeatureStore(run.workspace.features_beside) as others:
            stages.match_with(
                *(run, "match beside", config.matcher, some, others),
                device=device,
                progress=shown,
            ).close()

    there = stages.pairs_there(run, "match beside")
    tried = find_pairs(
        *(run, "pairs beside", "verify", pairs_of_badly_held, attempt, there, config),
        *(features, pairs, matches),
        count=lambda some: len(images_of(some)),
        progress=progress,
    )
    names = images_of(tried)
    with run.budget.spending():
        attempt(tried)
    with FeatureStore(run.workspace.features_beside) as others:
        if not run.ledger.is_done("join beside"):
            run.begin("join beside")
            path = run.workspace.keypoints_beside
            path.unlink(missing_ok=True)
            made = {"key": run.ledger.keys.key("join beside")}
            with FeatureStore(path, made) as joined:
                if names:
                    join_keypoints(features, others, joined, images=names)
            run.finish("join beside")
    return join_beside(run, features, matches, tried)


def match_weak_pairs(
    run: Run,
    config: StrongerConfig,
    features: FeatureStore,
    keypoints: FeatureStore,
    pairs: Pairs,
    matches: MatchReader,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> MatchLayers:
    """Has the stronger matcher try the pairs that stayed weak and matter.

    Args:
        run: The run.
        config: The matcher, and which pairs are weak.
        features: What it matches: the first features.
        keypoints: What `matches` are of: the first features, and others behind them.
        pairs: All that were matched.
        matches: What the rungs below found.
        device: Where the matcher runs.
        progress: Wraps the loops.

    Returns:
        `matches`, with those of the stronger matcher on top; open for reading.

    Raises:
        SfmprepError: see the functions that it calls.
    """
    shown = renamed(progress, "{} weak pairs")

    def attempt(some: Pairs) -> None:
        def foretell(seconds: float) -> None:
            logger.info(
                "%s: about %.0f min for %d pairs; fewer with `--budget-minutes N`",
                *(config.matcher.name, seconds / 60, len(some)),
            )

        stages.match_with(
            *(run, "match weak pairs", config.matcher, some, features),
            device=device,
            progress=foretold(shown, foretell),
        ).close()

    below = run.ledger.keys.nearest("verify beside")
    there = stages.pairs_there(run, "match weak pairs")
    tried = find_pairs(
        *(run, "weak pairs", below, weak_pairs, attempt, there, config),
        *(keypoints, pairs, matches),
        progress=progress,
    )
    with run.budget.spending():
        attempt(tried)
    return MatchLayers(matches, MatchStore(run.workspace.stronger_matches), tried)


def find_pairs(
    run: Run,
    stage: str,
    verification: str,
    choose: Callable[..., list[Pair]],
    attempt: Attempt,
    there: Collection[Pair],
    config: BesideConfig | StrongerConfig | DenseConfig,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchReader,
    *,
    count: Count = len,
    progress: Progress = silent,
) -> Pairs:
    """The pairs that the next rung tries, of those that this one matched.

    Args:
        run: The run.
        stage: What finds them.
        verification: The stage whose database they are found in.
        choose: Which pairs need it, most wanted first, such as `weak_pairs`.
        attempt: What the rung does for some of them.
        there: For which it was done.
        config: Of the next rung.
        features: What the matches are of.
        pairs: All that were matched.
        matches: What the rungs until now found.
        count: How much work some pairs are.
        progress: Wraps the loops of the verification.
    """
    path = run.ledger.file(stage)
    if run.ledger.is_done(stage):
        return pairs_from_file(path, run.images.names)
    stages.fill_database(
        *(run, features, pairs, matches),
        stage=verification,
        progress=renamed(progress, _SHOWN[verification]),
    )
    run.begin(stage)
    num_inliers = count_inliers(run.ledger.file(verification))
    ranked = choose(
        *(pairs, num_inliers),
        min_num_inliers=config.min_num_inliers,
        num_matches=matches.num_matches(),
        per_image=config.per_image,
    )
    strong = sum(num >= config.min_num_inliers for num in num_inliers.values())
    logger.info(
        "%d of %d pairs have %d verified matches or more%s",
        *(strong, len(pairs), config.min_num_inliers),
        f"; {config.name} tries {len(ranked)} that matter" if ranked else "",
    )
    tried = Pairs.of(
        within_budget(
            *(run, stage, config.name, ranked, attempt), there=there, count=count
        )
    )
    tried.write(path)
    run.finish(stage)
    return tried


def images_of(pairs: Iterable[Pair]) -> set[str]:
    """The images of some pairs."""
    return {name for pair in pairs for name in pair}
