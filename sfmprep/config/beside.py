"""Other features beside the first: of images that are badly held, or that are lost."""

from __future__ import annotations

from pathlib import Path
from typing import Self

from pydantic import PositiveInt

from sfmprep.config.base import Config
from sfmprep.config.features import FeaturesConfig
from sfmprep.config.matchers import MatcherConfig


class Look(Config):
    """Features, and what matches them, with each other alone."""

    features: FeaturesConfig
    """What such images get as well."""
    matcher: MatcherConfig
    """What matches them, with each other alone."""

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.features.name

    def needed_weights(self) -> list[tuple[str, Path | None]]:
        """Weights that it cannot do without: the name, and the file to use instead."""
        return [*self.features.needed_weights(), *self.matcher.needed_weights()]


class LookRung(Look):
    """A rung of the ladder that looks at some images once more."""

    otherwise: tuple[Look, ...] = ()
    """What to use where the weights of the choice before cannot be had."""

    def choices(self) -> tuple[Self, ...]:
        """The rung with each choice made, best first; none of them has another."""
        looks = (Look(features=self.features, matcher=self.matcher), *self.otherwise)
        return tuple(
            self.model_copy(
                update={
                    "features": look.features,
                    "matcher": look.matcher,
                    "otherwise": (),
                }
            )
            for look in looks
        )


class BesideConfig(LookRung):
    """Other features beside the first, for images that stay badly held.

    The rung is left out where no choice has its weights.
    """

    min_num_inliers: PositiveInt = 30
    """A pair with fewer verified matches is weak."""
    per_image: PositiveInt = 20
    """The most partners that one image that is badly held asks for."""


class CloserConfig(LookRung):
    """A closer look at images that no model holds, and at the views they should join.

    More pixels and keypoints than the first look, in each of four rotations, and more
    neighbours. The rung is left out where no choice has its weights.
    """

    per_image: PositiveInt = 10
    """The views that one such image is matched with; these are with each other too."""
    max_pairs: PositiveInt = 1000
    """The most pairs altogether, those of the most promising images first."""
