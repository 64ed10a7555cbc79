"""What the results of a model depend on, without making the model."""

from __future__ import annotations

from sfmprep.config.base import ModelConfig
from sfmprep.models.shared.precision import Precision, use_half
from sfmprep.weights import ResolvedWeights, resolve_weights


def identity(
    config: ModelConfig, *, precision: Precision = "auto", device: str = "cpu"
) -> dict[str, object]:
    """What the results of the model that `config` names depend on, as JSON can hold it.

    Neither torch is imported nor a network built; weights that are not here are
    fetched. What a built model has as its `identity` is equal.

    Args:
        config: Of features, a matcher or a dense matcher.
        precision: As the recipe's `engine.precision`.
        device: One or several, as torch names them, which "auto" depends on.

    Returns:
        `config`: type and settings, without paths; `version`: of the code, see
        `ModelConfig.version`; `weights_sha256`: of the file in use, None for a
        classical operator; `precision`: "half" or "float32", only where the model can
        be run in both.

    Raises:
        ConfigError: half precision without a CUDA device.
        WeightsError: the weights are missing, cannot be had, or are damaged.
    """
    half = use_half(precision, device)
    weights = [resolve_weights(*needed) for needed in config.needed_weights()]
    return identity_with(config, weights[0] if weights else None, half=half)


def identity_with(
    config: ModelConfig, weights: ResolvedWeights | None, *, half: bool
) -> dict[str, object]:
    """The same for weights that were found already."""
    made: dict[str, object] = {
        "config": config.model_dump(mode="json", exclude={"weights"}),
        "version": config.version,
        "weights_sha256": weights.sha256 if weights else None,
    }
    if config.has_half:
        made["precision"] = "half" if half else "float32"
    return made
