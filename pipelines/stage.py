"""What a stage is, and which part of a recipe it depends on: for `stage_table.py`."""

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


def dump(config: Any) -> Any:
    """A part of a recipe as JSON can hold it; None where there is none."""
    return None if config is None else config.model_dump(mode="json")


def maps(recipe: Recipe) -> bool:
    """Whether poses are looked for here."""
    return recipe.mapping.type != "none"


def is_dense(recipe: Recipe) -> bool:
    """Whether something matches without a detector."""
    return recipe.dense is not None


def has_beside(recipe: Recipe) -> bool:
    """Whether images that are badly held get other features."""
    return recipe.beside is not None


def looks_for_weak_pairs(recipe: Recipe) -> bool:
    """Whether a rung tries pairs that stay weak."""
    has_rungs = recipe.beside is not None or recipe.stronger is not None
    return has_rungs or tries_weak_pairs_densely(recipe)


def tries_weak_pairs_densely(recipe: Recipe) -> bool:
    """Whether what matches without a detector tries these alone."""
    return recipe.dense is not None and recipe.dense.pairs == "weak"


def has_tracks(recipe: Recipe) -> bool:
    """Whether points are followed by optical flow."""
    return recipe.tracks is not None


def has_second_round(recipe: Recipe) -> bool:
    """Whether what models propose is matched."""
    return maps(recipe) and recipe.second_round is not None


def foresees(recipe: Recipe) -> bool:
    """Whether images without a pose are looked for by pointmaps."""
    return maps(recipe) and recipe.foresee is not None


def looks_closer(recipe: Recipe) -> bool:
    """Whether images that no model holds are looked at closer."""
    return maps(recipe) and recipe.closer is not None


def verification(recipe: Recipe) -> dict[str, Any]:
    """What verified pairs depend on."""
    return {"database": dump(recipe.database), "seed": recipe.seed}


def weakness(
    config: BesideConfig | StrongerConfig | DenseConfig | None,
) -> dict[str, object]:
    """Which pairs a rung takes for weak."""
    if config is None:
        return {}
    return {
        "min_num_inliers": config.min_num_inliers,
        "per_image": config.per_image,
    }


def pairs_settings(recipe: Recipe) -> object:
    """What pairs depend on; of a file its content."""
    config = recipe.pairs
    if not isinstance(config, PairsFileConfig):
        given = known_poses(recipe) if isinstance(config, AutoPairsConfig) else {}
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


def known_poses(recipe: Recipe) -> dict[str, Any]:
    """Given poses by their content; nothing where there are none."""
    config = recipe.known_poses
    if config is None:
        return {}
    sha256 = poses_sha256(config.path)
    return {"known_poses": {**dump(config), "path": None, "sha256": sha256}}


def damage_settings(recipe: Recipe) -> dict[str, object]:
    """Nothing where it changes nothing: stores without it stay what they are."""
    return {"keep_damaged": True} if recipe.keep_damaged else {}


def track_settings(recipe: Recipe) -> dict[str, object] | None:
    """What followed points depend on."""
    if recipe.tracks is None:
        return None
    by_droid = isinstance(recipe.tracks.flow, DroidConfig)  # of which a start has more
    left_out = {"flow"} if by_droid else {"flow", "start"}
    return {
        **recipe.tracks.model_dump(mode="json", exclude=left_out),
        "focal_length": recipe.database.focal_length,  # points are judged by it
    }
