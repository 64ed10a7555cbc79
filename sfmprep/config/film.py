"""Which frames of films become photographs."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field, PositiveInt

from sfmprep.config.base import Config
from sfmprep.config.flow import DisConfig, FlowConfig


class FilmConfig(Config):
    """Frames are taken by how much is new in the picture, the sharpest of several."""

    max_overlap: Annotated[float, Field(ge=0.3, le=0.99)] = 0.9
    """Share of the picture that a frame and the next one have in common, at most."""
    frames: PositiveInt | None = 600
    """The most frames of one film; of more the least needed go. null: no limit."""
    flow: FlowConfig = DisConfig(preset="fast")
    """What tells how far the picture has moved."""
