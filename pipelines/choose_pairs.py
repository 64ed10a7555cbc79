"""Which images are matched: all, or by order, likeness, GPS, poses, or a file."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from sfmprep.config import (
    AutoPairsConfig,
    ExhaustiveConfig,
    KnownPosesConfig,
    PairsFileConfig,
    RetrievalConfig,
    SequentialConfig,
    SpatialConfig,
)
from sfmprep.errors import ConfigError
from sfmprep.frontend.describe import describe_images
from sfmprep.frontend.in_shards import describe_in_shards, merge_parts
from sfmprep.models.build import build_retriever
from sfmprep.pairing.pairs import (
    Pairs,
    exhaustive_pairs,
    natural_order,
    pairs_from_file,
    sequential_pairs,
)
from sfmprep.pairing.spatial import spatial_pairs
from sfmprep.pipelines import stages
from sfmprep.pipelines.refine_poses import pairs_of_poses, poses_of
from sfmprep.pipelines.rigs import views_at_one_spot
from sfmprep.pipelines.run import Run
from sfmprep.pipelines.tracks import films_of
from sfmprep.progress import Progress, silent
from sfmprep.stores.tables import FeatureStore, RowStore

logger = logging.getLogger(__name__)

# of a phone or a drone under the open sky, where it does not say how well it knows its
# place; https://www.gps.gov/gps-accuracy
_GPS_ACCURACY_M = 5.0


def describe(
    run: Run,
    names: Sequence[str],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> RowStore:
    """Describes what is missing of these images; returns the rows, open for reading.

    Without a cluster, one device is used: the first.
    """
    made, engine = stages.open_store(run, "describe"), run.recipe.engine
    config = run.recipe.retriever
    file = run.ledger.file("describe")
    with RowStore(file, made) as store:
        merge_parts(store)
        is_whole = config is None or all(name in store for name in names)
    unreadable = {}
    if config is not None and not is_whole:
        if run.cluster is not None:
            unreadable = describe_in_shards(
                *(run.images, names, config, file, made),
                executor=run.cluster,
                engine=engine,
                progress=progress,
            )
        else:
            retriever = build_retriever(
                config, device=device.split(",")[0], precision=engine.precision
            )
            with RowStore(file, made) as store:
                unreadable = describe_images(
                    *(run.images, names, retriever, store),
                    max_size=config.max_size,
                    num_workers=engine.num_workers,
                    progress=progress,
                )
    for name, reason in unreadable.items():
        logger.warning("%s has no neighbours: %s", run.images.path(name), reason)
    run.finish("describe")
    return RowStore(file)


def make_pairs(
    run: Run,
    features: FeatureStore,
    *,
    kept: Pairs | None = None,
    device: str = "cpu",
    progress: Progress = silent,
) -> Pairs:
    """Chooses the pairs to match, unless that is done.

    Args:
        run: The run.
        features: Of the images that may be matched.
        kept: Pairs of an earlier state of the capture, which stay: beside them only
            those of images are chosen that are in none of them. None to choose all.
        device: Where the network runs that describes images, if there is one.
        progress: Wraps the loop over images.

    Raises:
        WeightsError: the network that describes images cannot be had.
        ConfigError: see `pairs_from_file` and `Pairs.write`.
        StoreError: see `Run.begin`.
    """
    if run.ledger.is_done("pairs"):
        names = [name for name in run.images.names if name in features]
        return pairs_from_file(run.workspace.pairs, names)
    at_one_spot = set(views_at_one_spot(run.images))
    pairs = _choose_pairs(run, features, device, progress)
    pairs = Pairs.of(pair for pair in pairs if pair not in at_one_spot)
    if kept is not None:
        known = {name for pair in kept for name in pair}
        pairs = Pairs.of([*kept, *(p for p in pairs if not known.issuperset(p))])
    run.begin("pairs")
    pairs.write(run.workspace.pairs)
    run.finish("pairs")
    return pairs


def _choose_pairs(
    run: Run, features: FeatureStore, device: str, progress: Progress
) -> Pairs:
    # here, so that a run that has its pairs loads no torch
    from sfmprep.pairing.retrieval import nearest_pairs, retrieval_pairs

    config = run.recipe.pairs
    names = [name for name in run.images.names if name in features]
    shots: list[list[str]] = []
    near = Pairs(())
    if isinstance(config, AutoPairsConfig) and run.recipe.known_poses is not None:
        return _pairs_by_poses(run, run.recipe.known_poses, config, features, progress)
    if isinstance(config, AutoPairsConfig):
        small, in_films = len(names) <= config.exhaustive_up_to, config.sequential
        shots = films_of(run.images, others=run.recipe.tracks is not None)
        is_idle = not run.ledger.keys.applies("describe")
        small = small and (is_idle or config.retrieval.model is None)
        if not small and config.spatial is not None:
            near = _pairs_by_gps(run, names, config.spatial)
        config = ExhaustiveConfig() if small else config.retrieval
    match config:
        case ExhaustiveConfig():
            pairs = exhaustive_pairs(names)
        case SequentialConfig(window=window, quadratic=quadratic):
            pairs = sequential_pairs(
                natural_order(names), window=window, quadratic=quadratic
            )
        case RetrievalConfig(model=None):
            pairs = retrieval_pairs(
                names, features, config, seed=run.recipe.seed, progress=progress
            )
        case RetrievalConfig():
            with describe(run, names, device=device, progress=progress) as rows:
                known = [name for name in names if name in rows]

                def read(start: int, stop: int) -> NDArray[np.float16]:
                    return np.stack([rows.get(name) for name in known[start:stop]])

                pairs = nearest_pairs(known, read, config)
        case SpatialConfig():
            pairs = _pairs_by_gps(run, names, config, is_wanted=True)
        case PairsFileConfig():
            pairs = pairs_from_file(config.path, names)
        case _:
            assert_never(config)
    pairs = Pairs.of([*pairs, *near])
    for shot in shots:
        neighbours = sequential_pairs(
            [name for name in shot if name in features],
            window=in_films.window,
            quadratic=in_films.quadratic,
        )
        pairs = Pairs.of([*pairs, *neighbours])
    return pairs


def _pairs_by_gps(
    run: Run, names: Sequence[str], config: SpatialConfig, *, is_wanted: bool = False
) -> Pairs:
    """Photographs that were taken near each other, where positions tell it.

    Args:
        run: The run.
        names: The images.
        config: How many neighbours.
        is_wanted: Whether that alone says which pairs there are, so that noise does
            too.

    Raises:
        ConfigError: it is wanted, and fewer than two images have a position.
    """
    # the views of one sphere share its place, and are near each other only in it
    views = run.images.views_of_panoramas
    infos = {name: run.images.infos[name] for name in names if name not in views}
    places = {name: info.gps[:2] for name, info in infos.items() if info.gps}
    if is_wanted and len(places) < 2:
        raise ConfigError(
            f"pairs.type: spatial needs GPS positions, but {len(places)} of"
            f" {len(names)} photographs have one. Choose by likeness:"
            " --set pairs.type=retrieval"
        )
    if is_wanted and (without := [name for name in names if name not in places]):
        logger.warning(
            "%d of %d images, such as %s, have no position of their own, so they are"
            " in no pair; --set pairs.type=auto pairs them by likeness",
            *(len(without), len(names), without[0]),
        )
    told = [infos[name].gps_accuracy_m or _GPS_ACCURACY_M for name in places]
    return spatial_pairs(
        places,
        num_neighbours=config.num_neighbours,
        accuracy_m=float(np.median(told)) if told and not is_wanted else 0.0,
    )


def _pairs_by_poses(
    run: Run,
    given: KnownPosesConfig,
    config: AutoPairsConfig,
    features: FeatureStore,
    progress: Progress,
) -> Pairs:
    """Views that given poses place near each other; others with those most similar."""
    names = [name for name in run.images.names if name in features]
    poses = poses_of(given, names, run.images.panoramas)
    pairs = pairs_of_poses(poses, given.num_neighbours)
    if without := set(names) - set(poses.names):
        if len(names) <= config.exhaustive_up_to:
            others = exhaustive_pairs(names)
        else:
            from sfmprep.pairing.retrieval import retrieval_pairs

            others = retrieval_pairs(
                *(names, features, config.retrieval),
                seed=run.recipe.seed,
                progress=progress,
            )
        pairs = Pairs.of([*pairs, *(p for p in others if without.intersection(p))])
    return pairs
