"""Recipes: what a run does, as frozen records; `load.py` reads them.

A recipe names its features and its matcher, and, under `otherwise`, what to use
instead where the weights of the first choice can be had neither here nor from the
network. Unknown keys are refused. `Recipe.frontends` are the choices in order.
"""

from sfmprep.config.base import Config
from sfmprep.config.beside import BesideConfig, CloserConfig
from sfmprep.config.export import ExportConfig, SeedConfig, Target, WorldConfig
from sfmprep.config.features import (
    AlikedConfig,
    CompactConfig,
    D2NetConfig,
    DiskConfig,
    FeaturesConfig,
    R2d2Config,
    SiftConfig,
    SuperPointConfig,
    XFeatConfig,
)
from sfmprep.config.film import FilmConfig
from sfmprep.config.flow import (
    DisConfig,
    DroidConfig,
    FlowConfig,
    MotionMasksConfig,
    RaftConfig,
    TracksConfig,
)
from sfmprep.config.mapping import (
    DatabaseConfig,
    ForeseeConfig,
    KnownPosesConfig,
    MappingConfig,
    OutlierConfig,
    RefinementConfig,
    SecondRoundConfig,
)
from sfmprep.config.matchers import (
    LightGlueConfig,
    MatcherConfig,
    NearestConfig,
    StrongerConfig,
    SuperGlueConfig,
)
from sfmprep.config.pairs import (
    AutoPairsConfig,
    EigenPlacesConfig,
    ExhaustiveConfig,
    MegaLocConfig,
    NetVladConfig,
    PairsConfig,
    PairsFileConfig,
    RetrievalConfig,
    RetrieverConfig,
    SequentialConfig,
    SpatialConfig,
    TemporalConfig,
)
from sfmprep.config.panorama import PanoramaConfig
from sfmprep.config.recipe import EngineConfig, Frontend, Recipe, Rung
from sfmprep.config.semidense import (
    DenseConfig,
    DenseMatcherConfig,
    DepthAnythingConfig,
    LoftrConfig,
    MakesPointmapsConfig,
    PointmapConfig,
    S2ldConfig,
    XFeatStarConfig,
)

__all__ = [
    "AlikedConfig",
    "AutoPairsConfig",
    "BesideConfig",
    "CloserConfig",
    "CompactConfig",
    "Config",
    "D2NetConfig",
    "DatabaseConfig",
    "DenseConfig",
    "DenseMatcherConfig",
    "DepthAnythingConfig",
    "DisConfig",
    "DiskConfig",
    "DroidConfig",
    "EigenPlacesConfig",
    "EngineConfig",
    "ExhaustiveConfig",
    "ExportConfig",
    "FeaturesConfig",
    "FilmConfig",
    "ForeseeConfig",
    "FlowConfig",
    "Frontend",
    "PanoramaConfig",
    "KnownPosesConfig",
    "LightGlueConfig",
    "LoftrConfig",
    "MakesPointmapsConfig",
    "MappingConfig",
    "MatcherConfig",
    "MotionMasksConfig",
    "MegaLocConfig",
    "NearestConfig",
    "NetVladConfig",
    "OutlierConfig",
    "PairsConfig",
    "PairsFileConfig",
    "PointmapConfig",
    "R2d2Config",
    "RaftConfig",
    "Recipe",
    "RefinementConfig",
    "RetrievalConfig",
    "RetrieverConfig",
    "Rung",
    "S2ldConfig",
    "SeedConfig",
    "SecondRoundConfig",
    "SequentialConfig",
    "SiftConfig",
    "SpatialConfig",
    "StrongerConfig",
    "SuperGlueConfig",
    "SuperPointConfig",
    "Target",
    "TemporalConfig",
    "TracksConfig",
    "WorldConfig",
    "XFeatConfig",
    "XFeatStarConfig",
]
