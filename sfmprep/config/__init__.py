"""Recipes: what a run does, as frozen records; `load.py` reads them.

A recipe names its features and its matcher, and, under `otherwise`, what to use
instead where the weights of the first choice can be had neither here nor from the
network. Unknown keys are refused. `Recipe.frontends` are the choices in order.
"""

from sfmprep.config.base import Config
from sfmprep.config.beside import BesideConfig
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
    "FlowConfig",
