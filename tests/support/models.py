"""Every model that a recipe can name."""

from __future__ import annotations

from typing import get_args

from sfmprep.config import (
    DenseMatcherConfig,
    DepthAnythingConfig,
    FeaturesConfig,
    FlowConfig,
    MatcherConfig,
    RetrieverConfig,
)
from sfmprep.config.base import ModelConfig, configs_in

UNIONS = {
    "features": FeaturesConfig,
    "matcher": MatcherConfig,
    "without a detector": DenseMatcherConfig,
    "retrieval": RetrieverConfig,
    "flow": FlowConfig,
    "pointmaps alone": DepthAnythingConfig,
}
MODELS: list[type[ModelConfig]] = [
    model
    for union in UNIONS.values()
    for model in configs_in(union)
    if issubclass(model, ModelConfig)
]


def every_checkpoint(model: type[ModelConfig]) -> list[ModelConfig]:
    """One configuration of each checkpoint."""
    if "model" not in model.model_fields:
        return [model()]
    names = get_args(model.model_fields["model"].annotation)
    return [model(model=name) for name in names]
