"""RAFT behind its adapter: files of weights, sizes of pictures, batches."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfmprep.config import RaftConfig
from sfmprep.errors import WeightsError
from sfmprep.models.flow.encoder import CELL, padding_of
from sfmprep.models.flow.raft_network import RaftNetwork
from sfmprep.models.protocols import FlowImage
from sfmprep.models.shared.adapter import Adapter, in_parts, inference
from sfmprep.models.shared.precision import Where
from sfmprep.types import Float32, ImageBatch

_BATCH_SIZE = 960


@dataclass(frozen=True, kw_only=True)
class RaftImage:
    """One picture's features, on the device."""

    features: Tensor  # [D, h, w]
    context: Tensor  # [C, h, w]
    size: tuple[int, int]  # (W, H) of the picture
    padding: tuple[int, int, int, int]  # left, right, top, bottom

    @property
    def num_bytes(self) -> int:
        """How much memory of the device it holds."""
        return 4 * (self.features.numel() + self.context.numel())


class Raft:
    """Optical flow by RAFT, always in float32."""

    def __init__(self, config: RaftConfig, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        tensors = _official(self._adapter.tensors(), self._adapter.weights.path.name)
        is_small = config.model == "raft-small"
        self._network = self._adapter.load(RaftNetwork(is_small=is_small), tensors)
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(_BATCH_SIZE)

    @in_parts
    def prepare(self, batch: ImageBatch) -> list[RaftImage]:
        """Computes the features of each image; see `FlowEstimator.prepare`."""
        size = batch.network_size
        padding = padding_of(size)
        rgb = F.pad(self._adapter.pixels(batch), padding, mode="replicate")
        return [
            RaftImage(features=features, context=context, size=size, padding=padding)
            for features, context in zip(*self._network.encode(rgb), strict=True)
        ]

    @inference
    def flow(
        self,
        pairs: Sequence[tuple[FlowImage, FlowImage]],
        starts: Sequence[Float32 | None] | None = None,
    ) -> list[Float32]:
        """Estimates the flow of each pair; see `FlowEstimator.flow`."""
        starts = [None] * len(pairs) if starts is None else starts

        def run(item: tuple[tuple[FlowImage, FlowImage], Float32 | None]) -> Float32:
            return self._one(*item)

        return self._adapter.pairs.each(run, zip(pairs, starts, strict=True))

    def _one(self, pair: tuple[FlowImage, FlowImage], start: Float32 | None) -> Float32:
        first, second = (_mine(image) for image in pair)
        if first.size != second.size:
            raise ValueError(f"{first.size=} but {second.size=}; expected the same")
        left, right, top, bottom = first.padding
        begin = None
        if start is not None:
            planes = torch.from_numpy(start).to(self._adapter.device).permute(2, 0, 1)
            padded = F.pad(planes[None], first.padding, mode="replicate")
            begin = F.avg_pool2d(padded, CELL) / CELL
        _, full = self._network(
            first.features[None],
            second.features[None],
            first.context[None],
            begin,
            self._config.num_iterations,
        )
        width, height = first.size
        inside = full[0, :, top : top + height, left : left + width]
        return np.ascontiguousarray(inside.permute(1, 2, 0).cpu().numpy())


def _mine(image: FlowImage) -> RaftImage:
    if not isinstance(image, RaftImage):
        raise ValueError(f"got a {type(image).__name__} but expected a RaftImage")
    return image


# ----------------------------------------------------------------- files of weights
_TORCHVISION = (  # its names, with which the same networks are also handed out
    (r"^feature_encoder\.", "fnet."),
    (r"^context_encoder\.", "cnet."),
    (r"\.convnormrelu\.0\.", ".conv1."),
    (r"\.convnormrelu\.1\.", ".norm1."),
    (r"\.convnormrelu(\d)\.0\.", r".conv\1."),
    (r"\.convnormrelu(\d)\.1\.", r".norm\1."),
    (r"\.downsample\.1\.", ".norm3."),
    (r"^((?:fnet|cnet)\.)conv\.", r"\1conv2."),
    (r"\.motion_encoder\.convcorr(\d)\.0\.", r".encoder.convc\1."),
    (r"\.motion_encoder\.convflow(\d)\.0\.", r".encoder.convf\1."),
    (r"\.motion_encoder\.conv\.0\.", ".encoder.conv."),
    (r"\.recurrent_block\.convgru(\d)\.(conv[zrq])\.", r".gru.\2\1."),
    (r"^mask_predictor\.convrelu\.0\.", "update_block.mask.0."),
    (r"^mask_predictor\.conv\.", "update_block.mask.2."),
)


def _official(tensors: Mapping[str, Tensor], file: str) -> dict[str, Tensor]:
    """The tensors under the network's names, of either layout of files.

    Raises:
        WeightsError: a norm that the file names twice has two values.
    """
    found = {name.removeprefix("module."): t for name, t in tensors.items()}
    if any(name.startswith("feature_encoder.") for name in found):
        is_small = "mask_predictor.conv.weight" not in found
        renamed = {}
        for name, tensor in found.items():
            for pattern, text in _TORCHVISION:
                name = re.sub(pattern, text, name)
            if is_small:
                name = re.sub(r"(\.gru\.conv[zrq])1\.", r"\1.", name)
            renamed[name] = tensor
        return renamed
    for name in [name for name in found if ".downsample.1." in name]:
        twin = name.replace(".downsample.1.", ".norm3.")
        if twin in found:
            if not torch.equal(found[name], found[twin]):
                raise WeightsError(
                    f"{file}: {name} and {twin} differ but expected the same norm"
                    " twice; take the official file."
                )
            del found[name]
    return found
