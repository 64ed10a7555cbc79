"""What 360° photographs become."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sfmprep.config.base import Config

Pitch = Annotated[float, Field(ge=-60, le=60)]


class PanoramaConfig(Config):
    """Views that equirectangular photographs are cut into: square, of 91 degrees."""

    cut: Literal["auto", "always", "never"] = "auto"
    """auto: those that say so, or are 2:1 without a focal length, go on from the right
    border to the left and end in one colour above and below; always: all 2:1."""
    pitches_deg: Annotated[tuple[Pitch, ...], Field(min_length=1)] = (20.0, -20.0)
    """How far each row of views looks up.

    The highest and lowest rows end 46 degrees beyond: two at 20 leave out what is
    straight below, where tripod and photographer are, and straight above.
    """
    per_row: Annotated[PositiveInt, Field(ge=3, le=12)] = 4
    """Views in each row; every other row is turned by half a step."""
