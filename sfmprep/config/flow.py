"""Estimators of optical flow."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt

from sfmprep.config.base import Config, MaxSize, ModelConfig, WeightsFile


class DisConfig(ModelConfig):
    """DIS optical flow (Kroeger et al., ECCV 2016), as OpenCV has it; no network."""

    implementation = "sfmprep.models.flow.dis:Dis"
    has_half = False
    type: Literal["dis"] = "dis"
    preset: Literal["ultrafast", "fast", "medium"] = "medium"
    """How thorough; medium takes about three times as long as fast."""


class RaftConfig(ModelConfig):
    """RAFT (Teed & Deng, ECCV 2020), BSD-3-Clause.

    It follows larger steps than DIS, and through plainer surfaces. On a CPU a pair of
    pictures takes seconds.
    """

    implementation = "sfmprep.models.flow.raft:Raft"
    has_half = False
    type: Literal["raft"] = "raft"
    model: Literal["raft-small", "raft-basic"] = "raft-small"
    """Which network; basic has five times the parameters, and you bring its file."""
    num_iterations: PositiveInt = 12
    """Updates of the flow: more are slower and a little more exact."""
    weights: WeightsFile = None


class DroidConfig(ModelConfig):
    """DROID's update operator (Teed & Deng, NeurIPS 2021), BSD-3-Clause.

    You bring its file, `droid.pth`. It also tells how sure the flow is, pixel by pixel.
    Where points are followed and mapping starts with poses (`tracks.start`), its flow
    and these poses are found in turns. It is made for pictures of some 384 x 512 pixels
    and for a GPU: on a CPU a pair takes many seconds.
    """

    implementation = "sfmprep.models.flow.droid:Droid"
    has_half = False
    type: Literal["droid"] = "droid"
    num_iterations: PositiveInt = 8
    """Updates of the flow of a pair."""
    weights: WeightsFile = None


FlowConfig = Annotated[
    DisConfig | RaftConfig | DroidConfig, Field(discriminator="type")
]


class MotionMasksConfig(Config):
    """Masking out what moves, by optical flow and the poses found without masks.

    Everything is done twice, first without them.
    """

    flow: FlowConfig = DisConfig()
    """What follows the pixels from image to image."""
    max_size: MaxSize = 640
    neighbours: Annotated[int, Field(ge=2)] = 8
    """How many of the images that show nearly the same each image is held against."""


class TracksConfig(Config):
    """Points that optical flow follows from frame to frame, beside the features."""

    flow: FlowConfig = DisConfig()
    """What follows the pixels from one frame to the next."""
    max_size: MaxSize = 960
    max_points: PositiveInt = 2000
    """The most points that are followed at once."""
    start: bool = False
    """Whether mapping begins with the poses that follow from these points alone.

    Only of one film without a cut, or of one folder of frames; else a start is searched
    as without.
    """
