"""Keys and states of stages, which tell whether one has to run again.

See `stage_table.py` for what they mean.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from sfmprep.config import (
    Recipe,
)
from sfmprep.models.identity import identity_with
from sfmprep.pipelines.stage import FILMS, IMAGES, RIGS, Stage, maps
from sfmprep.pipelines.stage_table import STAGES
from sfmprep.weights import weights_here

SHORT_OF = "short_of_minutes"  # a setting that is recorded, but in no recipe


class Keys:
    """Keys and states of all stages for one recipe and one set of photographs.

    Args:
        recipe: With one choice of features and matcher.
        images: Checksum of the content of each photograph and its mask, by name.
        recorded: The settings that stages were done with, by stage. They count for a
            network whose weights are not on this machine, if all else is equal.
        films: Checksum of the content of each film, RAW file and panorama, by name.
        rigs: Those of the capture, as COLMAP's `rig_config.json` has them.
    """

    def __init__(
        self,
        recipe: Recipe,
        images: Mapping[str, str],
        recorded: Mapping[str, Any],
        films: Mapping[str, str] = MappingProxyType({}),
        rigs: Sequence[object] = (),
    ) -> None:
        self.recipe = recipe
        self.images = images
        self.films = films
        self.rigs = rigs
        self._recorded = dict(recorded)
        self._forget()

    def _forget(self) -> None:
        self.key = cache(self._key)
        self.state = cache(self._state)
        self.settings = cache(self._settings)

    def note_budget(self, name: str, *, was_short: bool) -> None:
        """Takes the budget into the settings of a stage that it left something out of.

        Only there it counts: where there was time for everything, another budget
        changes nothing.
        """
        short_of = self.recipe.budget_minutes if was_short else None
        self._recorded[name] = {SHORT_OF: short_of}
        self._forget()

    def applies(self, name: str) -> bool:
        """Whether the recipe has this stage, and the capture what it works on."""
        stage = STAGES[name]
        is_idle = (FILMS in stage.over and not self.films) or (
            RIGS in stage.reads and not self.rigs
        )
        is_idle |= 0 < len(self.images) <= stage.up_to(self.recipe)
        return stage.applies(self.recipe) and not is_idle

    def nearest(self, name: str) -> str:
        """The stage whose artefact is read for this one: one left out passes it on."""
        while not self.applies(name):
            name = passes_on(STAGES[name])
        return name

    def reads(self, name: str) -> dict[str, str]:
        """The checksum of everything that a stage's key depends on, by its name."""
        stage = STAGES[name]
        of = self.key if stage.grows else self.state
        return {other: of(other) for other in stage.reads}

    def _settings(self, name: str) -> Any:
        stage = STAGES[name]
        model, others = stage.model(self.recipe), stage.settings(self.recipe)
        if stage.is_bounded:
            others = {**others, **self._short_of(name)}
        if model is None:
            return _as_json(others)
        here = [weights_here(*needed) for needed in model.needed_weights()]
        weights = here[0] if here else None
        made = _as_json(identity_with(model, weights, half=False) | (others or {}))
        # as the recipe asks for it, not as this machine's devices can do it: what was
        # extracted on a GPU goes on on a laptop
        if model.has_half:
            made["precision"] = self.recipe.engine.precision
        then = self._recorded.get(name) or {}
        unknown = {"weights_sha256": then.get("weights_sha256")}
        if here and weights is None and then == made | unknown:
            return then
        return made

    def _short_of(self, name: str) -> dict[str, float]:
        """The budget that left something out, if today's is no larger."""
        then = (self._recorded.get(name) or {}).get(SHORT_OF)
        now = self.recipe.budget_minutes
        if then is None or now is None or now > then:
            return {}
        return {SHORT_OF: then}

    def _key(self, name: str) -> str:
        stage = STAGES[name]
        if not self.applies(name):
            return self.key(passes_on(stage))
        return checksum([name, stage.version, self.settings(name), self.reads(name)])

    def _state(self, name: str) -> str:
        if name == IMAGES:
            return checksum(dict(self.images))
        if name == FILMS:
            return checksum(dict(self.films))
        if name == RIGS:
            return checksum(list(self.rigs))
        stage = STAGES[name]
        if not self.applies(name):
            return self.state(passes_on(stage))
        if not stage.grows:
            return self.key(name)
        covered = {other: self.state(other) for other in (*stage.reads, *stage.over)}
        return checksum([self.key(name), covered])


def passes_on(stage: Stage) -> str:
    """Whose artefact takes the place of one that the recipe leaves out."""
    return stage.passes_on or stage.reads[0]


def _as_json(settings: object) -> Any:
    return json.loads(json.dumps(settings))


def checksum(content: object) -> str:
    """Of anything that JSON can hold, whatever the order of keys."""
    text = json.dumps(content, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def file_of(name: str, out: Path, recipe: Recipe) -> Path:
    """Where the artefact of a stage lies."""
    if name == "database" and not maps(recipe):
        return out / "database.db"  # in plain sight, where it is the result
    return out / STAGES[name].writes
