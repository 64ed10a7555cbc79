"""What earlier stages left in an output folder, opened for reading."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NoReturn

import pycolmap

from sfmprep.errors import ConfigError, ReconstructionError, StoreError
from sfmprep.files import as_written, damaged
from sfmprep.geometry.uncertainty import PoseUncertainty
from sfmprep.mapping.models import read_model
from sfmprep.mapping.trust import consistency_of
from sfmprep.mapping.verify import VerifiedPairs, read_verified
from sfmprep.pairing.pairs import Pairs, pairs_from_file
from sfmprep.pipelines.ledger import expect_as_written
from sfmprep.pipelines.run import Run
from sfmprep.pipelines.stage_table import STAGES
from sfmprep.stores.layers import MatchLayers, MatchReader
from sfmprep.stores.tables import FeatureStore, MatchStore

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Poses:
    """What is known of the poses of a model, by image name."""

    # in the units of the model
    uncertainties: dict[str, PoseUncertainty] = field(default_factory=dict)
    # images that have no pose any more: reason
    outliers: dict[str, str] = field(default_factory=dict)
    # see `relative_sharpness`; of the largest model only
    sharpness: dict[str, float] = field(default_factory=dict)


def open_features(run: Run) -> FeatureStore:
    """Opens the features.

    Raises:
        StoreError: there are none, or those of other settings.
    """
    expect(run, "extract")
    features = FeatureStore(run.workspace.features)
    lacking = [name for name in run.images.names if name not in features]
    if not run.left_out.issuperset(lacking):
        run.left_out.update(lacking)
        logger.warning(
            "%d of %d images have no features, such as %s, and are left out. Run"
            " `sfmprep extract` if it was stopped.",
            len(lacking),
            len(run.images),
            lacking[0],
        )
    return features


def read_pairs(run: Run) -> Pairs:
    """Reads the pairs.

    Raises:
        StoreError: there are none.
        ConfigError: see `pairs_from_file`.
    """
    expect(run, "pairs")
    return pairs_from_file(run.workspace.pairs, run.images.names)


def open_matches(run: Run) -> MatchStore:
    """Opens the matches of the features.

    Raises:
        StoreError: there are none, or those of other settings.
    """
    expect(run, "match")
    return MatchStore(run.workspace.matches)


def open_joined(run: Run) -> tuple[FeatureStore, MatchReader]:
    """Opens what goes into the database: the matches of all rungs.

    Raises:
        StoreError: an earlier stage was not run, or not to its end.
    """
    if run.recipe.tracks is None:
        return open_described(run)
    expect_done(run, "join tracks")
    features, matches = open_described(run)
    with features:
        return join_tracks(run, features, matches)


def join_tracks(
    run: Run, features: FeatureStore, matches: MatchReader
) -> tuple[FeatureStore, MatchReader]:
    """Keypoints and matches with the points that were followed behind them."""
    starts = {name: features.num_keypoints(name) for name in features.names()}
    followed = MatchStore(run.workspace.track_matches)
    keypoints = FeatureStore(run.workspace.keypoints_tracked)
    return keypoints, MatchLayers(matches, followed, None, starts)


def open_described(run: Run) -> tuple[FeatureStore, MatchReader]:
    """As `open_joined`, without points that were followed by optical flow.

    Raises:
        StoreError: an earlier stage was not run, or not to its end.
    """
    if run.recipe.dense is None:
        features, matches = open_beside(run)
        if run.recipe.stronger is None:
            return features, matches
        expect_done(run, "match weak pairs")
        tried = pairs_as_written(run.ledger.file("weak pairs"), run.images.names)
        upper = MatchStore(run.workspace.stronger_matches)
        return features, MatchLayers(matches, upper, tried)
    expect_done(run, "join")
    workspace = run.workspace
    return FeatureStore(workspace.joined_features), MatchStore(workspace.joined_matches)


def open_beside(run: Run) -> tuple[FeatureStore, MatchReader]:
    """Opens what the first features, and others beside them, found.

    Raises:
        StoreError: an earlier stage was not run, or not to its end.
    """
    features, first = open_features(run), open_matches(run)
    if run.recipe.beside is None:
        return features, first
    expect_done(run, "match beside")
    expect_done(run, "join beside")
    pairs = pairs_as_written(run.ledger.file("pairs beside"), run.images.names)
    keypoints, joined = join_beside(run, features, first, pairs)
    if keypoints is not features:
        features.close()
    return keypoints, joined


def join_beside(
    run: Run, features: FeatureStore, matches: MatchReader, pairs: Pairs
) -> tuple[FeatureStore, MatchReader]:
    """Keypoints and matches of both kinds of features; those given where pairs lack."""
    if not len(pairs):
        return features, matches
    starts = {name: features.num_keypoints(name) for name in features.names()}
    second = MatchStore(run.workspace.matches_beside)
    keypoints = FeatureStore(run.workspace.keypoints_beside)
    return keypoints, MatchLayers(matches, second, pairs, starts)


def open_result(run: Run) -> tuple[FeatureStore, MatchReader]:
    """As `open_joined`, with what the second round and a closer look matched.

    Raises:
        StoreError: an earlier stage was not run, or not to its end.
    """
    features, matches = open_second(run)
    if not looked_closer(run):
        return features, matches
    pairs = pairs_as_written(run.workspace.closer_pairs, run.images.names)
    with features:
        return join_closer(run, features, matches, pairs)


def looked_closer(run: Run) -> bool:
    """Whether the result is made from what a closer look found too."""
    has_looked = run.ledger.keys.applies("map closer")
    is_done = has_looked and run.ledger.is_done("map closer")
    return is_done and run.workspace.closer_database.is_file()


def join_closer(
    run: Run, features: FeatureStore, matches: MatchReader, pairs: Pairs
) -> tuple[FeatureStore, MatchReader]:
    """Keypoints and matches with those of a closer look behind them."""
    starts = {name: features.num_keypoints(name) for name in features.names()}
    second = MatchStore(run.workspace.matches_closer)
    keypoints = FeatureStore(run.workspace.keypoints_closer)
    return keypoints, MatchLayers(matches, second, pairs, starts)


def open_second(run: Run) -> tuple[FeatureStore, MatchReader]:
    """As `open_joined`, with what the second round matched and pointmaps foresaw.

    Raises:
        StoreError: an earlier stage was not run, or not to its end.
    """
    features, matches = open_joined(run)
    if run.ledger.keys.applies("map on") and run.ledger.is_done("second pairs"):
        place, names = run.workspace, run.images.names
        if len(second := pairs_as_written(place.second_pairs, names)):
            matches = MatchLayers(matches, MatchStore(place.matches), second)
        if run.recipe.stronger is not None and len(second):
            lost = pairs_as_written(place.lost_pairs, names)
            matches = MatchLayers(matches, MatchStore(place.stronger_matches), lost)
    if run.ledger.keys.applies("match foreseen") and run.ledger.is_done(
        "match foreseen"
    ):
        matches = MatchLayers(matches, MatchStore(run.workspace.foreseen_matches))
    return features, matches


def pairs_as_written(path: Path, names: Sequence[str]) -> Pairs:
    """Reads pairs that a stage wrote, which nobody edits.

    Raises:
        StoreError: they are gone, or others.
    """
    try:
        return pairs_from_file(path, names)
    except ConfigError as error:
        raise damaged(path, error) from error


def result_database(run: Run) -> Path:
    """The database that the result was made from; it may be missing."""
    return run.workspace.closer_database if looked_closer(run) else below_closer(run)


def below_closer(run: Run) -> Path:
    """The database that a closer look begins with; it may be missing."""
    second = run.workspace.second_database
    has_second = run.ledger.keys.applies("map on") and run.ledger.is_done("map on")
    return second if has_second and second.is_file() else run.ledger.file("database")


def open_keypoints(run: Run) -> FeatureStore:
    """Opens the keypoints of the result, or of as much of it as there is.

    Raises:
        StoreError: not even features were extracted.
    """
    if looked_closer(run):
        return FeatureStore(run.workspace.keypoints_closer)
    return open_second_keypoints(run)


def open_second_keypoints(run: Run) -> FeatureStore:
    """As `open_keypoints`, without those of a closer look.

    Raises:
        StoreError: not even features were extracted.
    """
    if run.recipe.tracks is not None and run.ledger.is_done("join tracks"):
        return FeatureStore(run.workspace.keypoints_tracked)
    if run.recipe.dense is not None and run.ledger.is_done("join"):
        return FeatureStore(run.workspace.joined_features)
    if run.recipe.beside is not None and run.ledger.is_done("join beside"):
        keypoints = FeatureStore(run.workspace.keypoints_beside)
        if len(keypoints):
            return keypoints
        keypoints.close()
    return open_features(run)


def read_database(run: Run) -> VerifiedPairs:
    """Counts what the database holds.

    Raises:
        StoreError: the stage was not run, or not to its end.
    """
    expect_done(run, "database")
    return read_verified(run.ledger.file("database"))


def read_models(run: Run) -> list[pycolmap.Reconstruction]:
    """The models, largest first before outliers were set aside.

    Raises:
        StoreError: there is none, or not of this recipe and these images.
        ReconstructionError: one is damaged.
    """
    expect_done(run, "outliers")
    return models_in(run.workspace.models)


def models_in(folder: Path) -> list[pycolmap.Reconstruction]:
    """The models in the sub-folders 0, 1, ... of a folder.

    Raises:
        ReconstructionError: one is damaged.
    """
    numbered = (each for each in folder.iterdir() if each.name.isdigit())
    return [read_model(each) for each in sorted(numbered, key=lambda f: int(f.name))]


def mapped_last(run: Run) -> Path:
    """The archive of the models that the last stage of mapping made."""
    return run.ledger.file(run.ledger.keys.nearest("map closer"))


def pass_on(archive: Path, to: Path) -> None:
    """Copies models, with what they are worth, where a stage has nothing to add."""
    shutil.copyfile(consistency_of(archive), consistency_of(to))
    shutil.copyfile(archive, to)


def read_result(path: Path) -> pycolmap.Reconstruction:
    """The largest model of an output folder, or the COLMAP model that `path` is.

    Raises:
        ReconstructionError: it is neither, or the model is damaged.
        StoreError: a file of it is not what the run wrote.
    """
    for folder in (path / "work" / "models" / "0", path, path / "sparse" / "0"):
        if any((folder / f"cameras.{kind}").is_file() for kind in ("bin", "txt")):
            expect_as_written(folder, path)
            return read_model(folder)
    raise ReconstructionError(
        f"{path} is neither an output of sfmprep nor a COLMAP model (no cameras.bin)."
    )


def read_poses(run: Run, number: int = 0) -> Poses:
    """What is known of the poses of a model; nothing where there was no mapping.

    Raises:
        StoreError: the file is damaged.
    """
    path = run.workspace.poses
    if not path.is_file():
        return Poses()
    try:
        with as_written(path):
            found = json.loads(path.read_text("utf-8"))[number]
            return Poses(
                uncertainties={
                    name: PoseUncertainty(**values)
                    for name, values in found["uncertainties"].items()
                },
                outliers=dict(found["outliers"]),
                # an earlier version noted none
                sharpness=dict(found.get("sharpness", {})),
            )
    except StoreError as error:
        raise StoreError(
            f"{error} To have it made, delete {run.workspace.models} too."
        ) from error


def expect(run: Run, stage: str) -> None:
    """Raises StoreError where there is nothing of a stage that could go on."""
    if not run.ledger.can_grow(stage):
        refuse(run, stage)


def expect_done(run: Run, stage: str) -> None:
    """Raises StoreError where a stage is not complete."""
    if not run.ledger.is_done(stage):
        refuse(run, stage)


def refuse(run: Run, stage: str) -> NoReturn:
    """Raises StoreError: a stage, or one that it depends on, is not complete.

    It names the first of them, and the command to run.
    """
    ledger = run.ledger
    first = ledger.first_undone(stage) or stage
    run.expect_unedited(first)
    file, why = ledger.file(first), "; ".join(ledger.why(first))
    command = STAGES[first].command or first
    raise StoreError(
        f"{file} is out of date ({why}). Run `sfmprep {command}` first."
        if ledger.was_done(first) and why
        else f"{file} is missing or incomplete. Run `sfmprep {command}` first."
    )


def in_world(
    uncertainties: Mapping[str, PoseUncertainty], scale: float
) -> dict[str, PoseUncertainty]:
    """In units of the dataset, which are `scale` to one of the reconstruction."""
    return {
        name: replace(each, position_stddev=scale * each.position_stddev)
        for name, each in uncertainties.items()
    }
