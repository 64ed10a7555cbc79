"""Where a network is run, and in which number format."""

from __future__ import annotations

from typing import Literal, TypedDict

from sfmprep.errors import ConfigError

Precision = Literal["auto", "float32", "half"]


class Where(TypedDict, total=False):
    """What every model is made with, beside its configuration."""

    device: str
    """As torch names it; cpu unless it is said."""
    precision: Precision
    """Of what the model's class says, of nothing else; auto unless it is said."""


def use_half(precision: Precision, device: str) -> bool:
    """Whether a network that can is run in half precision.

    auto means half on CUDA. Half on a CPU would be slower than float32.

    Raises:
        ConfigError: half is asked for without a CUDA device.
    """
    is_cuda = device.partition(":")[0] == "cuda"
    if precision == "half" and not is_cuda:
        raise ConfigError(
            f"precision 'half' with device {device!r}, but only CUDA devices gain from"
            " it. Set engine.precision to auto or float32."
        )
    return is_cuda and precision != "float32"
