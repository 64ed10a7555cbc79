"""Other features beside the first."""

from __future__ import annotations

from pathlib import Path

from pydantic import PositiveInt

from sfmprep.config.base import Config
from sfmprep.config.features import FeaturesConfig
from sfmprep.config.matchers import MatcherConfig


class BesideConfig(Config):
    """Other features beside the first, for images that stay badly held."""

    features: FeaturesConfig
    """What such images get as well; left out where the weights cannot be had."""
    matcher: MatcherConfig
    """What matches them, with each other alone."""
    min_num_inliers: PositiveInt = 30
    """A pair with fewer verified matches is weak."""
    per_image: PositiveInt = 20
    """The most partners that one image that is badly held asks for."""

    def needed_weights(self) -> list[tuple[str, Path | None]]:
        """Weights that it cannot do without: the name, and the file to use instead."""
        return [*self.features.needed_weights(), *self.matcher.needed_weights()]
