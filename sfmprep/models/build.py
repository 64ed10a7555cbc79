"""Networks and classical operators behind the protocols of `protocols.py`.

What makes a model stands in its configuration, as `implementation`: the module there is
imported only here, when the model is wanted, so that a recipe can be read, and another
model run, without it. Naming it there and not in a `match` here lets a new model be
two places, its configuration and its file; that every name leads to a class of the
right kind is a test.
"""

from __future__ import annotations

import importlib
from typing import Any

from sfmprep.config import DenseMatcherConfig, FeaturesConfig, MatcherConfig
from sfmprep.config.base import ModelConfig
from sfmprep.models.protocols import DenseMatcher, Extractor, Matcher
from sfmprep.models.shared.precision import Precision


def build_extractor(
    config: FeaturesConfig, *, device: str = "cpu", precision: Precision = "auto"
) -> Extractor:
    """Makes the extractor that a configuration names.

    Raises:
        ConfigError: half precision without a CUDA device.
        WeightsError: its weights are missing, damaged or do not fit.
    """
    made: Extractor = _build(config, device, precision)
    return made


def build_matcher(
    config: MatcherConfig, *, device: str = "cpu", precision: Precision = "auto"
) -> Matcher:
    """Makes the matcher that a configuration names.

    Raises:
        ConfigError: half precision without a CUDA device.
        WeightsError: its weights are missing, damaged or do not fit.
    """
    made: Matcher = _build(config, device, precision)
    return made


def build_dense_matcher(
    config: DenseMatcherConfig, *, device: str = "cpu", precision: Precision = "auto"
) -> DenseMatcher:
    """Makes the matcher without a detector that a configuration names.

    Raises:
        ConfigError: half precision without a CUDA device, or a setting that the matcher
            cannot work with.
        WeightsError: its weights are missing, damaged or do not fit.
    """
    made: DenseMatcher = _build(config, device, precision)
    return made


def _build(config: ModelConfig, device: str, precision: Precision) -> Any:
    return _implementation(type(config))(config, device=device, precision=precision)


def _implementation(model: type[ModelConfig]) -> Any:
    module, _, name = model.implementation.partition(":")
    return getattr(importlib.import_module(module), name)
