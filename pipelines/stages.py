"""Each stage over the stores of one output folder: does what is missing, no more.

`reconstruct.py` calls them one after the other; the command line, one at a time.
"""

from __future__ import annotations

import logging
import shutil
from pathlib import Path
from typing import Any, assert_never

import pycolmap

from sfmprep.capture.identity import masks_signature
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import (
    AutoPairsConfig,
    ExhaustiveConfig,
    PairsFileConfig,
    Recipe,
    RetrievalConfig,
    SequentialConfig,
)
from sfmprep.errors import ConfigError, ImageError, ReconstructionError, StoreError
from sfmprep.frontend.extract import extract_features
from sfmprep.frontend.match import match_features, pairs_per_batch
from sfmprep.frontend.on_devices import (
    extract_on_devices,
    match_on_devices,
    merge_parts,
)
from sfmprep.mapping.database import remove_database, write_database
from sfmprep.mapping.mapper import explain_failure, map_images, refine_model
from sfmprep.mapping.verify import VerifiedPairs, read_verified, verify_matches
from sfmprep.models.build import build_extractor, build_matcher
from sfmprep.pairing.pairs import (
    Pairs,
    exhaustive_pairs,
    natural_order,
    pairs_from_file,
    sequential_pairs,
)
from sfmprep.pairing.retrieval import retrieval_pairs
from sfmprep.pipelines.reporting import set_outliers_aside
from sfmprep.pipelines.semidense import open_semi_dense
from sfmprep.pipelines.workspace import Workspace
from sfmprep.progress import Progress, silent
from sfmprep.refinement.refine import refine_keypoints
from sfmprep.semidense.join import network_scales
from sfmprep.semidense.remeasure import remeasure
from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore

logger = logging.getLogger(__name__)


def extract(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> tuple[FeatureStore, dict[str, str]]:
    """Extracts what is missing.

    Returns:
        The feature store, open for reading, and the images that could not be decoded
        with the reason.

    Raises:
        ImageError: fewer than two images could be decoded.
    """
    precision, devices = recipe.engine.precision, device.split(",")
    # with several devices each process builds its own there
    extractor = (
        build_extractor(recipe.features, device=device, precision=precision)
        if len(devices) == 1
        else build_extractor(recipe.features)
    )
    provenance: dict[str, Any] = {
        "config": recipe.features.model_dump(mode="json"),
        "weights_sha256": extractor.weights_sha256,
    }
    if images.mask_root is not None:
        provenance["masks_sha256"] = masks_signature(images)
    if len(devices) > 1:
        unreadable = extract_on_devices(
            images,
            recipe.features,
            workspace.features,
            provenance,
            devices=devices,
            engine=recipe.engine,
            progress=progress,
        )
    else:
        with FeatureStore(workspace.features, provenance) as store:
            merge_parts(store)
            unreadable = extract_features(
                images,
                extractor,
                store,
                max_size=recipe.features.max_size,
                num_workers=recipe.engine.num_workers,
                progress=progress,
            )
    for name, reason in unreadable.items():
        logger.warning("%s is left out: %s", images.path(name), reason)
    if len(images) - len(unreadable) < 2:
        raise ImageError(
            f"{images.root}: only {len(images) - len(unreadable)} of {len(images)}"
            " images, or their masks, can be used; poses need at least two."
        )
    return FeatureStore(workspace.features), unreadable


def open_features(images: ImageSet, workspace: Workspace) -> FeatureStore:
    """Opens the features that `extract` left, for reading.

    Raises:
        StoreError: there are none.
    """
    _expect(workspace.features.is_file(), workspace.features, "extract")
    features = FeatureStore(workspace.features)
    if lacking := [name for name in images.names if name not in features]:
        logger.warning(
            "%d of %d images have no features, such as %s, and are left out. Run"
            " `sfmprep extract` if it was stopped.",
            len(lacking),
            len(images),
            lacking[0],
        )
    return features


def read_pairs(images: ImageSet, workspace: Workspace) -> Pairs:
    """Reads the pairs that `make_pairs` left.

    Raises:
        StoreError: there are none.
        ConfigError: see `pairs_from_file`.
    """
    _expect(workspace.pairs.is_file(), workspace.pairs, "pairs")
    return pairs_from_file(workspace.pairs, images.names)


def make_pairs(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    features: FeatureStore,
    *,
    progress: Progress = silent,
) -> Pairs:
    """Chooses the pairs to match and writes them to `work/pairs.txt`.

    Raises:
        ConfigError: see `pairs_from_file` and `Pairs.write`.
    """
    names = [name for name in images.names if name in features]
    config = recipe.pairs
    if isinstance(config, AutoPairsConfig):
        small = len(names) <= config.exhaustive_up_to
        config = ExhaustiveConfig() if small else config.retrieval
    match config:
        case ExhaustiveConfig():
            pairs = exhaustive_pairs(names)
        case SequentialConfig(window=window, quadratic=quadratic):
            pairs = sequential_pairs(
                natural_order(names), window=window, quadratic=quadratic
            )
        case RetrievalConfig():
            inputs = [
                config.model_dump(mode="json"),
                recipe.seed,
                features.provenance,
                names,
            ]
            if workspace.pairs.is_file() and workspace.is_done("retrieve", inputs):
                return pairs_from_file(workspace.pairs, names)
            workspace.start("retrieve")
            pairs = retrieval_pairs(
                names, features, config, seed=recipe.seed, progress=progress
            )
            pairs.write(workspace.pairs)
            workspace.finish("retrieve", inputs)
            return pairs
        case PairsFileConfig(path=path):
            pairs = pairs_from_file(path, names)
        case _:
            assert_never(config)
    pairs.write(workspace.pairs)
    return pairs


def match(
    pairs: Pairs,
    workspace: Workspace,
    recipe: Recipe,
    features: FeatureStore,
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> MatchStore:
    """Matches what is missing and returns the match store, open for reading."""
    precision, devices = recipe.engine.precision, device.split(",")
    matcher = (
        build_matcher(recipe.matcher, device=device, precision=precision)
        if len(devices) == 1
        else build_matcher(recipe.matcher)  # each process builds its own on its device
    )
    provenance = {
        "config": recipe.matcher.model_dump(mode="json"),
        "weights_sha256": matcher.weights_sha256,
        "features": features.provenance,
    }
    if len(devices) > 1:
        match_on_devices(
            pairs,
            workspace.features,
            recipe.matcher,
            workspace.matches,
            provenance,
            devices=devices,
            engine=recipe.engine,
            progress=progress,
        )
    else:
        with MatchStore(workspace.matches, provenance) as store:
            merge_parts(store)
            match_features(
                pairs,
                features,
                matcher,
                store,
                batch_size=pairs_per_batch(device),
                cache_bytes=int(recipe.engine.cache_gb * 1e9),
                progress=progress,
            )
    return MatchStore(workspace.matches)


def fill_database(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    features: FeatureStore,
    pairs: Pairs,
    matches: MatchStore,
    *,
    progress: Progress = silent,
) -> VerifiedPairs:
    """Imports everything into the database and verifies it, unless that is done."""
    database = workspace.database(recipe)
    inputs = [
        recipe.database.model_dump(mode="json"),
        database.relative_to(workspace.out).as_posix(),
        recipe.seed,
        features.provenance,
        matches.provenance,
        sorted(features.names()),
        list(pairs),
    ]
    if not (database.is_file() and workspace.is_done("database", inputs)):
        if not (database.is_file() and workspace.is_done("import", inputs)):
            workspace.start("import")
            remove_database(database)
            write_database(
                database,
                images,
                features,
                matches,
                pairs,
                recipe.database,
                progress=progress,
            )
            workspace.finish("import", inputs)
        verify_matches(
            database, pairs, recipe.database, seed=recipe.seed, progress=progress
        )
        workspace.finish("database", inputs)
    return read_verified(database)


def map_and_refine(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    verified: VerifiedPairs,
    *,
    progress: Progress = silent,
) -> list[pycolmap.Reconstruction]:
    """Finds poses, unless that is done; returns the models, largest first.

    Poses of the largest that are not supported are set aside.

    Raises:
        ConfigError: the recipe is one without mapping.
        ReconstructionError: there is no model, and why.
    """
    if recipe.mapping.type == "none":
        raise ConfigError(
            f"recipe {recipe.name!r} has mapping.type: none, so there is nothing to map"
            " here; go on with COLMAP, or use a recipe with a mapper."
        )
    inputs = _map_inputs(workspace, recipe)
    if not ((workspace.models / "0").is_dir() and workspace.is_done("map", inputs)):
        workspace.start("map")
        if workspace.models.exists():
            shutil.rmtree(workspace.models)
        models = map_images(
            workspace.database(recipe),
            images,
            workspace.models,
            recipe.mapping,
            seed=recipe.seed,
            progress=progress,
        )
        if not models:
            raise ReconstructionError(explain_failure(images, verified))
        if recipe.dense is not None or recipe.refinement is not None:
            for number, model in enumerate(models):
                models[number] = _move_keypoints(
                    model, images, workspace, recipe, progress=progress
                )
                models[number].write(workspace.models / str(number))
        models[0] = set_outliers_aside(models[0], workspace, recipe)
        workspace.finish("map", inputs)
        return models
    return read_models(workspace)


def _move_keypoints(
    model: pycolmap.Reconstruction,
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    *,
    progress: Progress,
) -> pycolmap.Reconstruction:
    """Measures keypoints of tracks better and adjusts the model to them."""
    if recipe.dense is not None:
        scales = network_scales(images, recipe.dense)
        with DenseStore(workspace.dense) as dense:
            remeasure(
                model,
                dense,
                radii={name: recipe.dense.radius * s for name, s in scales.items()},
            )
        model = refine_model(model, recipe.mapping)
    if recipe.refinement is not None:
        refine_keypoints(
            model,
            images,
            recipe.refinement,
            max_size=recipe.features.max_size,
            num_workers=recipe.engine.num_workers,
            progress=progress,
        )
        model = refine_model(model, recipe.mapping, robust=True)
    return model


def _map_inputs(workspace: Workspace, recipe: Recipe) -> list[object]:
    inputs: list[object] = [
        workspace.done("database"),
        recipe.mapping.model_dump(mode="json"),
        recipe.export.outliers.model_dump(mode="json"),
    ]
    if recipe.refinement is not None:
        inputs.append(recipe.refinement.model_dump(mode="json"))
    return inputs


def fill_from_stores(
    images: ImageSet,
    workspace: Workspace,
    recipe: Recipe,
    *,
    progress: Progress = silent,
) -> VerifiedPairs:
    """As `fill_database`, with the stores that earlier stages left.

    Raises:
        StoreError: an earlier stage was not run, or not to its end.
    """
    _expect(workspace.features.is_file(), workspace.features, "extract")
    pairs = read_pairs(images, workspace)
    features, matches = open_joined(images, workspace, recipe)
    with features, matches:
        _expect(
            recipe.dense is not None
            or all(
                pair in matches
                for pair in pairs
                if pair[0] in features and pair[1] in features
            ),
            workspace.matches,
            "match",
        )
        return fill_database(
            images, workspace, recipe, features, pairs, matches, progress=progress
        )


def open_matches(workspace: Workspace) -> MatchStore:
    """Opens the matches that `match` left, for reading.

    Raises:
        StoreError: there are none.
    """
    _expect(workspace.matches.is_file(), workspace.matches, "match")
    return MatchStore(workspace.matches)


def open_joined(
    images: ImageSet, workspace: Workspace, recipe: Recipe
) -> tuple[FeatureStore, MatchStore]:
    """Opens what goes into the database: with semi-dense matches where there are any.

    Raises:
        StoreError: an earlier stage was not run, or not to its end.
    """
    if recipe.dense is None:
        return open_features(images, workspace), open_matches(workspace)
    pairs = read_pairs(images, workspace)
    with (
        open_features(images, workspace) as features,
        open_matches(workspace) as matches,
    ):
        return open_semi_dense(
            *(images, workspace, recipe, recipe.dense, features, pairs, matches)
        )


def open_keypoints(
    images: ImageSet, workspace: Workspace, recipe: Recipe
) -> FeatureStore:
    """Opens the keypoints of the result, or of as much of it as there is.

    Raises:
        StoreError: not even features were extracted.
    """
    if recipe.dense is not None and workspace.done("join") is not None:
        return FeatureStore(workspace.joined_features)
    return open_features(images, workspace)


def read_database(workspace: Workspace, recipe: Recipe) -> VerifiedPairs:
    """Counts what the database stage left.

    Raises:
        StoreError: it was not run, or not to its end.
    """
    path = workspace.database(recipe)
    _expect(path.is_file() and workspace.done("database") is not None, path, "database")
    return read_verified(path)


def read_models(
    workspace: Workspace, recipe: Recipe | None = None
) -> list[pycolmap.Reconstruction]:
    """The models of an earlier run, largest first before outliers were set aside.

    Raises:
        ReconstructionError: there is none, or not of this recipe and this database.
    """
    numbered = [f for f in workspace.models.glob("*") if f.name.isdigit()]
    if not numbered or workspace.done("map") is None:
        raise ReconstructionError(
            f"{workspace.models} holds no model, or not all of them. Run `sfmprep map`."
        )
    if recipe and not workspace.is_done("map", _map_inputs(workspace, recipe)):
        raise ReconstructionError(
            f"{workspace.models} was made with other settings of mapping or"
            " export.outliers, or from another database. Run `sfmprep map`."
        )
    return [
        _read_model(folder)
        for folder in sorted(numbered, key=lambda folder: int(folder.name))
    ]


def read_result(path: Path) -> pycolmap.Reconstruction:
    """The largest model of an output folder, or the COLMAP model that `path` is.

    Raises:
        ReconstructionError: it is neither, or the model is damaged.
    """
    if (path / "work" / "models").is_dir():
        return read_models(Workspace(path))[0]
    for folder in (path, path / "sparse" / "0"):
        if any((folder / f"cameras.{kind}").is_file() for kind in ("bin", "txt")):
            return _read_model(folder)
    raise ReconstructionError(
        f"{path} is neither an output of sfmprep nor a COLMAP model (no cameras.bin)."
    )


def _read_model(folder: Path) -> pycolmap.Reconstruction:
    try:
        return pycolmap.Reconstruction(folder)
    except (ValueError, IndexError, RuntimeError, MemoryError) as error:
        raise ReconstructionError(
            f"{folder} holds a damaged COLMAP model ({error}). Make it again."
        ) from error


def _expect(is_there: bool, path: Path, stage: str) -> None:
    """Raises StoreError where what an earlier stage writes is missing or unfinished."""
    if not is_there:
        raise StoreError(
            f"{path} is missing or incomplete. Run `sfmprep {stage}` first."
        )
