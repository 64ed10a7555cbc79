"""The whole of a recipe, and how it is run."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, TypeAlias

import yaml
from pydantic import NonNegativeFloat, NonNegativeInt, PositiveFloat, PositiveInt

from sfmprep.config.base import Config
from sfmprep.config.beside import BesideConfig, CloserConfig
from sfmprep.config.export import ExportConfig
from sfmprep.config.features import FeaturesConfig
from sfmprep.config.film import FilmConfig
from sfmprep.config.flow import MotionMasksConfig, TracksConfig
from sfmprep.config.mapping import (
    DatabaseConfig,
    ForeseeConfig,
    KnownPosesConfig,
    MappingConfig,
    RefinementConfig,
    SecondRoundConfig,
)
from sfmprep.config.matchers import MatcherConfig, StrongerConfig
from sfmprep.config.pairs import (
    AutoPairsConfig,
    PairsConfig,
    RetrievalConfig,
    RetrieverConfig,
)
from sfmprep.config.panorama import PanoramaConfig
from sfmprep.config.semidense import DenseConfig

Rung: TypeAlias = BesideConfig | StrongerConfig | DenseConfig | CloserConfig


class Frontend(Config):
    """Features and the matcher that goes with them."""

    features: FeaturesConfig
    matcher: MatcherConfig
    stronger: StrongerConfig | None = None

    def needed_weights(self) -> list[tuple[str, Path | None]]:
        """Weights that it cannot do without: the name, and the file to use instead."""
        return [*self.features.needed_weights(), *self.matcher.needed_weights()]

    def all_weights(self) -> list[tuple[str, Path | None]]:
        """As `needed_weights`, with those of what tries weak pairs."""
        stronger = self.stronger.matcher.needed_weights() if self.stronger else []
        return [*self.needed_weights(), *stronger]

    def label(self) -> str:
        """A short name for messages, such as `xfeat + lighterglue`."""
        return f"{self.features.name} + {self.matcher.name}"

    def ladder_label(self) -> str:
        """As `label`, with what tries weak pairs, such as `..., then lighterglue`."""
        then = f", then {self.stronger.matcher.name}" if self.stronger else ""
        return f"{self.label()}{then}"


class EngineConfig(Config):
    """How networks are run; nothing here changes what a run finds, up to rounding."""

    precision: Literal["auto", "float32", "half"] = "auto"
    """auto: half where the network allows it and the device is faster with it, and
    nearest neighbours by bfloat16 on a CPU that multiplies it; float32: neither."""
    cache_gb: PositiveFloat = 2.0
    """Features that are kept ready for matching, on the device, 1e9 bytes."""
    num_workers: PositiveInt | None = None
    """Threads that decode photographs; null: one a core, at most 8."""


class Recipe(Config):
    """Everything a run does."""

    name: str
    description: str = ""
    features: FeaturesConfig
    matcher: MatcherConfig
    """What matches all pairs."""
    stronger: StrongerConfig | None = None
    """What tries pairs that stay weak and matter, or null."""
    otherwise: tuple[Frontend, ...] = ()
    """What to use where the weights of the choice before cannot be had."""
    beside: BesideConfig | None = None
    """Other features beside the first for images that stay badly held, or null."""
    masks: Path | None = None
    """Folder of masks, a.jpg.png or a.png for a.jpg; black is ignored everywhere.

    A file is the mask of all photographs.
    """
    motion_masks: MotionMasksConfig | None = None
    """Masking out what moves too; or null."""
    keep_damaged: bool = False
    """Use what is left of damaged photographs; what is lost is grey or black."""
    film: FilmConfig = FilmConfig()
    """Which frames of films are taken."""
    panorama: PanoramaConfig = PanoramaConfig()
    """What 360° photographs become."""
    rigs: Path | None = None
    """COLMAP's rig_config.json: cameras that were fixed to each other; or null."""
    pairs: PairsConfig = AutoPairsConfig()
    dense: DenseConfig | None = None
    """Semi-dense matching beside the features, or null."""
    tracks: TracksConfig | None = None
    """Points followed by optical flow, where images are frames of a film; or null."""
    database: DatabaseConfig = DatabaseConfig()
    known_poses: KnownPosesConfig | None = None
    """Poses to start from, or null."""
    mapping: MappingConfig = MappingConfig()
    second_round: SecondRoundConfig | None = SecondRoundConfig()
    """Matching what the models propose, and mapping on; or null."""
    closer: CloserConfig | None = None
    """A closer look at images that no model holds, and mapping on; or null."""
    refinement: RefinementConfig | None = None
    """Sub-pixel refinement of the keypoints, or null."""
    export: ExportConfig = ExportConfig()
    engine: EngineConfig = EngineConfig()
    budget_minutes: NonNegativeFloat | None = None
    """The most minutes that all beyond the first rung may take, or null for no limit.

    Other features and matchers, the second round, and other starts of the mapper; what
    there is no time for is left out, least wanted first, and done by a later run with
    more.
    """
    seed: NonNegativeInt = 0
    """Seed of everything random: RANSAC, the retrieval vocabulary, the mapper."""

    @property
    def frontends(self) -> tuple[Frontend, ...]:
        """The choices of features and matcher, best first."""
        return (
            Frontend(
                features=self.features, matcher=self.matcher, stronger=self.stronger
            ),
            *self.otherwise,
        )

    @property
    def foresee(self) -> ForeseeConfig | None:
        """Looking for images without a pose by pointmaps, if it does."""
        return self.second_round.foresee if self.second_round else None

    @property
    def retriever(self) -> RetrieverConfig | None:
        """The network that describes images for pairs, if there is one."""
        pairs = self.pairs
        if isinstance(pairs, AutoPairsConfig):
            if self.known_poses is not None:  # which say most pairs
                return None
            pairs = pairs.retrieval
        return pairs.model if isinstance(pairs, RetrievalConfig) else None

    def with_frontend(self, frontend: Frontend) -> Recipe:
        """This recipe with one choice made."""
        return self.model_copy(
            update={
                "features": frontend.features,
                "matcher": frontend.matcher,
                "stronger": frontend.stronger,
                "otherwise": (),
            }
        )

    def to_yaml(self) -> str:
        """This recipe as text that `load_recipe` reads back."""
        return yaml.safe_dump(
            self.model_dump(mode="json"), sort_keys=False, allow_unicode=True
        )
