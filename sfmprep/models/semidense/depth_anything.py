"""Depth Anything 3 as a maker of pointmaps; see `depth_anything_network.py`.

Of a pair it tells both depths and both cameras, so that the pixels of each are points
in the first camera, in a unit of its own. It has no matches of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from sfmprep.config import DepthAnythingConfig
from sfmprep.coords import Placed, colmap_from_centre
from sfmprep.errors import WeightsError
from sfmprep.models.protocols import DenseImage, Points
from sfmprep.models.semidense.depth_anything_network import (
    PATCH,
    UNUSED,
    DepthAnythingNetwork,
    Looks,
)
from sfmprep.models.shared.adapter import Adapter, below, in_parts, inference
from sfmprep.models.shared.extraction import imagenet_normalised, only_row, prepared_as
from sfmprep.models.shared.precision import Where
from sfmprep.types import Float32, Float64, ImageBatch

_BATCH_SHARE = 2  # its activations take twice the memory of an extractor's
# As its authors show points: above a confidence, and not among the least confident.
_MIN_CONFIDENCE = 1.05
_LEAST_SURE = 0.4  # of the pixels


class DepthAnything:
    """Pointmaps with Depth Anything 3; the precision is that of the backbone."""

    def __init__(self, config: DepthAnythingConfig, **where: Unpack[Where]) -> None:
        self._adapter = Adapter.of(config, **where)
        tensors = self._adapter.tensors()
        tensors = below(tensors, "model.") or tensors
        used = {
            name: tensor.float()
            for name, tensor in tensors.items()
            if not any(part in name for part in UNUSED)
        }
        try:
            with torch.device("meta"):  # whose place the file's tensors take
                network = DepthAnythingNetwork(used)
        except KeyError as error:
            raise WeightsError(
                f"weights of {config.model}: {self._adapter.weights.path} holds another"
                f" network (it lacks {error}). Correct the key `weights` of the recipe"
                " or remove it."
            ) from error
        self._network = self._adapter.load(network, used)
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(config.max_size, share=_BATCH_SHARE)

    @in_parts
    def prepare(self, batch: ImageBatch) -> list[DenseImage]:
        """Encodes the middle of each image, whose sides are multiples of 14 pixels.

        Images of fewer than 14 pixels a side have no tokens.
        """
        width, height = (side // PATCH * PATCH for side in batch.network_size)
        grid = (height // PATCH, width // PATCH)
        left, top = (
            (side - taken) // 2
            for side, taken in zip(batch.network_size, (width, height), strict=True)
        )
        pixels = imagenet_normalised(self._adapter.pixels(batch))
        pixels = pixels[..., top : top + height, left : left + width]
        if grid[0] * grid[1]:
            with self._adapter.halved():
                tokens = self._network.encode(pixels)
        else:
            tokens = pixels.new_empty((len(batch), 0, 1))
        return [
            View(
                tokens=only_row(tokens, row),
                grid=grid,
                corner=(left, top),
                placed=Placed.of(batch, row),
            )
            for row in range(len(batch))
        ]

    @inference
    def points(self, first: DenseImage, second: DenseImage) -> tuple[Points, Points]:
        """Points of both images in the camera of the first.

        Raises:
            ValueError: an image was prepared by another network, or is smaller than 14
                pixels a side.
            DeviceError: the pair does not fit into the memory of the device.
        """
        [sides] = prepared_as(View, [(first, second)])
        if not all(len(side) for side in sides):
            raise ValueError("an image of fewer than 14 pixels a side has no points")
        [looks] = self._adapter.pairs.each(self._look, [[sides]])
        poses = [
            np.vstack((look.world_from_cam.double().cpu().numpy(), (0, 0, 0, 1)))
            for look in looks
        ]
        own, other = (
            _points(side, look, np.linalg.inv(poses[0]) @ pose)
            for side, look, pose in zip(sides, looks, poses, strict=True)
        )
        return own, other

    def _look(self, pairs: list[tuple[View, View]]) -> list[Looks]:
        [views] = pairs
        with self._adapter.halved():
            return self._network.look(
                [view.tokens for view in views], [view.grid for view in views]
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """One image on the device of the network that prepared it."""

    tokens: Tensor  # [1, 1 + h w, C]
    grid: tuple[int, int]  # (h, w) patches
    corner: tuple[int, int]  # (x, y) of the crop, pixels of the batch
    placed: Placed

    def __len__(self) -> int:
        """How many tokens it has."""
        return self.tokens.shape[1]

    @property
    def num_bytes(self) -> int:
        """How much memory of the device it holds."""
        return self.tokens.nbytes

    @property
    def keypoints(self) -> Float32:
        """None: it has no matches."""
        return np.empty((0, 2), np.float32)


def _points(view: View, look: Looks, first_from_cam: Float64) -> Points:
    depth = look.depth.double().cpu().numpy()
    height, width = depth.shape
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    xy = colmap_from_centre(np.column_stack((x.ravel(), y.ravel())))
    half = np.array((width, height)) / 2
    rays = (xy - half) / half * look.tangents.double().cpu().numpy()
    there = depth.reshape(-1, 1) * np.column_stack((rays, np.ones(len(rays))))
    confidence = look.confidence.flatten().cpu().numpy()
    least = max(_MIN_CONFIDENCE, float(np.quantile(confidence, _LEAST_SURE)))
    moved = there @ first_from_cam[:3, :3].T + first_from_cam[:3, 3]
    return Points(
        points=moved.astype(np.float32),
        confidence=confidence,
        is_sure=confidence >= least,
        xy=xy + np.array(view.corner, np.float32),
        placed=view.placed,
    )
