"""Photographs to matches: features, pairs, and the rungs of the ladder."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from sfmprep.pairing.pairs import Pairs
from sfmprep.pipelines import stages
from sfmprep.pipelines.choose_pairs import make_pairs
from sfmprep.pipelines.ladder import match_beside, match_weak_pairs
from sfmprep.pipelines.reporting import timed
from sfmprep.pipelines.run import Run
from sfmprep.pipelines.semidense import join_semi_dense
from sfmprep.pipelines.tracks import track_points
from sfmprep.progress import Progress, silent
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import FeatureStore


@dataclass(frozen=True, kw_only=True)
class Matched:
    """What goes into the database; the stores are open for reading."""

    features: FeatureStore
    pairs: Pairs
    matches: MatchReader
    undecoded: dict[str, str]  # images that could not be decoded: reason


@contextmanager
def match_photographs(
    run: Run,
    seconds: dict[str, float],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Iterator[Matched]:
    """Does what is missing until all pairs are matched as the recipe asks.

    Args:
        run: The run.
        seconds: Gets the wall-clock time of each step.
        device: Where networks run.
        progress: Wraps the loops.

    Raises:
        SfmprepError: see the stages.
    """
    with timed(seconds, "extract"):
        features, undecoded = stages.extract(run, device=device, progress=progress)
    with features:
        with timed(seconds, "pairs"):
            pairs = make_pairs(run, features, device=device, progress=progress)
        with match_pairs(
            *(run, features, pairs, seconds), device=device, progress=progress
        ) as (joined, matches):
            yield Matched(
                features=joined, pairs=pairs, matches=matches, undecoded=undecoded
            )


@contextmanager
def match_pairs(
    run: Run,
    features: FeatureStore,
    pairs: Pairs,
    seconds: dict[str, float],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> Iterator[tuple[FeatureStore, MatchReader]]:
    """Climbs the ladder; yields keypoints and matches of all rungs.

    Raises:
        SfmprepError: see the rungs.
    """
    matches: MatchReader
    with ExitStack() as stores:
        with timed(seconds, "match"):
            lowest = stages.match(
                run, pairs, features, device=device, progress=progress
            )
        keypoints, matches = features, stores.enter_context(lowest)
        if run.recipe.beside is not None:
            with timed(seconds, "match beside"):
                keypoints, matches = match_beside(
                    *(run, run.recipe.beside, features, pairs, lowest),
                    device=device,
                    progress=progress,
                )
            stores.enter_context(keypoints)
            stores.enter_context(matches)
        if run.recipe.stronger is not None:
            with timed(seconds, "match weak pairs"):
                matches = match_weak_pairs(
                    *(run, run.recipe.stronger, features, keypoints, pairs, matches),
                    device=device,
                    progress=progress,
                )
            stores.enter_context(matches)
        if run.recipe.dense is not None:
            with timed(seconds, "semi-dense"):
                keypoints, matches = join_semi_dense(
                    *(run, run.recipe.dense, keypoints, pairs, matches),
                    device=device,
                    progress=progress,
                )
            stores.enter_context(keypoints)
            stores.enter_context(matches)
        if run.recipe.tracks is not None:
            with timed(seconds, "track"):
                keypoints, matches = track_points(
                    *(run, run.recipe.tracks, keypoints, pairs, matches),
                    device=device,
                    progress=progress,
                )
            stores.enter_context(keypoints)
            stores.enter_context(matches)
        yield keypoints, matches
