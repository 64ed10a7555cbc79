"""Each stage over the artefacts of one output folder: does what is missing, no more.

`reconstruct.py` calls them one after the other; the command line, one at a time. What
depends on what is in `stage_table.py`.
"""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, assert_never

import numpy as np
import pycolmap

from sfmprep.capture.batches import reduction_scales
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import (
    AutoPairsConfig,
    ExhaustiveConfig,
    FeaturesConfig,
    KnownPosesConfig,
    MatcherConfig,
    PairsFileConfig,
    RetrievalConfig,
    SequentialConfig,
)
from sfmprep.errors import ConfigError, ImageError, ReconstructionError
from sfmprep.files import write_text
from sfmprep.frontend.describe import describe_images
from sfmprep.frontend.extract import extract_features
from sfmprep.frontend.match import match_features, pairs_per_batch
from sfmprep.frontend.on_devices import (
    extract_on_devices,
    match_on_devices,
    merge_parts,
)
from sfmprep.geometry.uncertainty import pose_uncertainties
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.database import remove_database, update_database
from sfmprep.mapping.failure import explain_failure
from sfmprep.mapping.models import read_packed
from sfmprep.mapping.outliers import find_outliers, without_images
from sfmprep.mapping.verify import VerifiedPairs, read_verified, verify_matches
from sfmprep.models.build import build_extractor, build_matcher, build_retriever
from sfmprep.pairing.pairs import (
    Pair,
    Pairs,
    exhaustive_pairs,
    natural_order,
    pairs_from_file,
    sequential_pairs,
)
from sfmprep.pairing.retrieval import nearest_pairs, retrieval_pairs
from sfmprep.pipelines.apart import apart, hold_rigs_into, map_into, refine_into
from sfmprep.pipelines.artefacts import (
    Poses,
    expect,
    open_features,
    open_joined,
    open_matches,
    read_models,
    read_pairs,
    refuse,
    result_database,
)
from sfmprep.pipelines.refine_poses import pairs_of_poses, poses_of
from sfmprep.pipelines.rigs import views_at_one_spot
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, silent
from sfmprep.report.findings import below_floors
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore, RowStore

logger = logging.getLogger(__name__)

_STORES = {
    "extract": FeatureStore,
    "describe": RowStore,
    "match": MatchStore,
    "extract beside": FeatureStore,
    "match beside": MatchStore,
    "match weak pairs": MatchStore,
    "match semi-densely": DenseStore,
}


def extract(
    run: Run, *, device: str = "cpu", progress: Progress = silent
) -> tuple[FeatureStore, dict[str, str]]:
    """Extracts what is missing.

    Returns:
        The feature store, open for reading, and the images that could not be decoded
        with the reason.

    Raises:
        ImageError: fewer than two images could be decoded.
    """
    images = run.images
    unreadable = extract_with(
        *(run, "extract", run.recipe.features, images),
        device=device,
        progress=progress,
    )
    for name, reason in unreadable.items():
        logger.warning("%s is left out: %s", images.path(name), reason)
    if len(images) - len(unreadable) < 2:
        raise ImageError(
            f"{images.root}: only {len(images) - len(unreadable)} of {len(images)}"
            " images, or their masks, can be used; poses need at least two."
        )
    run.finish("extract")
    return FeatureStore(run.workspace.features), unreadable


def extract_with(
    run: Run,
    stage: str,
    config: FeaturesConfig,
    images: ImageSet,
    *,
    device: str,
    progress: Progress,
) -> dict[str, str]:
    """Extracts what is missing in the store of a stage.

    Returns:
        The images that could not be decoded with the reason.
    """
    path, engine, devices = run.ledger.file(stage), run.recipe.engine, device.split(",")
    made = open_store(run, stage)
    with FeatureStore(path, made) as store:
        merge_parts(store)
        missing = [name for name in images.names if name not in store]
    if missing and len(devices) > 1:
        write_text(run.workspace.recipe, run.recipe.to_yaml())
        return extract_on_devices(
            *(images, config, path, made),
            devices=devices,
            engine=engine,
            progress=progress,
        )
    if not missing:
        return {}
    extractor = build_extractor(config, device=device, precision=engine.precision)
    write_text(run.workspace.recipe, run.recipe.to_yaml())  # the choice is made
    with FeatureStore(path, made) as store:
        return extract_features(
            *(images, extractor, store),
            max_size=config.max_size,
            num_workers=engine.num_workers,
            progress=progress,
        )


def open_store(run: Run, stage: str) -> dict[str, Any]:
    """Makes sure that a store can be continued; returns what it must be made of.

    One that was made with other settings is put aside, and one with these comes back.
    """
    path, keys = run.ledger.file(stage), run.ledger.keys
    made = {"key": keys.key(stage), "settings": keys.settings(stage)}
    if run.ledger.is_done(stage):
        return made
    key = ""
    if path.is_file():
        with _STORES[stage](path) as store:
            its_own = store.provenance
        key = its_own["key"]
    if key != made["key"]:
        if key:  # what a stopped run on several devices left beside it is its own
            with _STORES[stage](path, its_own) as store:
                if isinstance(store, FeatureStore | MatchStore):
                    merge_parts(store)
        run.workspace.put_aside(path, key, made["key"])
    run.begin(stage)
    return made


def pairs_there(run: Run, stage: str) -> set[Pair]:
    """The pairs that the store of a stage holds; none if it cannot be continued."""
    path = run.ledger.file(stage)
    if not run.ledger.can_grow(stage):
        return set()
    with _STORES[stage](path) as store:
        return (
            set(store.pairs()) if isinstance(store, MatchStore | DenseStore) else set()
        )


def describe(
    run: Run,
    names: Sequence[str],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> RowStore:
    """Describes what is missing of these images; returns the rows, open for reading.

    Several devices are not used at once: it is the first that does so.
    """
    made, engine = open_store(run, "describe"), run.recipe.engine
    config = run.recipe.retriever
    file = run.ledger.file("describe")
    with RowStore(file, made) as store:
        if config is not None and any(name not in store for name in names):
            retriever = build_retriever(
                config, device=device.split(",")[0], precision=engine.precision
            )
            unreadable = describe_images(
                *(run.images, names, retriever, store),
                max_size=config.max_size,
                num_workers=engine.num_workers,
                progress=progress,
            )
            for name, reason in unreadable.items():
                logger.warning(
                    "%s has no neighbours: %s", run.images.path(name), reason
                )
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
    config = run.recipe.pairs
    names = [name for name in run.images.names if name in features]
    shots: list[list[str]] = []
    if isinstance(config, AutoPairsConfig) and run.recipe.known_poses is not None:
        return _pairs_by_poses(run, run.recipe.known_poses, config, features, progress)
    if isinstance(config, AutoPairsConfig):
        small, in_films = len(names) <= config.exhaustive_up_to, config.sequential
        shots = [shot for film in run.images.films for shot in film.shots()]
        is_idle = not run.ledger.keys.applies("describe")
        small = small and (is_idle or config.retrieval.model is None)
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
                found = [rows.get(name) for name in known]
            pairs = nearest_pairs(known, np.stack(found), config)
        case PairsFileConfig():
            pairs = pairs_from_file(config.path, names)
        case _:
            assert_never(config)
    for shot in shots:
        neighbours = sequential_pairs(
            [name for name in shot if name in features],
            window=in_films.window,
            quadratic=in_films.quadratic,
        )
        pairs = Pairs.of([*pairs, *neighbours])
    return pairs


def _pairs_by_poses(
    run: Run,
    given: KnownPosesConfig,
    config: AutoPairsConfig,
    features: FeatureStore,
    progress: Progress,
) -> Pairs:
    """Views that given poses place near each other; others with those most similar."""
    names = [name for name in run.images.names if name in features]
    poses = poses_of(given, names)
    pairs = pairs_of_poses(poses, given.num_neighbours)
    if without := set(names) - set(poses.names):
        if len(names) <= config.exhaustive_up_to:
            others = exhaustive_pairs(names)
        else:
            others = retrieval_pairs(
                *(names, features, config.retrieval),
                seed=run.recipe.seed,
                progress=progress,
            )
        pairs = Pairs.of([*pairs, *(p for p in others if without.intersection(p))])
    return pairs


def match(
    run: Run,
    pairs: Pairs,
    features: FeatureStore,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> MatchStore:
    """Matches what is missing and returns the match store, open for reading."""
    return match_with(
        *(run, "match", run.recipe.matcher, pairs, features),
        device=device,
        progress=progress,
    )


def match_with(
    run: Run,
    stage: str,
    config: MatcherConfig,
    pairs: Pairs,
    features: FeatureStore,
    *,
    device: str,
    progress: Progress,
) -> MatchStore:
    """Matches what is missing in the store of a stage; returns it, open for reading."""
    path, engine, devices = run.ledger.file(stage), run.recipe.engine, device.split(",")
    made = open_store(run, stage)
    with MatchStore(path, made) as store:
        merge_parts(store)
        missing = any(pair not in store for pair in pairs)
    if missing and len(devices) > 1:
        match_on_devices(
            *(pairs, features.path or run.workspace.features, config, path, made),
            devices=devices,
            engine=engine,
            progress=progress,
        )
    elif missing:
        matcher = build_matcher(config, device=device, precision=engine.precision)
        with MatchStore(path, made) as store:
            match_features(
                *(pairs, features, matcher, store),
                batch_size=pairs_per_batch(device),
                cache_bytes=int(engine.cache_gb * 1e9),
                progress=progress,
            )
    run.finish(stage)
    return MatchStore(path)


def fill_database(
    run: Run,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchReader,
    *,
    stage: str = "database",
    progress: Progress = silent,
) -> VerifiedPairs:
    """Imports and verifies what the database of a stage lacks.

    What was verified on an earlier rung of the ladder, and is the same, is taken over.
    """
    database = run.ledger.file(stage)
    if not run.ledger.is_done(stage):
        if not run.ledger.can_grow(stage):
            remove_database(database)
        run.begin(stage)
        lower = _lower_database(run, stage)
        write_database(
            *(run, database, features, pairs, matches), lower=lower, progress=progress
        )
        run.finish(stage)
    return read_verified(database)


def write_database(
    run: Run,
    path: Path,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchReader,
    *,
    lower: Path | None,
    progress: Progress = silent,
) -> None:
    """Imports and verifies what a database lacks; takes over what `lower` verified."""
    recipe = run.recipe
    update_database(
        *(path, run.images, features, matches, pairs, recipe.database),
        lower=lower,
        progress=progress,
    )
    verify_matches(
        *(path, pairs, recipe.database),
        scales=reduction_scales(run.images, recipe.features.max_size),
        seed=recipe.seed,
        progress=progress,
    )


def _lower_database(run: Run, stage: str) -> Path | None:
    """The database of the rung below."""
    rungs = ("verify", "verify beside", "verify again", "database")
    below = [rung for rung in rungs[: rungs.index(stage)] if run.ledger.is_done(rung)]
    return run.ledger.file(below[-1]) if below else None


def fill_from_stores(run: Run, *, progress: Progress = silent) -> VerifiedPairs:
    """As `fill_database`, with the stores that earlier stages left.

    Raises:
        StoreError: an earlier stage was not run, or not to its end.
    """
    expect(run, "extract")
    pairs = read_pairs(run)
    with open_features(run) as features, open_matches(run) as matches:
        if any(
            pair not in matches
            for pair in pairs
            if pair[0] in features and pair[1] in features
        ):
            refuse(run, "match")
    joined, all_matches = open_joined(run)
    with joined, all_matches:
        return fill_database(run, joined, pairs, all_matches, progress=progress)


def map_verified(
    run: Run, verified: VerifiedPairs, *, progress: Progress = silent
) -> list[pycolmap.Reconstruction]:
    """Finds poses, unless that is done; returns the mapper's models, largest first.

    Raises:
        ConfigError: the recipe is one without mapping.
        ReconstructionError: there is no model, and why.
    """
    if run.recipe.mapping.type == "none":
        raise ConfigError(
            f"recipe {run.recipe.name!r} has mapping.type: none, so there is nothing to"
            " map here; go on with COLMAP, or use a recipe with a mapper."
        )
    packed = run.workspace.mapped
    if run.ledger.is_done("map"):
        return read_packed(packed)
    run.begin("map")
    recipe = run.recipe
    num_models, run.budget.seconds = apart(
        *(map_into, packed, run.ledger.file("database"), run.images),
        *(recipe.mapping, recipe.database),
        reduction_scales(run.images, recipe.features.max_size),
        recipe.seed,
        run.budget,
        recipe.known_poses,
        progress=progress,
    )
    if not num_models:
        raise ReconstructionError(
            explain_failure(run.images, verified, run.ledger.file("database"))
        )
    run.finish("map")
    return read_packed(packed)


def refine(
    run: Run, models: list[pycolmap.Reconstruction], *, progress: Progress = silent
) -> list[pycolmap.Reconstruction]:
    """Measures the keypoints of tracks better and adjusts to them, as the recipe says.

    The models that came in stay as they are; without refinement they are returned.
    """
    if not run.ledger.keys.applies("refine"):
        return models
    packed = run.workspace.refined
    if not run.ledger.is_done("refine"):
        run.begin("refine")
        place, names = run.workspace, run.images.names
        mapped = run.ledger.file(run.ledger.keys.nearest("map on"))
        has_dense = run.recipe.dense is not None
        tried = pairs_from_file(place.pairs_left, names) if has_dense else None
        apart(
            *(refine_into, packed, mapped, place.dense, tried),
            *(run.images, run.recipe),
            progress=progress,
        )
        run.finish("refine")
    return read_packed(packed)


def hold_rigs(
    run: Run, models: list[pycolmap.Reconstruction], *, progress: Progress = silent
) -> list[pycolmap.Reconstruction]:
    """Brings poses into the rigs of the capture, if it has some.

    The models that came in stay as they are; without rigs they are returned.
    """
    keys = run.ledger.keys
    if not keys.applies("hold rigs"):
        return models
    packed = run.workspace.held
    if not run.ledger.is_done("hold rigs"):
        run.begin("hold rigs")
        write_text(run.workspace.rigs, json.dumps(keys.rigs, indent=1))
        apart(
            *(hold_rigs_into, packed, run.ledger.file(keys.nearest("refine"))),
            *(result_database(run), run.workspace.rigs),
            progress=progress,
        )
        run.finish("hold rigs")
    return read_packed(packed)


def set_outliers_aside(
    run: Run, models: list[pycolmap.Reconstruction]
) -> list[pycolmap.Reconstruction]:
    """Takes poses that are not supported out of the models; says which.

    The models that came in stay as they are; those that are returned are in the order
    of what is left, largest first.
    """
    if run.ledger.is_done("outliers"):
        return read_models(run)
    run.begin("outliers")
    found: list[tuple[pycolmap.Reconstruction, Poses]] = []
    for model in models:
        arrays = ModelArrays.of(model)
        uncertainties = pose_uncertainties(model, arrays)
        size = model.num_reg_images(), model.num_points3D()
        outliers: dict[str, str] = {}
        if not found or not below_floors(*size):  # else there is no dataset to spoil
            outliers = find_outliers(arrays, run.recipe.export.outliers, uncertainties)
        rest = without_images(model, outliers) if outliers else model
        found.append((rest, Poses(uncertainties=uncertainties, outliers=outliers)))
    found.sort(key=lambda pair: -pair[0].num_reg_images())
    kept = [model for model, _ in found]
    text = json.dumps([asdict(poses) for _, poses in found], ensure_ascii=False)
    write_text(run.workspace.poses, text)
    part = run.workspace.work / ".models"
    shutil.rmtree(part, ignore_errors=True)
    for number, model in enumerate(kept):
        (part / str(number)).mkdir(parents=True)
        model.write(part / str(number))
    if run.workspace.models.exists():
        shutil.rmtree(run.workspace.models)
    part.replace(run.workspace.models)
    run.finish("outliers")
    return kept
