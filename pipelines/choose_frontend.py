"""Which of a recipe's choices of features and matcher a run uses, and why."""

from __future__ import annotations

import logging
from collections.abc import Collection
from pathlib import Path

from sfmprep.config import Frontend, Recipe, Rung
from sfmprep.config.base import ModelConfig
from sfmprep.errors import WeightsError
from sfmprep.weights import WEIGHTS, is_offline, resolve_weights, weights_here

logger = logging.getLogger(__name__)

_LEFT_OUT = {  # what is said where a rung is; None for an error
    "stronger": "pairs that stay weak are not tried by %s",
    "beside": "images that stay badly held get no %s",
    "dense": None,  # who names it wants it
    "closer": "images that no model holds are not looked at again by %s",
}


def choose_frontend(recipe: Recipe) -> Recipe:
    """Returns the recipe with the first choice whose weights are here or can be had.

    What was chosen, and why nothing better, is logged in one line.

    Raises:
        WeightsError: no choice can be used, or a file of weights is damaged.
    """
    lacking: dict[str, WeightsError] = {}
    for frontend in recipe.frontends:
        if all(
            _can_be_had(name, path, lacking) for name, path in frontend.needed_weights()
        ):
            chosen = rungs_to_be_had(recipe.with_frontend(frontend), told=lacking)
            _report(chosen.frontends[0], list(lacking))
            return chosen
    raise next(iter(lacking.values()))


def rungs_to_be_had(
    recipe: Recipe,
    *,
    earlier: Recipe | None = None,
    used: Collection[str] = (),
    told: Collection[str] = (),
) -> Recipe:
    """The recipe with one choice of each rung; rungs without weights are left out.

    What is not the first choice is logged, unless it is that of the earlier run. What
    only follows mapping is left as it is where nothing is mapped.

    Args:
        recipe: With one choice of features and matcher.
        earlier: What an earlier run in the same folder was done with.
        used: The rungs of it that have stores. Their choice stays if the recipe still
            has it.
        told: Weights of which it is told anyway that they cannot be had.

    Raises:
        WeightsError: a file of weights is damaged, or those of semi-dense matching
            cannot be had.
    """
    made: dict[str, Rung | None] = {}
    for key, said in _LEFT_OUT.items():
        rung: Rung | None = getattr(recipe, key)
        if rung is None or (key == "closer" and recipe.mapping.type == "none"):
            continue
        before: Rung | None = getattr(earlier, key, None)
        stays = key in used and before in rung.choices()
        made[key] = before if stays else _choice_of(rung, key, said, before, told)
    return recipe.model_copy(update=made)


def _choice_of(
    rung: Rung,
    key: str,
    said: str | None,
    before: Rung | None,
    told: Collection[str],
) -> Rung | None:
    """The first choice of a rung whose weights can be had; says so if no or another."""
    lacking: dict[str, WeightsError] = {}
    choices = rung.choices()
    for choice in choices:
        needed = choice.needed_weights()
        if all(_can_be_had(name, path, lacking) for name, path in needed):
            if choice != before and not lacking.keys() <= set(told):
                logger.info(
                    "%s: %s, because the weights of %s are not here and %s",
                    *(key, choice.name, ", ".join(lacking), _barred()),
                )
            return choice
    if said is None:
        raise next(iter(lacking.values()))
    names = " or ".join(choice.name for choice in choices)
    whose = "its" if len(choices) == 1 else "their"
    logger.info("%s: %s weights are not here and %s", said % names, whose, _barred())
    return None


def fetch_weights(*models: ModelConfig | None) -> None:
    """Fetches those of retrieval, flow and the like: a lack is told before work.

    Raises:
        WeightsError: they cannot be had.
    """
    for model in models:
        for name, path in model.needed_weights() if model else ():
            resolve_weights(name, path)


def has_weights(frontend: Frontend) -> bool:
    """Whether all weights of a choice are on this machine."""
    return all(weights_here(name, path) for name, path in frontend.needed_weights())


def _can_be_had(name: str, path: Path | None, lacking: dict[str, WeightsError]) -> bool:
    """Whether weights are here now; one download that failed is not tried again."""
    if name in lacking:
        return False
    if weights_here(name, path):
        return True
    try:
        resolve_weights(name, path)
    except WeightsError as error:
        lacking[name] = error
        return False
    return True


def _barred() -> str:
    return "SFMPREP_OFFLINE is set" if is_offline() else "cannot be fetched"


def _report(frontend: Frontend, lacking: list[str]) -> None:
    licences = sorted({WEIGHTS[name].licence for name, _ in frontend.all_weights()})
    why = ""
    if lacking:
        names = ", ".join(lacking)
        why = f", because the weights of {names} are not here and {_barred()}"
    logger.info(
        "features: %s (%s)%s",
        frontend.ladder_label(),
        f"weights: {', '.join(licences)}" if licences else "no weights",
        why,
    )
