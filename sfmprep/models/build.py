"""Networks and classical operators behind the protocols of `protocols.py`.

The heavy import of each stands beside the case that needs it.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, assert_never

from sfmprep.config import (
    AlikedConfig,
    CompactConfig,
    DenseMatcherConfig,
    DiskConfig,
    Frontend,
    LightGlueConfig,
    LoftrConfig,
    NearestConfig,
    S2ldConfig,
    SiftConfig,
    XFeatConfig,
    XFeatStarConfig,
)
from sfmprep.models.shared.precision import Precision, use_half

if TYPE_CHECKING:
    from sfmprep.models.protocols import DenseMatcher, Extractor, Matcher


def build_extractor(
    config: SiftConfig | AlikedConfig | XFeatConfig | DiskConfig | CompactConfig,
    *,
    device: str = "cpu",
    precision: Precision = "auto",
) -> Extractor:
    """Makes the extractor that a configuration names.

    SIFT and DISK are in float32, whatever the precision.

    Raises:
        ConfigError: half precision without a CUDA device.
        WeightsError: its weights are missing, damaged or do not fit.
    """
    match config:
        case SiftConfig():
            from sfmprep.models.extractors.sift import Sift

            use_half(precision, device)
            return Sift(config, device=device)
        case AlikedConfig():
            from sfmprep.models.extractors.aliked import Aliked

            return Aliked(config, device=device, precision=precision)
        case XFeatConfig():
            from sfmprep.models.extractors.xfeat import XFeat

            return XFeat(config, device=device, precision=precision)
        case DiskConfig():
            from sfmprep.models.extractors.disk import Disk

            use_half(precision, device)
            return Disk(config, device=device)
        case CompactConfig():
            from sfmprep.models.extractors.compact import Compact

            return Compact(config, device=device, precision=precision)
        case _:
            assert_never(config)


def build_matcher(
    config: NearestConfig | LightGlueConfig,
    *,
    device: str = "cpu",
    precision: Precision = "auto",
) -> Matcher:
    """Makes the matcher that a configuration names.

    Nearest neighbours have no network: they are in float32, whatever the precision.

    Raises:
        ConfigError: half precision without a CUDA device.
        WeightsError: its weights are missing, damaged or do not fit.
    """
    match config:
        case NearestConfig():
            from sfmprep.models.matchers.nearest import Nearest

            use_half(precision, device)
            return Nearest(config, device=device)
        case LightGlueConfig():
            from sfmprep.models.matchers.lightglue import LightGlue

            return LightGlue(config, device=device, precision=precision)
        case _:
            assert_never(config)


def build_dense_matcher(
    config: DenseMatcherConfig,
    *,
    device: str = "cpu",
    precision: Precision = "auto",
) -> DenseMatcher:
    """Makes the matcher without a detector that a configuration names.

    Raises:
        ConfigError: half precision without a CUDA device, or a setting that the matcher
            cannot work with.
        WeightsError: its weights are missing, damaged or do not fit.
    """
    match config:
        case S2ldConfig():
            from sfmprep.models.semidense.s2ld import S2ld

            return S2ld(config, device=device, precision=precision)
        case LoftrConfig():
            from sfmprep.models.semidense.loftr import Loftr

            return Loftr(config, device=device, precision=precision)
        case XFeatStarConfig():
            from sfmprep.models.semidense.xfeat_star import XFeatStar

            return XFeatStar(config, device=device, precision=precision)
        case _:
            assert_never(config)


def weights_of(frontend: Frontend) -> list[tuple[str, Path | None]]:
    """The weights a choice of features and matcher needs: name, path in the recipe."""
    needed: list[tuple[str, Path | None]] = []
    match frontend.features:
        case AlikedConfig(model=model, weights=path):
            needed.append((model, path))
        case XFeatConfig(weights=path):
            needed.append(("xfeat", path))
        case DiskConfig(weights=path):
            needed.append(("disk", path))
        case CompactConfig(weights=path):
            needed.append(("compact", path))
        case SiftConfig():
            pass
        case _:
            assert_never(frontend.features)
    match frontend.matcher:
        case LightGlueConfig():
            needed.append((frontend.matcher.model, frontend.matcher.weights))
        case NearestConfig():
            pass
        case _:
            assert_never(frontend.matcher)
    return needed


def dense_weights_of(config: DenseMatcherConfig) -> list[tuple[str, Path | None]]:
    """The weights a dense matcher needs: name, path in the recipe."""
    match config:
        case S2ldConfig(weights=path):
            return [("s2ld", path)]
        case LoftrConfig(model=model, weights=path):
            return [(model, path)]
        case XFeatStarConfig(weights=path):
            return [("xfeat", path)]
        case _:
            assert_never(config)
