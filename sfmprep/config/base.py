"""The bases of the records of a recipe: frozen, unknown keys are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Self, get_args

from pydantic import BaseModel, ConfigDict, Field, PositiveInt

Unit = Annotated[float, Field(ge=0, le=1)]

# What several models have, with the sentence that tells it.
MaxSize = Annotated[
    PositiveInt,
    Field(description="Longer side in pixels that larger images are reduced to."),
]
MaxKeypoints = Annotated[
    PositiveInt,
    Field(description="The most keypoints of one image, best scores first."),
]
WeightsFile = Annotated[
    Path | None, Field(description="A file to use in place of the named weights.")
]


class Config(BaseModel):
    """Frozen, and unknown keys are errors."""

    model_config = ConfigDict(
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )


class ModelConfig(Config):
    """The settings of a model; beside them what makes it and what it depends on.

    A new model is a subclass of this in the union of its kind, and the file that
    `implementation` names. One with the key `weights` also needs the row of
    `sfmprep.weights.WEIGHTS` that `weights_name` gives.
    """

    implementation: ClassVar[str]
    """`module:class` of what `models.build` makes: class(config, device, precision)."""
    version: ClassVar[int] = 1
    """Raised by hand when equal settings and weights give other numbers than before."""
    has_half: ClassVar[bool] = True
    """Whether half precision changes its numbers; else it is always in float32."""

    type: str

    @property
    def name(self) -> str:
        """What messages call it: its `model`, else its `type`."""
        return str(getattr(self, "model", self.type))

    @property
    def weights_name(self) -> str | None:
        """The weights that it needs: its `model`, else its `type`; None for none."""
        if "weights" not in type(self).model_fields:
            return None
        return self.name

    def needed_weights(self) -> list[tuple[str, Path | None]]:
        """The name of each of its weights, and the file to use in their place."""
        name = self.weights_name
        return [] if name is None else [(name, getattr(self, "weights", None))]


class RungConfig(Config):
    """Matchers for the pairs of one rung; others take over where weights lack."""

    matcher: ModelConfig
    otherwise: tuple[ModelConfig, ...] = ()

    @property
    def name(self) -> str:
        """What messages call it."""
        return self.matcher.name

    def choices(self) -> tuple[Self, ...]:
        """The rung with each choice made, best first; none of them has another."""
        return tuple(
            self.model_copy(update={"matcher": matcher, "otherwise": ()})
            for matcher in (self.matcher, *self.otherwise)
        )

    def needed_weights(self) -> list[tuple[str, Path | None]]:
        """Weights that it cannot do without: the name, and the file to use instead."""
        return self.matcher.needed_weights()


def configs_in(annotation: object) -> list[type[Config]]:
    """The records that a field of this annotation can hold.

    Several for a union that is told apart by `type`, such as `FeaturesConfig`; none for
    a plain value.
    """
    if isinstance(annotation, type) and issubclass(annotation, Config):
        return [annotation]
    return [config for part in get_args(annotation) for config in configs_in(part)]
