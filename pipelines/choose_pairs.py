"""Which images are matched: all, or by order, likeness, GPS, time, poses, or a file.

`pairs.json` beside the pairs says how many of them each way has proposed.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict
from typing import assert_never

import numpy as np
from numpy.typing import NDArray

from sfmprep.config import (
    AutoPairsConfig,
    ExhaustiveConfig,
    PairsFileConfig,
    RetrievalConfig,
    SequentialConfig,
    SpatialConfig,
    TemporalConfig,
)
from sfmprep.errors import ConfigError
from sfmprep.files import write_text
from sfmprep.frontend.describe import describe_images
from sfmprep.frontend.in_shards import describe_in_shards, merge_parts
from sfmprep.models.build import build_retriever
from sfmprep.pairing.pairs import (
    Pairs,
    Partners,
    exhaustive_pairs,
    later_partners,
    natural_order,
    pairs_from_file,
    sequential_pairs,
)
from sfmprep.pairing.spatial import spatial_partners
from sfmprep.pairing.temporal import walks
from sfmprep.pairing.union import WayCount, pairs_within_budget
from sfmprep.pipelines import stages
from sfmprep.pipelines.refine_poses import partners_by_poses, poses_of
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
    known = set() if kept is None else {name for pair in kept for name in pair}
    pairs, counts = _choose_pairs(run, features, known, device, progress)
    if kept is not None:
        pairs = Pairs.of([*kept, *pairs])
    run.begin("pairs")
    ways = json.dumps([asdict(count) for count in counts], indent=1)
    write_text(run.workspace.pair_ways, ways)
    pairs.write(run.workspace.pairs)
    run.finish("pairs")
    return pairs


def _choose_pairs(
    run: Run,
    features: FeatureStore,
    known: Collection[str],
    device: str,
    progress: Progress,
) -> tuple[Pairs, list[WayCount]]:
    """The pairs with an image that is not among the known ones, and who proposed them.

    No pair of two views of one panorama is among them.
    """
    config = run.recipe.pairs
    names = [name for name in run.images.names if name in features]
    at_one_spot = set(views_at_one_spot(run.images))

    def is_wanted(name0: str, name1: str) -> bool:
        pair = (min(name0, name1), max(name0, name1))
        return pair not in at_one_spot and not (name0 in known and name1 in known)

    if isinstance(config, AutoPairsConfig):
        is_small = _is_small(run, config, len(names))
        if run.recipe.known_poses is None and is_small:
            config = ExhaustiveConfig()
    if isinstance(config, AutoPairsConfig):
        limit = None if is_small else config.per_image
        proposed = _ways(run, config, names, features, is_small, device, progress)
        ways = {way: _only(others, is_wanted) for way, others in proposed.items()}
        for way, partners in ways.items():
            longest = max(map(len, partners.values()), default=0)
            if limit is not None and longest > limit:
                logger.warning(
                    "pairs.per_image lets each image ask for %d pairs, of all ways"
                    " together, but %s proposes up to %d; --set pairs.per_image=null"
                    " takes all",
                    *(limit, way, longest),
                )
        pairs, counts = pairs_within_budget(ways, per_image=limit)
        said = ", ".join(f"{c.num_kept} of {c.num_proposed} by {c.way}" for c in counts)
        logger.info("%d pairs are chosen%s", len(pairs), said and f": {said}")
        return pairs, counts
    match config:
        case ExhaustiveConfig():
            found = exhaustive_pairs(names)
        case SequentialConfig(window=window, quadratic=quadratic):
            found = sequential_pairs(
                natural_order(names), window=window, quadratic=quadratic
            )
        case RetrievalConfig():
            found = Pairs.of_partners(
                _by_likeness(run, config, names, features, device, progress)
            )
        case SpatialConfig():
            _expect_told(config, "GPS positions", names, _places(run, names))
            found = Pairs.of_partners(_by_gps(run, names, config, is_wanted=True))
        case TemporalConfig():
            found_walks = _walks(run, names, config)
            told = {name for walk in found_walks for name in walk}
            _expect_told(config, "times in EXIF that tell an order", names, told)
            found = Pairs.of_partners(_by_order(found_walks, config))
        case PairsFileConfig():
            found = pairs_from_file(config.path, names)
        case _:
            assert_never(config)
    pairs = Pairs.of(pair for pair in found if is_wanted(*pair))
    number = len(pairs)
    return pairs, [WayCount(way=config.type, num_proposed=number, num_kept=number)]


def _only(partners: Partners, is_wanted: Callable[[str, str], bool]) -> Partners:
    return {
        name: [other for other in others if is_wanted(name, other)]
        for name, others in partners.items()
    }


def _is_small(run: Run, config: AutoPairsConfig, num_images: int) -> bool:
    """Whether every image is paired with every other."""
    is_described = run.ledger.keys.applies("describe")
    return num_images <= config.exhaustive_up_to and not is_described


def _ways(
    run: Run,
    config: AutoPairsConfig,
    names: Sequence[str],
    features: FeatureStore,
    is_small: bool,
    device: str,
    progress: Progress,
) -> dict[str, Partners]:
    """What each way proposes.

    Poses say which views see the same, where there are some. Of the other ways only
    the pairs of images without a pose count then.
    """
    ways: dict[str, Partners] = {}
    unposed = set(names)
    if given := run.recipe.known_poses:
        poses = poses_of(given, names, run.images.panoramas)
        unposed -= set(poses.names)
        ways["poses"] = partners_by_poses(poses, given.num_neighbours)
        if not unposed:
            return ways
    if is_small:
        every = {name: [o for o in names if o != name] for name in sorted(unposed)}
        return {**ways, "exhaustive": every}
    found = {
        "retrieval": _by_likeness(
            *(run, config.retrieval, names, features), device, progress
        ),
        "sequential": _by_order(_shots(run, names), config.sequential),
        "temporal": config.temporal
        and _by_order(_walks(run, names, config.temporal), config.temporal),
        "spatial": config.spatial and _by_gps(run, names, config.spatial),
    }
    for way, partners in found.items():
        if partners and given is None:
            ways[way] = partners
        elif partners:
            ways[way] = _only(partners, lambda *pair: not unposed.isdisjoint(pair))
    return ways


def _by_likeness(
    run: Run,
    config: RetrievalConfig,
    names: Sequence[str],
    features: FeatureStore,
    device: str,
    progress: Progress,
) -> Partners:
    # here, so that a run that has its pairs loads no torch
    from sfmprep.pairing.retrieval import nearest_partners, similar_partners

    if run.recipe.retriever is None:
        return similar_partners(
            names, features, config, seed=run.recipe.seed, progress=progress
        )
    with describe(run, names, device=device, progress=progress) as rows:
        known = [name for name in names if name in rows]

        def read(start: int, stop: int) -> NDArray[np.float16]:
            return np.stack([rows.get(name) for name in known[start:stop]])

        return nearest_partners(known, read, config)


def _shots(run: Run, names: Sequence[str]) -> list[list[str]]:
    """Frames of one film, never across a cut."""
    there = set(names)
    shots = films_of(run.images, others=run.recipe.tracks is not None)
    return [[name for name in shot if name in there] for shot in shots]


def _walks(run: Run, names: Sequence[str], config: TemporalConfig) -> list[list[str]]:
    infos = {name: run.images.infos[name] for name in names}
    return walks(infos, max_gap_s=config.max_gap_s)


def _by_order(
    rows: Sequence[Sequence[str]], config: SequentialConfig | TemporalConfig
) -> Partners:
    """Images of each row, of which none is in two, with those that follow in it."""
    found: dict[str, Sequence[str]] = {}
    for row in rows:
        found |= later_partners(row, window=config.window, quadratic=config.quadratic)
    return found


def _places(run: Run, names: Sequence[str]) -> dict[str, tuple[float, float]]:
    """Latitude and longitude, degrees, of photographs that have a place of their own.

    The views of one sphere share its place, and are near each other only in it.
    """
    views = run.images.views_of_panoramas
    gps = {name: run.images.infos[name].gps for name in names if name not in views}
    return {name: place[:2] for name, place in gps.items() if place is not None}


def _by_gps(
    run: Run, names: Sequence[str], config: SpatialConfig, *, is_wanted: bool = False
) -> Partners:
    """Photographs with those that were taken near by, where positions tell it.

    Args:
        run: The run.
        names: The images.
        config: How many neighbours.
        is_wanted: Whether that alone says which pairs there are, so that noise does
            too.
    """
    places, infos = _places(run, names), run.images.infos
    told = [infos[name].gps_accuracy_m or _GPS_ACCURACY_M for name in places]
    return spatial_partners(
        places,
        num_neighbours=config.num_neighbours,
        accuracy_m=float(np.median(told)) if told and not is_wanted else 0.0,
    )


def _expect_told(
    config: SpatialConfig | TemporalConfig,
    what: str,
    names: Sequence[str],
    told: Collection[str],
) -> None:
    """Warns of images whose headers do not tell what alone makes pairs.

    Raises:
        ConfigError: they tell it of fewer than two.
    """
    if len(told) < 2:
        raise ConfigError(
            f"pairs.type: {config.type} needs {what}, but {len(told)} of"
            f" {len(names)} photographs have one. Choose by likeness:"
            " --set pairs.type=retrieval"
        )
    if without := [name for name in names if name not in told]:
        logger.warning(
            "%d of %d images, such as %s, have no %s, so they are in no pair;"
            " --set pairs.type=auto pairs them by likeness",
            *(len(without), len(names), without[0]),
            "position of their own"
            if isinstance(config, SpatialConfig)
            else "time near that of another photograph of their camera",
        )
