"""How a network gets its weights and is run: decided here for all of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import wraps
from itertools import chain
from typing import ParamSpec, Protocol, TypeVar, cast

import torch
from torch import Tensor, nn

from sfmprep.config.base import ModelConfig
from sfmprep.models.identity import identity_with
from sfmprep.models.shared.out_of_memory import Memory
from sfmprep.models.shared.precision import Precision, use_half
from sfmprep.models.shared.side_by_side import num_side_by_side, side_by_side
from sfmprep.progress import batched
from sfmprep.types import ImageBatch
from sfmprep.weights import ResolvedWeights, load_strict, load_tensors, resolve_weights

P = ParamSpec("P")
R = TypeVar("R")
N = TypeVar("N", bound=nn.Module)
S = TypeVar("S", bound="SeesImages")

_BATCH_PIXELS = 1 << 24  # of a batch: in ALIKED, in float32, 7 GB on CUDA


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Where and how the network of a configuration runs, and from which weights."""

    device: torch.device
    dtype: torch.dtype
    """Of those parts of the network that may be in half precision."""
    weights: ResolvedWeights
    identity: Mapping[str, object]
    """What the results depend on, see `models.identity`."""
    images: Memory = field(default_factory=Memory)
    """What fitted of images."""
    pairs: Memory = field(default_factory=Memory)
    """What fitted of pairs."""
    is_side_by_side: bool = False
    """Whether images are on cores of their own, not together in each layer."""

    @staticmethod
    def of(
        config: ModelConfig, *, device: str = "cpu", precision: Precision = "auto"
    ) -> Adapter:
        """Decides it, and finds the weights.

        Raises:
            ConfigError: half precision without a CUDA device.
            WeightsError: the weights are missing, cannot be had, or are damaged.
        """
        half = use_half(precision, device) and config.has_half
        [needed] = config.needed_weights()
        weights = resolve_weights(*needed)
        return Adapter(
            device=torch.device(device),
            dtype=torch.float16 if half else torch.float32,
            weights=weights,
            identity=identity_with(config, weights, half=half),
            is_side_by_side=torch.device(device).type == "cpu",
        )

    def tensors(self) -> dict[str, Tensor]:
        """The tensors of the weights, by the names that their file gives them.

        Raises:
            WeightsError: the file cannot be read.
        """
        return load_tensors(self.weights)

    def load(self, network: N, tensors: Mapping[str, Tensor] | None = None) -> N:
        """Loads exactly these tensors, or all, for evaluation on the device.

        Its `prepare(dtype)` is called, where it has one: on the CPU and in float32, so
        that what is folded then is the same on every device.

        Raises:
            WeightsError: the file cannot be read, or does not fit the network.
        """
        tensors = self.tensors() if tensors is None else tensors
        load_strict(network, tensors, self.weights)
        if callable(prepare := getattr(network.eval(), "prepare", None)):
            prepare(self.dtype)
        return network.to(self.device)

    def batch_size(self, max_size: int, *, share: int = 1) -> int:
        """How many square images of `max_size` pixels a side it takes at once.

        On a CPU they go through side by side, each on its own cores and with layers
        that stay in the cache: three through each layer together took 1.35 times as
        long as one by one in XFeat, 1.17 times in ALIKED. On CUDA as many as a small
        one has memory for; there it was not measured.

        Args:
            max_size: Of the images.
            share: How many times as much memory as in ALIKED an image takes.
        """
        fitting = max(1, _BATCH_PIXELS // max_size**2 // share)
        return min(fitting, num_side_by_side()) if self.is_side_by_side else fitting

    def halved(self) -> torch.autocast:
        """Products in half precision, where that is the dtype."""
        is_half = self.dtype == torch.float16
        return torch.autocast(self.device.type, self.dtype, enabled=is_half)

    def pixels(self, batch: ImageBatch) -> Tensor:
        """The images of a batch on the device, [B, 3, H, W] in 0..1."""
        return torch.from_numpy(batch.pixels).to(self.device)


def below(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The tensors whose names begin with `prefix`, named by what follows it."""
    return {
        name.removeprefix(prefix): tensor
        for name, tensor in tensors.items()
        if name.startswith(prefix)
    }


def inference(function: Callable[P, R]) -> Callable[P, R]:
    """Runs a function without gradients, and float32 at its full precision."""

    @wraps(function)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        with torch.inference_mode(), full_float32():
            return function(*args, **kwargs)

    return run


class SeesImages(Protocol):
    """A network behind its adapter, which takes so many images at once."""

    _adapter: Adapter
    batch_size: int


def in_parts(
    method: Callable[[S, ImageBatch], list[R]],
) -> Callable[[S, ImageBatch], list[R]]:
    """Calls a method, under `inference`, with parts of up to `batch_size` images.

    There are fewer in a part where memory ends or did; a single image that does not
    fit is a DeviceError. On a CPU a part is one image, and so many are side by side.
    """

    @wraps(method)
    @inference
    def run(self: S, batch: ImageBatch) -> list[R]:
        def run_items(items: Sequence[int]) -> list[R]:
            part = slice(items[0], items[-1] + 1)
            images = ImageBatch(
                pixels=batch.pixels[part],
                sizes=batch.sizes[part],
                orientations=batch.orientations[part],
            )
            return method(self, images)

        width, height = batch.network_size

        def run_part(items: Sequence[int]) -> list[R]:
            return self._adapter.images.run(run_items, items, width * height)

        is_apart = self._adapter.is_side_by_side
        parts = batched(range(len(batch)), 1 if is_apart else self.batch_size)
        found = side_by_side(run_part, parts, self.batch_size if is_apart else 1)
        return list(chain.from_iterable(found))

    return run


@contextmanager
def full_float32() -> Iterator[None]:
    """Bars TF32, whose products have 10 bits, from products and convolutions on CUDA.

    torch allows it in convolutions unless told otherwise. What the process had set is
    restored.
    """
    convolutions, products = torch.backends.cudnn, torch.backends.cuda.matmul
    owners = [convolutions, products]
    name, barred = "allow_tf32", cast(object, False)
    if hasattr(convolutions, "conv"):  # torch 2.9 and later
        owners = [convolutions.conv, convolutions.rnn, products]
        name, barred = "fp32_precision", "ieee"
    before = [getattr(owner, name) for owner in owners]
    try:
        for owner in owners:
            setattr(owner, name, barred)
        yield
    finally:
        for owner, value in zip(owners, before, strict=True):
            setattr(owner, name, value)
