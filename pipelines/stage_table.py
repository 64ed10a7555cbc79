"""Which stage depends on what: the one table, from which `stage_keys.py` derives keys.

    key(stage)    checksum of its version, its settings and what it reads
    state(stage)  what its artefact holds when it is complete

A stage that grows (features, matches, verified pairs) keeps what it has and adds what
is missing, so its key does not tell which images or pairs there are: one photograph
more leaves the keys of `extract` and `match` as they are, and changes their states.
Every other stage is made anew when what it reads changes, and its state is its key.

A stage that the recipe leaves out passes on what it reads first, or what its row names.
Settings hold identities, never paths or times: weights, photographs and masks by their
content. So a folder that was copied or moved goes on.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from sfmprep.config import (
    AutoPairsConfig,
    BesideConfig,
    DenseConfig,
    DroidConfig,
    PairsFileConfig,
    Recipe,
    StrongerConfig,
)
from sfmprep.config.base import ModelConfig
from sfmprep.errors import ConfigError
from sfmprep.known_poses.read import poses_sha256

IMAGES = "images"  # not a stage: the photographs and masks as they are now
FILMS = "films, RAW files and panoramas"  # nor these: as they are now
RIGS = "rigs"  # nor these: of cameras that were fixed to each other


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One row of the table."""

    name: str
    version: int  # raised by hand when the numbers change
    reads: tuple[str, ...] = ()  # stages
    passes_on: str = ""  # which one, if it is left out; the first that it reads if none
    over: tuple[str, ...] = ()  # of one that grows: what it has an entry for each of
    grows: bool = False
    writes: str  # below the output folder
    beside: tuple[str, ...] = ()  # what it writes too, and no other stage does
    is_text: bool = False  # of a kind that people edit
    is_open: bool = False  # what users change in its files is no damage
    is_bounded: bool = False  # it leaves out what `budget_minutes` has no time for
    command: str = ""  # of the command line, where it is not called as the stage
    # the part of the recipe that it depends on, and the network that it runs
    settings: Callable[[Recipe], Any] = field(default=lambda _: None)
    model: Callable[[Recipe], ModelConfig | None] = field(default=lambda _: None)
    applies: Callable[[Recipe], bool] = field(default=lambda _: True)
    up_to: Callable[[Recipe], int] = field(default=lambda _: 0)  # images: idle


def _dump(config: Any) -> Any:
    return None if config is None else config.model_dump(mode="json")


def maps(recipe: Recipe) -> bool:
    """Whether poses are looked for here."""
    return recipe.mapping.type != "none"


def _is_dense(recipe: Recipe) -> bool:
    return recipe.dense is not None


def _has_beside(recipe: Recipe) -> bool:
    return recipe.beside is not None


def _looks_for_weak_pairs(recipe: Recipe) -> bool:
    has_rungs = recipe.beside is not None or recipe.stronger is not None
    return has_rungs or _tries_weak_pairs_densely(recipe)


def _tries_weak_pairs_densely(recipe: Recipe) -> bool:
    return recipe.dense is not None and recipe.dense.pairs == "weak"


def _has_tracks(recipe: Recipe) -> bool:
    return recipe.tracks is not None


def _has_second_round(recipe: Recipe) -> bool:
    return maps(recipe) and recipe.second_round is not None


def _foresees(recipe: Recipe) -> bool:
    return maps(recipe) and recipe.foresee is not None


def _looks_closer(recipe: Recipe) -> bool:
    return maps(recipe) and recipe.closer is not None


def _verification(recipe: Recipe) -> dict[str, Any]:
    return {"database": _dump(recipe.database), "seed": recipe.seed}


def _weakness(
    config: BesideConfig | StrongerConfig | DenseConfig | None,
) -> dict[str, object]:
    if config is None:
        return {}
    return {
        "min_num_inliers": config.min_num_inliers,
        "per_image": config.per_image,
    }


def _pairs_settings(recipe: Recipe) -> object:
    config = recipe.pairs
    if not isinstance(config, PairsFileConfig):
        given = _known_poses(recipe) if isinstance(config, AutoPairsConfig) else {}
        # the network is the setting of a stage of its own
        found = config.model_dump(
            mode="json", exclude={"model": True, "retrieval": {"model"}}
        )
        return {**found, "seed": recipe.seed, **given}
    try:
        content = config.path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"pairs.path: {config.path} cannot be read ({error.strerror}). Give a text"
            " file with one pair of names a line."
        ) from error
    return {"type": "file", "sha256": hashlib.sha256(content).hexdigest()}


def _known_poses(recipe: Recipe) -> dict[str, Any]:
    """Given poses by their content; nothing where there are none."""
    config = recipe.known_poses
    if config is None:
        return {}
    sha256 = poses_sha256(config.path)
    return {"known_poses": {**_dump(config), "path": None, "sha256": sha256}}


def _damage_settings(recipe: Recipe) -> dict[str, object]:
    """Nothing where it changes nothing: stores without it stay what they are."""
    return {"keep_damaged": True} if recipe.keep_damaged else {}


def _track_settings(recipe: Recipe) -> dict[str, object] | None:
    if recipe.tracks is None:
        return None
    by_droid = isinstance(recipe.tracks.flow, DroidConfig)  # of which a start has more
    left_out = {"flow"} if by_droid else {"flow", "start"}
    return {
        **recipe.tracks.model_dump(mode="json", exclude=left_out),
        "focal_length": recipe.database.focal_length,  # points are judged by it
    }


STAGES = {
    stage.name: stage
    for stage in (
        Stage(
            name="develop",
            version=1,
            over=(FILMS,),
            grows=True,
            writes="work/developed",
            is_open=True,
            command="reconstruct",
            settings=lambda r: {
                "film": r.film.model_dump(mode="json", exclude={"flow"}),
                "panorama": _dump(r.panorama),
            },
            model=lambda r: r.film.flow,
        ),
        Stage(
            name="motion masks",
            version=1,
            reads=(IMAGES,),  # with the masks that were given
            writes="work/motion_masks",
            is_open=True,
            command="reconstruct",
            settings=lambda r: (
                r.motion_masks
                and r.motion_masks.model_dump(mode="json", exclude={"flow"})
            ),
            model=lambda r: r.motion_masks.flow if r.motion_masks else None,
            applies=lambda r: r.motion_masks is not None,
        ),
        Stage(
            name="extract",
            version=1,
            over=(IMAGES,),
            grows=True,
            writes="work/features.h5",
            settings=_damage_settings,
            model=lambda r: r.features,
        ),
        Stage(
            name="describe",
            version=1,
            passes_on="extract",
            over=(IMAGES,),
            grows=True,
            writes="work/rows.h5",
            command="pairs",
            settings=_damage_settings,
            model=lambda r: r.retriever,
            applies=lambda r: r.retriever is not None,
            up_to=lambda r: (
                r.pairs.exhaustive_up_to if isinstance(r.pairs, AutoPairsConfig) else 0
            ),
        ),
        Stage(
            name="pairs",
            version=1,
            reads=("extract", "describe"),
            writes="work/pairs.txt",
            is_text=True,
            settings=_pairs_settings,
        ),
        Stage(
            name="match",
            version=1,
            reads=("extract",),
            over=("pairs",),
            grows=True,
            writes="work/matches.h5",
            model=lambda r: r.matcher,
        ),
        Stage(
            name="verify",
            version=2,
            reads=("match",),
            grows=True,
            writes="work/verified.db",
            command="match",
            settings=_verification,
            applies=_looks_for_weak_pairs,
        ),
        Stage(
            name="pairs beside",
            version=1,
            reads=("verify",),
            writes="work/pairs_beside.txt",
            is_text=True,
            command="match",
            is_bounded=True,
            settings=lambda r: _weakness(r.beside),
            applies=_has_beside,
        ),
        Stage(
            name="extract beside",
            version=1,
            over=("pairs beside", IMAGES),
            grows=True,
            writes="work/features_beside.h5",
            command="match",
            settings=_damage_settings,
            model=lambda r: r.beside.features if r.beside else None,
            applies=_has_beside,
        ),
        Stage(
            name="match beside",
            version=1,
            reads=("extract beside",),
            passes_on="match",
            over=("pairs beside",),
            grows=True,
            writes="work/matches_beside.h5",
            command="match",
            model=lambda r: r.beside.matcher if r.beside else None,
            applies=_has_beside,
        ),
        Stage(
            name="join beside",
            version=1,
            reads=("extract", "extract beside"),
            writes="work/keypoints_beside.h5",
            command="match",
            applies=_has_beside,
        ),
        Stage(
            name="verify beside",
            version=2,
            reads=("match beside", "extract"),
            passes_on="verify",
            grows=True,
            writes="work/verified_beside.db",
            command="match",
            settings=_verification,
            applies=lambda r: (
                _has_beside(r)
                and (r.stronger is not None or _tries_weak_pairs_densely(r))
            ),
        ),
        Stage(
            name="weak pairs",
            version=1,
            reads=("verify beside",),
            writes="work/weak_pairs.txt",
            is_text=True,
            command="match",
            is_bounded=True,
            settings=lambda r: _weakness(r.stronger),
            applies=lambda r: r.stronger is not None,
        ),
        Stage(
            name="match weak pairs",
            version=1,
            reads=("extract",),
            passes_on="match beside",
            over=("weak pairs",),
            grows=True,
            writes="work/stronger_matches.h5",
            command="match",
            model=lambda r: r.stronger.matcher if r.stronger else None,
            applies=lambda r: r.stronger is not None,
        ),
        Stage(
            name="verify again",
            version=2,
            reads=("match weak pairs",),
            passes_on="verify beside",
            grows=True,
            writes="work/verified_again.db",
            command="match",
            settings=_verification,
            applies=lambda r: r.stronger is not None and _tries_weak_pairs_densely(r),
        ),
        Stage(
            name="pairs left",
            version=1,
            reads=("verify again",),
            writes="work/pairs_left.txt",
            is_text=True,
            command="match",
            is_bounded=True,
            settings=lambda r: {
                "pairs": r.dense and r.dense.pairs,
                **_weakness(r.dense),
            },
            applies=_is_dense,
        ),
        Stage(
            name="match semi-densely",
            version=1,
            over=("pairs left", IMAGES),
            grows=True,
            writes="work/dense.h5",
            command="match",
            settings=_damage_settings,
            model=lambda r: r.dense.matcher if r.dense else None,
            applies=_is_dense,
        ),
        Stage(
            name="join",
            version=1,
            reads=("match weak pairs", "join beside", "match semi-densely"),
            writes="work/joined_matches.h5",
            command="match",
            settings=lambda r: {
                "radius": r.dense and r.dense.radius,
                "max_keypoints": r.dense and r.dense.max_keypoints,
                "seed": r.seed,
            },
            applies=_is_dense,
        ),
        Stage(
            name="track",
            version=3,
            reads=(IMAGES, "pairs"),
            passes_on="pairs",
            writes="work/track_matches.h5",
            beside=("work/film_poses.csv", "work/film_focals.json"),
            command="match",
            settings=_track_settings,
            model=lambda r: r.tracks.flow if r.tracks else None,
            applies=_has_tracks,
        ),
        Stage(
            name="join tracks",
            version=1,
            reads=("join", "join beside", "track"),
            writes="work/keypoints_tracked.h5",
            command="match",
            applies=_has_tracks,
        ),
        Stage(
            name="database",
            version=2,
            reads=("join tracks",),
            grows=True,
            writes="work/database.db",
            settings=lambda r: {
                **_verification(r),
                "is_result": not maps(r),  # it lies in another place then
            },
        ),
        Stage(
            name="map",
            version=4,
            reads=("database",),
            writes="work/mapped.zip",
            beside=("work/pose_changes.json",),
            settings=lambda r: {
                "mapping": _dump(r.mapping),
                "seed": r.seed,
                **({"start": r.tracks.start} if r.tracks else {}),
                **_known_poses(r),
            },
            is_bounded=True,
            applies=maps,
        ),
        Stage(
            name="second pairs",
            version=1,
            reads=("map",),
            writes="work/second_pairs.txt",
            beside=("work/lost_pairs.txt",),
            is_text=True,
            command="map",
            is_bounded=True,
            settings=lambda r: (
                {
                    **r.second_round.model_dump(mode="json", exclude={"foresee"}),
                    # who is in no model is left to it
                    **({"has_closer": True} if r.closer else {}),
                }
                if r.second_round
                else {}
            ),
            applies=_has_second_round,
        ),
        Stage(
            name="pairs to foresee",
            version=1,
            reads=("map",),
            writes="work/foresee.txt",
            is_text=True,
            command="map",
            is_bounded=True,
            settings=lambda r: {"per_image": r.foresee and r.foresee.per_image},
            applies=_foresees,
        ),
        Stage(
            name="foresee",
            version=1,
            reads=("pairs to foresee", "map"),
            writes="work/foreseen.jsonl",
            command="map",
            settings=lambda r: {"seed": r.seed},
            model=lambda r: r.foresee.network if r.foresee else None,
            applies=_foresees,
        ),
        Stage(
            name="match foreseen",
            version=1,
            reads=("foresee", "map"),
            writes="work/foreseen_matches.h5",
            command="map",
            settings=_verification,
            applies=_foresees,
        ),
        Stage(
            name="map on",
            version=1,
            reads=("map", "second pairs", "match foreseen"),
            writes="work/mapped_on.zip",
            beside=("work/second.db",),
            command="map",
            applies=_has_second_round,
        ),
        Stage(
            name="closer pairs",
            version=1,
            reads=("map on",),
            writes="work/closer_pairs.txt",
            is_text=True,
            command="map",
            is_bounded=True,
            settings=lambda r: {
                "per_image": r.closer and r.closer.per_image,
                "max_pairs": r.closer and r.closer.max_pairs,
            },
            applies=_looks_closer,
        ),
        Stage(
            name="extract closer",
            version=1,
            reads=("map on",),  # which says who is lost and by what it is turned
            over=("closer pairs", IMAGES),
            grows=True,
            writes="work/features_closer.h5",
            command="map",
            settings=_damage_settings,
            model=lambda r: r.closer.features if r.closer else None,
            applies=_looks_closer,
        ),
        Stage(
            name="match closer",
            version=1,
            reads=("extract closer",),
            over=("closer pairs",),
            grows=True,
            writes="work/matches_closer.h5",
            command="map",
            model=lambda r: r.closer.matcher if r.closer else None,
            applies=_looks_closer,
        ),
        Stage(
            name="join closer",
            version=1,
            reads=("database", "extract closer"),
            writes="work/keypoints_closer.h5",
            command="map",
            applies=_looks_closer,
        ),
        Stage(
            name="map closer",
            version=1,
            reads=("map on", "match closer"),
            writes="work/mapped_closer.zip",
            beside=("work/closer.db",),
            command="map",
            applies=_looks_closer,
        ),
        Stage(
            name="refine",
            version=1,
            reads=("map closer",),
            writes="work/refined.zip",
            command="map",
            settings=lambda r: {
                "refinement": _dump(r.refinement),
                "radius": r.dense and r.dense.radius,
            },
            applies=lambda r: (
                maps(r) and (r.dense is not None or r.refinement is not None)
            ),
        ),
        Stage(
            name="hold rigs",
            version=1,
            reads=("refine", RIGS),
            writes="work/held.zip",
            command="map",
            applies=maps,
        ),
        Stage(
            name="outliers",
            version=2,
            reads=("hold rigs",),
            writes="work/models",
            beside=("work/poses.json",),
            command="map",
            settings=lambda r: _dump(r.export.outliers),
            applies=maps,
        ),
        Stage(
            name="depths",
            version=1,
            reads=("outliers",),
            writes="work/depths",
            command="export",
            model=lambda r: r.export.seed.pointmaps,
            applies=lambda r: maps(r) and r.export.seed.pointmaps is not None,
        ),
        Stage(
            name="export",
            version=2,
            reads=("depths",),
            writes="dataset.json",
            is_open=True,
            settings=lambda r: r.export.model_dump(
                mode="json", exclude={"outliers": True, "seed": {"pointmaps"}}
            ),
            applies=maps,
        ),
    )
}
