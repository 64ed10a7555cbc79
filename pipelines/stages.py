"""Each stage over the artefacts of one output folder: does what is missing, no more.

`reconstruct.py` calls them one after the other; the command line, one at a time. What
depends on what is in `stage_table.py`. Which images are matched is in
`choose_pairs.py`; what comes after the database in `map_stages.py`.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfmprep.capture.batches import reduction_scales
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import (
    FeaturesConfig,
    MatcherConfig,
)
from sfmprep.errors import ImageError
from sfmprep.files import write_text
from sfmprep.frontend.extract import extract_features
from sfmprep.frontend.in_shards import (
    extract_in_shards,
    match_in_shards,
    merge_parts,
)
from sfmprep.frontend.match import match_features, pairs_per_batch
from sfmprep.mapping.database import remove_database, update_database
from sfmprep.mapping.verify import VerifiedPairs, read_verified, verify_matches
from sfmprep.models.build import build_extractor, build_matcher
from sfmprep.pairing.pairs import Pairs
from sfmprep.pipelines.artefacts import (
    expect,
    open_features,
    open_joined,
    open_matches,
    read_pairs,
    refuse,
)
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, silent
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.ragged import DamagedError
from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore, RowStore
from sfmprep.types import Pair

logger = logging.getLogger(__name__)

Store = FeatureStore | MatchStore | DenseStore | RowStore
_STORES: dict[str, type[Store]] = {
    "extract": FeatureStore,
    "describe": RowStore,
    "match": MatchStore,
    "extract beside": FeatureStore,
    "match beside": MatchStore,
    "match weak pairs": MatchStore,
    "match semi-densely": DenseStore,
    "extract closer": FeatureStore,
    "match closer": MatchStore,
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
    run.left_out.update(unreadable)
    for name, reason in unreadable.items():
        logger.warning("%s is left out: %s", images.path(name), reason)
    if len(images) - len(unreadable) < 2:
        raise ImageError(
            f"{images.root}: only {len(images) - len(unreadable)} of {len(images)}"
            " images, or their masks, can be used; poses need at least two. Mend what"
            " is said of each above."
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
    path, engine = run.ledger.file(stage), run.recipe.engine
    made, executor = open_store(run, stage), run.executor_on(device)
    with FeatureStore(path, made) as store:
        merge_parts(store)
        missing = [name for name in images.names if name not in store]
    if missing and executor is not None:
        write_text(run.workspace.recipe, run.recipe_text)
        return extract_in_shards(
            *(images, config, path, made),
            executor=executor,
            engine=engine,
            progress=progress,
        )
    if not missing:
        write_text(run.workspace.recipe, run.recipe_text)  # as of the shares
        return {}
    extractor = build_extractor(config, device=device, precision=engine.precision)
    write_text(run.workspace.recipe, run.recipe_text)  # the choice is made
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
    _mend(path, _STORES[stage], made)
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
                merge_parts(store)
        run.workspace.put_aside(path, key, made["key"])
    run.begin(stage)
    return made


def _mend(path: Path, kind: type[Store], made: Mapping[str, Any]) -> None:
    """Makes a damaged store anew of what can be read of it.

    A kill between two writes of HDF5 can damage one, and so can a disk.
    """
    damaged = path.with_name(f"{path.name}.damaged")
    try:
        if path.is_file():
            with kind(path) as store:
                made = store.provenance
            kind(path, made).close()  # more is looked at before it is written to
    except DamagedError:
        path.replace(damaged)
    if not damaged.is_file():
        return
    if not path.is_file():  # else a run was stopped while it mended
        with contextlib.suppress(DamagedError), kind(damaged) as old:
            made = old.provenance
    with kind(path, made) as store:
        with contextlib.suppress(DamagedError):
            store.merge(damaged)
        logger.warning(
            "%s is damaged, as by a kill while it was written: %d items of it can be"
            " read and are kept, others are made again",
            *(path, len(store)),
        )
    damaged.unlink()


def pairs_there(run: Run, stage: str) -> set[Pair]:
    """The pairs that the store of a stage holds; none if it cannot be continued."""
    path = run.ledger.file(stage)
    if not run.ledger.can_grow(stage):
        return set()
    try:
        with _STORES[stage](path) as store:
            if isinstance(store, MatchStore | DenseStore):
                return set(store.pairs())
    except DamagedError:
        pass  # it is mended when the stage begins
    return set()


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
    path, engine = run.ledger.file(stage), run.recipe.engine
    made, executor = open_store(run, stage), run.executor_on(device)
    with MatchStore(path, made) as store:
        merge_parts(store)
        missing = any(pair not in store for pair in pairs)
    if missing and executor is not None:
        match_in_shards(
            *(pairs, features.path or run.workspace.features, config, path, made),
            executor=executor,
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
        executor=run.cluster,
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
