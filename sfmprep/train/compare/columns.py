"""The columns of the table: which features with which matcher."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from sfmprep.config import (
    AlikedConfig,
    CompactConfig,
    Frontend,
    LightGlueConfig,
    NearestConfig,
    SiftConfig,
    XFeatConfig,
)
from sfmprep.errors import ConfigError
from sfmprep.models.build import build_extractor, build_matcher
from sfmprep.models.protocols import Extractor, Matcher

MAX_SIZE = 1600  # pixels of the longer side, for every column

_MUTUAL = NearestConfig(ratio=None)

COLUMNS: Mapping[str, Frontend] = MappingProxyType(
    {
        "sift": Frontend(features=SiftConfig(), matcher=NearestConfig(ratio=0.8)),
        "compact": Frontend(features=CompactConfig(), matcher=_MUTUAL),
        "compact-lightglue": Frontend(
            features=CompactConfig(), matcher=LightGlueConfig(model="compact-lightglue")
        ),
        "aliked": Frontend(features=AlikedConfig(), matcher=_MUTUAL),
        "xfeat": Frontend(features=XFeatConfig(), matcher=_MUTUAL),
        "xfeat-lighterglue": Frontend(
            features=XFeatConfig(),
            matcher=LightGlueConfig(model="lighterglue", depth_confidence=None),
        ),
    }
)


@dataclass(frozen=True, kw_only=True, eq=False)
class Column:
    """One choice of features and matcher, with its models."""

    name: str
    frontend: Frontend
    extractor: Extractor
    matcher: Matcher

    @property
    def features_provenance(self) -> dict[str, Any]:
        """What features depend on, as the stages write it into stores."""
        return dict(self.extractor.identity)

    @property
    def provenance(self) -> dict[str, Any]:
        """What matches depend on, as the stages write it into stores."""
        return {**self.matcher.identity, "features": self.features_provenance}


def build_column(
    name: str, *, max_keypoints: int, with_ratio_test: bool = True
) -> Column:
    """Makes the models of a column, on the CPU and in float32.

    Args:
        name: A key of `COLUMNS`.
        max_keypoints: The most keypoints of one image.
        with_ratio_test: False for plain mutual nearest neighbours where a column has
            nearest neighbours; LightGlue stays as it is.

    Raises:
        ConfigError: there is no such column.
        WeightsError: its weights are missing or damaged.
    """
    if name not in COLUMNS:
        raise ConfigError(
            f"there is no column {name!r}; expected some of {', '.join(COLUMNS)}"
        )
    frontend = COLUMNS[name]
    features = frontend.features.model_copy(
        update={"max_keypoints": max_keypoints, "max_size": MAX_SIZE}
    )
    matcher = frontend.matcher
    if isinstance(matcher, NearestConfig) and not with_ratio_test:
        matcher = _MUTUAL
    return Column(
        name=name,
        frontend=Frontend(features=features, matcher=matcher),
        extractor=build_extractor(features, precision="float32"),
        matcher=build_matcher(matcher, precision="float32"),
    )
