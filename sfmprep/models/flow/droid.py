"""DROID behind its adapter: files of weights, sizes of pictures, pairs and windows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sfmprep.config import DroidConfig
from sfmprep.models.flow.droid_network import DroidNetwork, Updated
from sfmprep.models.flow.encoder import CELL, padding_of
from sfmprep.models.flow.raft_network import convex_upsampled
from sfmprep.models.protocols import FlowImage
from sfmprep.models.shared.adapter import Adapter, in_parts, inference
from sfmprep.models.shared.precision import Where
from sfmprep.types import Float32, ImageBatch

_BATCH_SIZE = 960
# Which have more rows in the official file than the two that are used.
_CUT = ("update.weight.2.", "update.delta.2.")
_USED = 2


@dataclass(frozen=True, kw_only=True)
class DroidImage:
    """One picture's features, on the device."""

    features: Tensor  # [128, h, w]
    hidden: Tensor  # [128, h, w] the state to begin with
    context: Tensor  # [128, h, w]
    size: tuple[int, int]  # (W, H) of the picture
    padding: tuple[int, int, int, int]  # left, right, top, bottom

    @property
    def num_bytes(self) -> int:
        """How much memory of the device it holds."""
        return 3 * 4 * self.features.numel()


class Droid:
    """DROID's update operator, always in float32.

    Alone it finds the flow of pairs, whose places it takes over as they are; in
    `update` the caller moves them, as by an adjustment of poses and depths.

    Args:
        config: The settings.
        where: Device and precision.

    Raises:
        ConfigError: half precision without a CUDA device.
        WeightsError: no weights are given, they are damaged or do not fit.
    """

    def __init__(self, config: DroidConfig, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        tensors = _cut(self._adapter.tensors())
        self._network = self._adapter.load(DroidNetwork(), tensors)
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(_BATCH_SIZE)

    @in_parts
    def prepare(self, batch: ImageBatch) -> list[DroidImage]:
        """Computes the features of each image; see `FlowEstimator.prepare`."""
        size = batch.network_size
        padding = padding_of(size)
        rgb = F.pad(self._adapter.pixels(batch), padding, mode="replicate")
        return [
            DroidImage(
                features=features,
                hidden=hidden,
                context=context,
                size=size,
                padding=padding,
            )
            for features, hidden, context in zip(
                *self._network.encode(rgb), strict=True
            )
        ]

    def flow(
        self,
        pairs: Sequence[tuple[FlowImage, FlowImage]],
        starts: Sequence[Float32 | None] | None = None,
    ) -> list[Float32]:
        """Estimates the flow of each pair; see `FlowEstimator.flow`."""
        return [flow for flow, _ in self.confident_flow(pairs, starts)]

    @inference
    def confident_flow(
        self,
        pairs: Sequence[tuple[FlowImage, FlowImage]],
        starts: Sequence[Float32 | None] | None = None,
    ) -> list[tuple[Float32, Float32]]:
        """The flow of each pair; see `ConfidentFlowEstimator.confident_flow`."""
        starts = [None] * len(pairs) if starts is None else starts

        def run(
            item: tuple[tuple[FlowImage, FlowImage], Float32 | None],
        ) -> tuple[Float32, Float32]:
            return self._one(*item)

        return self._adapter.pairs.each(run, zip(pairs, starts, strict=True))

    @inference
    def update(
        self,
        edges: Sequence[tuple[DroidImage, DroidImage]],
        hidden: Tensor | None,
        places: Tensor,
        target: Tensor,
        source: Tensor,
    ) -> Updated:
        """One update of E edges at once, wherever their places are now.

        Args:
            edges: Both images of each, one or more, all of one size.
            hidden: The state [E, 128, h, w] after the last update; None at first.
            places: [E, h, w, 2] of the cells of the first in the second, in cells.
            target: [E, h, w, 2] where the last update wanted them; at first the places.
            source: [E] 0..S-1, the number of the first image of each.
        """
        places, target = (each.float().permute(0, 3, 1, 2) for each in (places, target))
        if hidden is None:
            hidden = torch.stack([first.hidden for first, _ in edges])
        context = torch.stack([first.context for first, _ in edges])
        # one by one, for they take most of the memory
        seen = [
            self._network.correlation(a.features[None], b.features[None]).at(at[None])
            for (a, b), at in zip(edges, places, strict=True)
        ]
        flow, missing = places - _grid(places), target - places
        found: Updated = self._network(
            hidden, context, torch.cat(seen), flow, missing, source
        )
        return found

    def _one(
        self, pair: tuple[FlowImage, FlowImage], start: Float32 | None
    ) -> tuple[Float32, Float32]:
        first, second = (_mine(image) for image in pair)
        if first.size != second.size:
            raise ValueError(f"{first.size=} but {second.size=}; expected the same")
        flow = torch.zeros_like(first.features[:2])[None]
        if start is not None:
            planes = torch.from_numpy(start).to(self._adapter.device).permute(2, 0, 1)
            padded = F.pad(planes[None], first.padding, mode="replicate")
            flow = F.avg_pool2d(padded, CELL) / CELL
        correlation = self._network.correlation(
            first.features[None], second.features[None]
        )
        hidden, grid, still = first.hidden[None], _grid(flow), torch.zeros_like(flow)
        only = torch.zeros(1, dtype=torch.int64, device=flow.device)
        for _ in range(self._config.num_iterations):
            found: Updated = self._network(
                *(hidden, first.context[None], correlation.at(grid + flow)),
                *(flow, still, only),
            )
            hidden, flow = found.hidden, flow + found.delta
        weight = found.weight.mean(1, keepdim=True)
        full = convex_upsampled(torch.cat((CELL * flow, weight), 1), found.mask)[0]
        left, _, top, _ = first.padding
        width, height = first.size
        inside = full[:, top : top + height, left : left + width].permute(1, 2, 0).cpu()
        fields = inside.numpy()
        return np.ascontiguousarray(fields[..., :2]), np.ascontiguousarray(
            fields[..., 2]
        )


def _grid(planes: Tensor) -> Tensor:
    """The places [2, h, w] of the cells of planes [..., h, w], (x, y)."""
    height, width = planes.shape[-2:]
    along = (torch.arange(side, device=planes.device) for side in (width, height))
    return torch.stack(torch.meshgrid(*along, indexing="xy")).to(planes)


def _mine(image: FlowImage) -> DroidImage:
    if not isinstance(image, DroidImage):
        raise ValueError(f"got a {type(image).__name__} but expected a DroidImage")
    return image


def _cut(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors under the network's names, without rows that are not used."""
    found = {name.removeprefix("module."): t for name, t in tensors.items()}
    return {
        name: tensor[:_USED] if name.startswith(_CUT) else tensor
        for name, tensor in found.items()
    }
