"""Which pairs are matched."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from sfmprep.config.base import Config, MaxSize, ModelConfig, WeightsFile


class ExhaustiveConfig(Config):
    """Every image with every other."""

    type: Literal["exhaustive"] = "exhaustive"


class SequentialConfig(Config):
    """Neighbours in the order of the names: frames of a film."""

    type: Literal["sequential"] = "sequential"
    window: PositiveInt = 10
    """Each image is paired with so many that follow it."""
    quadratic: bool = True
    """Also with those 2, 4, 8, ... images later, up to 2 to the power of `window`."""


class SpatialConfig(Config):
    """Photographs that were taken near each other, by their GPS positions."""

    type: Literal["spatial"] = "spatial"
    num_neighbours: PositiveInt = 10
    """Each image is paired with so many of the nearest ones."""


class TemporalConfig(Config):
    """Photographs that one camera took shortly after each other, by their EXIF."""

    type: Literal["temporal"] = "temporal"
    window: PositiveInt = 5
    """Each photograph is paired with so many that follow it."""
    quadratic: bool = True
    """Also with those 2, 4, 8, ... later, up to 2 to the power of `window`: beyond a
    burst."""
    max_gap_s: PositiveFloat = 600.0
    """Nothing is paired across a pause that is longer, seconds."""


class EigenPlacesConfig(ModelConfig):
    """EigenPlaces (Berton et al., ICCV 2023), MIT."""

    implementation = "sfmprep.models.retrieval.eigenplaces:EigenPlaces"
    type: Literal["eigenplaces"] = "eigenplaces"
    model: Literal[
        "eigenplaces-r50-2048", "eigenplaces-r18-512", "eigenplaces-r18-256"
    ] = "eigenplaces-r50-2048"
    """Which checkpoint: the depth of its network and the length of its rows."""
    max_size: MaxSize = 640
    weights: WeightsFile = None


class MegaLocConfig(ModelConfig):
    """MegaLoc (Berton and Masone, 2025), MIT: the largest, for a GPU."""

    implementation = "sfmprep.models.retrieval.megaloc:MegaLoc"
    type: Literal["megaloc"] = "megaloc"
    max_size: MaxSize = 518
    weights: WeightsFile = None


class NetVladConfig(ModelConfig):
    """NetVLAD (Arandjelović et al., CVPR 2016) as hloc uses it."""

    implementation = "sfmprep.models.retrieval.netvlad:NetVlad"
    type: Literal["netvlad"] = "netvlad"
    max_size: MaxSize = 1024
    weights: WeightsFile = None


RetrieverConfig = Annotated[
    EigenPlacesConfig | MegaLocConfig | NetVladConfig, Field(discriminator="type")
]


class RetrievalConfig(Config):
    """The most similar images, by a VLAD of the local descriptors or by a network."""

    type: Literal["retrieval"] = "retrieval"
    model: RetrieverConfig | None = None
    """The network that describes images; null for a VLAD, which needs no weights."""
    num_neighbours: PositiveInt = 20
    """Each image is paired with so many of the most similar ones."""
    num_clusters: PositiveInt = 256
    """Words of the VLAD's vocabulary, which is learned from the capture itself."""
    min_similarity: Annotated[float, Field(ge=-1, le=1)] = -1.0
    """Pairs with a lower cosine are left out; neighbours often have one below 0."""


class PairsFileConfig(Config):
    """Pairs named by the user."""

    type: Literal["file"] = "file"
    path: Path
    """Text file, one pair of names a line, separated by a tab or a space."""


class AutoPairsConfig(Config):
    """Exhaustive for small captures; else by likeness, film, time and GPS together."""

    type: Literal["auto"] = "auto"
    exhaustive_up_to: NonNegativeInt = 60
    """With so many images or fewer, every image is paired with every other."""
    retrieval: RetrievalConfig = RetrievalConfig()
    """How pairs are found above that, within `per_image`."""
    sequential: SequentialConfig = SequentialConfig()
    """How frames of one film are paired beside that, never across a cut."""
    spatial: SpatialConfig | None = SpatialConfig()
    """How photographs with GPS are paired beside that; null: their GPS is no matter."""
    temporal: TemporalConfig | None = TemporalConfig()
    """How photographs with a time are paired beside that; null: it is no matter."""
    per_image: PositiveInt | None = 40
    """For so many pairs each image may ask above `exhaustive_up_to`, of all ways
    together: first the best of each way, then what most ways propose, then the ways in
    turn. Others may ask for it too. null: for all of them."""


PairsConfig = Annotated[
    AutoPairsConfig
    | ExhaustiveConfig
    | SequentialConfig
    | RetrievalConfig
    | SpatialConfig
    | TemporalConfig
    | PairsFileConfig,
    Field(discriminator="type"),
]
