"""A closer look at images that no model holds, and mapping on with what it finds.

Only these images and the views that they should join are looked at: with more pixels
and keypoints, turned as they show most of what those views show. Their keypoints come
behind those of the result until then, as those of `ladder.match_beside` do.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pycolmap

from sfmprep.capture.batches import reduction_scales
from sfmprep.config import CloserConfig
from sfmprep.mapping.database import remove_database
from sfmprep.mapping.models import read_packed
from sfmprep.mapping.second_round import pairs_of_lost
from sfmprep.mapping.view_graph import read_pair_table
from sfmprep.pairing.pairs import Pairs, pairs_from_file
from sfmprep.pipelines import artefacts, stages
from sfmprep.pipelines.apart import apart, continue_into
from sfmprep.pipelines.bounded import Attempt, within_budget
from sfmprep.pipelines.ladder import images_of
from sfmprep.pipelines.rigs import views_at_one_spot
from sfmprep.pipelines.run import Run
from sfmprep.pipelines.turns import find_orientations
from sfmprep.progress import Progress, foretold, renamed, silent
from sfmprep.stores.beside import join_keypoints
from sfmprep.stores.tables import FeatureStore
from sfmprep.types import Pair

logger = logging.getLogger(__name__)


def look_closer(
    run: Run,
    models: list[pycolmap.Reconstruction],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[pycolmap.Reconstruction]:
    """Looks closer at images that no model holds and maps on, if the recipe says so.

    Args:
        run: Its stores are complete, and nothing has them open.
        models: What was mapped until then, largest first; at least one.
        device: Where networks run.
        progress: Wraps the loops.

    Returns:
        Models, largest first; those that came in where they hold every image.

    Raises:
        SfmprepError: see the stages.
    """
    config, ledger = run.recipe.closer, run.ledger
    if config is None or not ledger.keys.applies("map closer"):
        return models
    packed = run.workspace.mapped_closer
    if ledger.is_done("map closer"):
        return read_packed(packed)
    mapped = ledger.file(ledger.keys.nearest("map on"))
    shown = renamed(progress, "{} closer")
    wanted = _wanted(run, config, models)
    lost = _partners_of_lost(models, wanted)

    def attempt(some: Pairs) -> None:
        _look(run, config, some, lost, device=device, progress=shown)

    pairs = _affordable(run, config, wanted, lost, attempt)
    with run.budget.spending():
        attempt(pairs)
        _join(run, pairs)
        below = artefacts.below_closer(run)
        run.begin("map closer")
        remove_database(run.workspace.closer_database)
        if len(pairs):
            _fill_database(run, pairs, below, progress=shown)
            _map_on(run, mapped, progress=shown)
            run.images.expect_there()  # COLMAP read colours
        else:
            artefacts.pass_on(mapped, packed)
    run.finish("map closer")
    if not len(pairs):
        return models
    found = read_packed(packed)
    left = lost.keys() - _posed(found)
    logger.info(
        "closer look: %d of %d images got a pose", len(lost) - len(left), len(lost)
    )
    return found


def look_at_nothing(run: Run, config: CloserConfig, mapped: Path) -> None:
    """Notes that nobody looks closer: the result is what is mapped already."""
    place = run.workspace
    run.begin("closer pairs")
    Pairs(()).write(place.closer_pairs)
    run.finish("closer pairs")
    _look(run, config, Pairs(()), {}, device="cpu", progress=silent)
    _join(run, Pairs(()))
    run.begin("map closer")
    remove_database(place.closer_database)
    artefacts.pass_on(mapped, place.mapped_closer)
    run.finish("map closer")


def _wanted(
    run: Run, config: CloserConfig, models: list[pycolmap.Reconstruction]
) -> Sequence[Pair]:
    """The pairs that a closer look is for, most wanted first."""
    if run.ledger.is_done("closer pairs"):
        return pairs_from_file(run.workspace.closer_pairs, run.images.names).items
    with artefacts.open_features(run) as features:
        names = tuple(name for name in run.images.names if name in features)
    return pairs_of_lost(
        models,
        read_pair_table(artefacts.below_closer(run), names),
        per_image=config.per_image,
        max_pairs=config.max_pairs,
        excluded=set(views_at_one_spot(run.images)),
    )


def _partners_of_lost(
    models: list[pycolmap.Reconstruction], pairs: Iterable[Pair]
) -> dict[str, list[str]]:
    """The images of the pairs that no model holds, and the views that they may join."""
    posed = _posed(models)
    found: defaultdict[str, list[str]] = defaultdict(list)
    for pair in pairs:
        for name, other in (pair, pair[::-1]):
            if name not in posed:
                found[name].append(other)
    return dict(found)


def _posed(models: Iterable[pycolmap.Reconstruction]) -> set[str]:
    return {m.images[key].name for m in models for key in m.reg_image_ids()}


def _affordable(
    run: Run,
    config: CloserConfig,
    wanted: Sequence[Pair],
    lost: Mapping[str, Sequence[str]],
    attempt: Attempt,
) -> Pairs:
    """The pairs that the budget has time for."""
    if not run.ledger.is_done("closer pairs"):
        run.begin("closer pairs")
        if wanted:
            logger.info(
                "%d images are in no model, such as %s: %d pairs are looked at closer",
                *(len(lost), next(iter(lost)), len(wanted)),
            )
        there = stages.pairs_there(run, "match closer")
        name = f"{config.name}, closer"
        within = within_budget(
            *(run, "closer pairs", name, wanted, attempt),
            there=there,
            count=lambda some: len(images_of(some)),
        )
        Pairs.of(within).write(run.workspace.closer_pairs)
        run.finish("closer pairs")
    return pairs_from_file(run.workspace.closer_pairs, run.images.names)


def _look(
    run: Run,
    config: CloserConfig,
    pairs: Pairs,
    lost: Mapping[str, Sequence[str]],
    *,
    device: str,
    progress: Progress,
) -> None:
    """Extracts and matches what is missing of the pairs."""
    _extract(run, config, pairs, lost, device=device, progress=progress)
    with FeatureStore(run.workspace.features_closer) as found:
        stages.match_with(
            *(run, "match closer", config.matcher, pairs, found),
            device=device,
            progress=_foretold(progress, config.matcher.name, len(pairs), "pairs"),
        ).close()


def _extract(
    run: Run,
    config: CloserConfig,
    pairs: Iterable[Pair],
    lost: Mapping[str, Sequence[str]],
    *,
    device: str,
    progress: Progress,
) -> None:
    """Extracts from the images of the pairs what is missing, lost ones turned."""
    wanted = images_of(pairs)
    names = tuple(name for name in run.images.names if name in wanted)
    there: set[str] = set()
    stages.open_store(run, "extract closer")
    if run.workspace.features_closer.is_file():
        with FeatureStore(run.workspace.features_closer) as store:
            there.update(store.names())
    turned = find_orientations(
        *(run, {name: lost[name] for name in names if name in lost.keys() - there}),
        device=device,
        progress=progress,
    )
    infos = {
        name: replace(run.images.infos[name], orientation=orientation)
        for name, orientation in turned.items()
    }
    stages.extract_with(
        *(run, "extract closer", config.features),
        replace(run.images, names=names, infos={**run.images.infos, **infos}),
        device=device,
        progress=_foretold(progress, config.name, len(names), "images"),
    )
    run.finish("extract closer")


def _foretold(progress: Progress, name: str, count: int, what: str) -> Progress:
    def foretell(seconds: float) -> None:
        logger.info(
            "%s, closer: about %.0f min for %d %s; fewer with `--budget-minutes N`",
            *(name, seconds / 60, count, what),
        )

    return foretold(progress, foretell)


def _join(run: Run, pairs: Pairs) -> None:
    """Puts the keypoints behind those that the result until then has."""
    if run.ledger.is_done("join closer"):
        return
    run.begin("join closer")
    path = run.workspace.keypoints_closer
    path.unlink(missing_ok=True)
    made = {"key": run.ledger.keys.key("join closer")}
    with (
        artefacts.open_second_keypoints(run) as first,
        FeatureStore(run.workspace.features_closer) as others,
        FeatureStore(path, made) as joined,
    ):
        if len(pairs):
            join_keypoints(first, others, joined, images=images_of(pairs))
    run.finish("join closer")


def _fill_database(run: Run, pairs: Pairs, below: Path, *, progress: Progress) -> None:
    first, matches = artefacts.open_second(run)
    with first:
        keypoints, joined = artefacts.join_closer(run, first, matches, pairs)
    table = read_pair_table(below, run.images.names)
    known = ((table.names[a], table.names[b]) for a, b in table.index.tolist())
    with keypoints, joined:
        stages.write_database(
            *(run, run.workspace.closer_database, keypoints),
            Pairs.of((*known, *pairs)),
            joined,
            lower=below,
            progress=progress,
        )


def _map_on(run: Run, mapped: Path, *, progress: Progress) -> None:
    recipe = run.recipe
    apart(
        *(continue_into, run.workspace.mapped_closer, mapped),
        *(run.workspace.closer_database, run.images, recipe.mapping, recipe.database),
        reduction_scales(run.images, recipe.features.max_size),
        recipe.seed,
        recipe.known_poses,
        progress=progress,
    )
