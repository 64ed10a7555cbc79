"""Networks and classical operators behind the protocols of `protocols.py`.

What makes a model stands in its configuration, as `implementation`: the module there is
imported only here, when the model is wanted, so that a recipe can be read, and another
model run, without it. Naming it there and not in a `match` here lets a new model be
two places, its configuration and its file; that every name leads to a class of the
right kind is a test.
"""

from __future__ import annotations

import importlib
from typing import Any, Unpack

from sfmprep.config import (
    DenseMatcherConfig,
    FeaturesConfig,
    FlowConfig,
    MakesPointmapsConfig,
    MatcherConfig,
    RetrieverConfig,
)
from sfmprep.config.base import ModelConfig
from sfmprep.models.protocols import (
    DenseMatcher,
    Extractor,
    FlowEstimator,
    MakesPointmaps,
    Matcher,
    Retriever,
)
from sfmprep.models.shared.precision import Where


def build_extractor(config: FeaturesConfig, **where: Unpack[Where]) -> Extractor:
    """Makes the extractor that a configuration names.

    Raises:
        ConfigError: half precision without a CUDA device.
        WeightsError: its weights are missing, cannot be had, are damaged or do not fit.
    """
    made: Extractor = implementation(type(config))(config, **where)
    return made


def build_matcher(config: MatcherConfig, **where: Unpack[Where]) -> Matcher:
    """Makes the matcher that a configuration names; raises as `build_extractor`."""
    made: Matcher = implementation(type(config))(config, **where)
    return made


def build_dense_matcher(
    config: DenseMatcherConfig, **where: Unpack[Where]
) -> DenseMatcher:
    """Makes the matcher without a detector; raises as `build_extractor`."""
    made: DenseMatcher = implementation(type(config))(config, **where)
    return made


def build_pointmaps(
    config: MakesPointmapsConfig, **where: Unpack[Where]
) -> MakesPointmaps:
    """Makes the network that gives pointmaps; raises as `build_extractor`."""
    made: MakesPointmaps = implementation(type(config))(config, **where)
    return made


def build_flow_estimator(config: FlowConfig, **where: Unpack[Where]) -> FlowEstimator:
    """Makes the estimator of optical flow; raises as `build_extractor`."""
    made: FlowEstimator = implementation(type(config))(config, **where)
    return made


def build_retriever(config: RetrieverConfig, **where: Unpack[Where]) -> Retriever:
    """Makes what describes whole images; raises as `build_extractor`."""
    made: Retriever = implementation(type(config))(config, **where)
    return made


def implementation(model: type[ModelConfig]) -> Any:
    """The class behind the configurations of one model."""
    module, _, name = model.implementation.partition(":")
    return getattr(importlib.import_module(module), name)
