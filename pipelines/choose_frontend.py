"""Which of a recipe's choices of features and matcher a run uses, and why."""

from __future__ import annotations

import logging
from pathlib import Path

from sfmprep.config import Frontend, Recipe
from sfmprep.config.base import ModelConfig
from sfmprep.errors import WeightsError
from sfmprep.weights import WEIGHTS, is_offline, resolve_weights, weights_here

logger = logging.getLogger(__name__)


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
            frontend = with_stronger(frontend)
            _report(frontend, list(lacking))
            return with_beside(recipe.with_frontend(frontend))
    raise next(iter(lacking.values()))


def with_stronger(frontend: Frontend) -> Frontend:
    """The choice, without its stronger matcher if the weights of that cannot be had.

    Raises:
        WeightsError: a file of weights is damaged.
    """
    if frontend.stronger is None:
        return frontend
    lacking: dict[str, WeightsError] = {}
    matcher = frontend.stronger.matcher
    needed = matcher.needed_weights()
    if all(_can_be_had(name, path, lacking) for name, path in needed):
        return frontend
    logger.info(
        "pairs that stay weak are not tried by %s: its weights are not here and %s",
        matcher.name,
        _barred(),
    )
    return frontend.model_copy(update={"stronger": None})


def with_beside(recipe: Recipe) -> Recipe:
    """The recipe, without features beside the first if their weights cannot be had.

    Raises:
        WeightsError: a file of weights is damaged.
    """
    if recipe.beside is None:
        return recipe
    lacking: dict[str, WeightsError] = {}
    needed = recipe.beside.needed_weights()
    if all(_can_be_had(name, path, lacking) for name, path in needed):
        return recipe
    logger.info(
        "images that stay badly held get no %s: its weights are not here and %s",
        *(recipe.beside.features.name, _barred()),
    )
    return recipe.model_copy(update={"beside": None})


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
