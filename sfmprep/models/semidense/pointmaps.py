"""DUSt3R and MASt3R as matchers without a detector; see `pointmap_network.py`.

Matches start on a grid of pixels of the first image and end at pixels of the second:
MASt3R's where descriptors agree, DUSt3R's where points in space do. They are exact to
a pixel of 512 or so, which is enough for a pose, but not for the last one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
from torch import Tensor

from sfmprep.config import PointmapConfig
from sfmprep.coords import Placed, colmap_from_centre
from sfmprep.errors import WeightsError
from sfmprep.models.protocols import DenseImage, Points
from sfmprep.models.semidense.pointmap_network import (
    PATCH,
    Pointmap,
    PointmapNetwork,
    architecture,
)
from sfmprep.models.semidense.pointmap_search import (
    anchored,
    by_descriptors,
    by_points,
)
from sfmprep.models.shared.adapter import Adapter, below, in_parts, inference
from sfmprep.models.shared.extraction import only_row, prepared_as
from sfmprep.models.shared.precision import Where
from sfmprep.progress import batched
from sfmprep.types import DenseMatches, Float32, ImageBatch
from sfmprep.weights import ResolvedWeights

_KINDS = {"dust3r-linear": "linear", "dust3r-dpt": "dpt", "mast3r": "mast3r"}
_MIN_CONFIDENCE = 3.0  # of points that count for a pose, as its authors have it
_BATCH_SHARE = 4  # its activations take four times the memory of an extractor's
_BATCH_TOKENS = 1 << 14  # of the pairs that go through a GPU at once


class Pointmaps:
    """Matches with DUSt3R or MASt3R, from what was encoded once for each image.

    The precision is that of encoder and decoders; the heads are in float32.
    """

    def __init__(self, config: PointmapConfig, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        tensors = network_tensors(self._adapter.tensors(), self._adapter.weights)
        found = architecture(tensors)
        if found is None or found.kind != (kind := _KINDS[config.model]):
            names = {kind: model for model, kind in _KINDS.items()}
            what = names[found.kind] if found else "neither DUSt3R nor MASt3R"
            raise WeightsError(
                f"weights of {config.model}: {self._adapter.weights.path} holds"
                f" {what}. Expected the tensors of {config.model}, which the key"
                " `model` of the recipe names; correct it or the key `weights`."
            )
        self._is_mast3r = kind == "mast3r"
        with torch.device("meta"):  # 2.7 GB that the file's tensors take the place of
            network = PointmapNetwork(found)
        self._network = self._adapter.load(network, tensors)
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(config.max_size, share=_BATCH_SHARE)

    @in_parts
    def prepare(self, batch: ImageBatch) -> list[DenseImage]:
        """Encodes the middle of each image, whose sides are multiples of 16 pixels.

        Of square images the middle three quarters of their rows; images of fewer than
        16 pixels a side have no tokens.
        """
        corner, size = cropped(batch.network_size)
        pixels = self._adapter.pixels(batch)
        pixels = pixels[..., corner[1] :, corner[0] :][..., : size[1], : size[0]]
        grid = (size[1] // PATCH, size[0] // PATCH)
        if grid[0] * grid[1]:
            with self._adapter.halved():
                tokens = self._network.encode(2 * pixels - 1).float()
        else:
            tokens = pixels.new_empty((len(batch), 0, 1))
        return [
            PointmapImage(
                tokens=only_row(tokens, row),
                grid=grid,
                corner=corner,
                stride=self._config.stride,
                placed=Placed.of(batch, row),
            )
            for row in range(len(batch))
        ]

    def match(
        self, pairs: Sequence[tuple[DenseImage, DenseImage]]
    ) -> list[DenseMatches]:
        """Finds pixels of each second image for those of a grid of the first.

        Pairs of equal sizes go through the network together.

        Returns:
            Per pair what `DenseMatcher.match` promises; scores are the smaller
            confidence of the two pixels, brought to 0..1: 1 - 1 / C of DUSt3R's, which
            begins at 1, and 1 - 1 / (1 + Q) of that of MASt3R's descriptors.
        """
        sides = prepared_as(PointmapImage, pairs)
        results: dict[int, DenseMatches] = {}
        for items in self._batches(sides):
            group = [sides[item] for item in items]
            cost = len(group[0][0]) + len(group[0][1])
            found = self._adapter.pairs.run(self._match_batch, group, max(cost, 1))
            results.update(zip(items, found, strict=True))
        return [results[item] for item in range(len(pairs))]

    @inference
    def points(self, first: DenseImage, second: DenseImage) -> tuple[Points, Points]:
        """Points of both images in the camera of the first.

        Raises:
            ValueError: an image was prepared by another kind of matcher, or is smaller
                than 16 pixels a side.
            DeviceError: the pair does not fit into the memory of the device.
        """
        [sides] = prepared_as(PointmapImage, [(first, second)])
        if not all(len(side) for side in sides):
            raise ValueError("an image of fewer than 16 pixels a side has no points")
        [maps] = self._adapter.pairs.each(self._pointmaps, [[sides]])
        found = [
            Points(
                points=pointmap.points[0].flatten(0, 1).cpu().numpy(),
                confidence=(sure := pointmap.confidence[0].flatten().cpu().numpy()),
                is_sure=sure > _MIN_CONFIDENCE,
                xy=side.seen(torch.arange(side.num_pixels)),
                placed=side.placed,
            )
            for side, pointmap in zip(sides, maps, strict=True)
        ]
        return found[0], found[1]

    def _batches(
        self, sides: Sequence[tuple[PointmapImage, PointmapImage]]
    ) -> Iterator[Sequence[int]]:
        """Yields the numbers of the pairs that go into one batch, each pair once."""
        groups: dict[tuple[tuple[int, int], tuple[int, int]], list[int]] = {}
        for item, (first, second) in enumerate(sides):
            groups.setdefault((first.grid, second.grid), []).append(item)
        for items in groups.values():
            # A CPU gains nothing from more than one.
            is_cpu = self._adapter.device.type == "cpu"
            first, second = sides[items[0]]
            limit = 0 if is_cpu else _BATCH_TOKENS // max(len(first) + len(second), 1)
            yield from batched(items, max(1, limit))

    @inference
    def _match_batch(
        self, pairs: Sequence[tuple[PointmapImage, PointmapImage]]
    ) -> list[DenseMatches]:
        if not all(len(image) for image in pairs[0]):
            none = np.empty((0, 2), np.float32)
            return [
                DenseMatches(xy0=none, xy1=none, scores=np.empty(0, np.float32))
                for _ in pairs
            ]
        maps = self._pointmaps(pairs)
        return [
            self._matched(pair, *(_item(side, number) for side in maps))
            for number, pair in enumerate(pairs)
        ]

    def _pointmaps(
        self, pairs: Sequence[tuple[PointmapImage, PointmapImage]]
    ) -> tuple[Pointmap, Pointmap]:
        """The pointmaps of pairs of equal sizes."""
        grids = pairs[0][0].grid, pairs[0][1].grid
        with self._adapter.halved():
            seen = self._network.decode(
                (
                    torch.cat([first.tokens for first, _ in pairs]),
                    torch.cat([second.tokens for _, second in pairs]),
                ),
                grids,
            )
        first, second = (
            self._network.look(side, seen[side], grids[side]) for side in (0, 1)
        )
        return first, second

    def _matched(
        self,
        pair: tuple[PointmapImage, PointmapImage],
        first: Pointmap,
        second: Pointmap,
    ) -> DenseMatches:
        """Matches one pair from its pointmaps, without batch."""
        if self._is_mast3r:
            rows = first.descriptors, second.descriptors
            sure = first.descriptor_confidence, second.descriptor_confidence
            find = by_descriptors
        else:
            rows = first.points, second.points
            sure = first.confidence - 1, second.confidence - 1
            find = by_points
        flat = [row.flatten(0, 1) for row in rows if row is not None]
        confidence = [each.flatten() for each in sure if each is not None]
        starts = pair[0].starts().to(flat[0].device)
        kept, ends = anchored(
            find(flat[0], flat[1]),
            find(flat[1], flat[0]),
            starts,
            width=pair[0].grid[1] * PATCH,
            tolerance=self._config.tolerance,
        )
        least = confidence[0][starts[kept]].minimum(confidence[1][ends])
        score = 1 - 1 / (1 + least)
        order = score.argsort(descending=True, stable=True)
        order = order[score[order] > self._config.min_score]
        return DenseMatches(
            xy0=pair[0].keypoints[kept[order].cpu().numpy()],
            xy1=pair[1].stored(ends[order]),
            scores=score[order].cpu().numpy(),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class PointmapImage:
    """One image on the device of the matcher that prepared it."""

    tokens: Tensor  # [1, h w, C] float32
    grid: tuple[int, int]  # (h, w) tokens
    corner: tuple[int, int]  # (x, y) of the crop, pixels of the batch
    stride: int  # pixels from one start to the next
    placed: Placed

    def __len__(self) -> int:
        """How many tokens it has."""
        return self.tokens.shape[1]

    @property
    def num_bytes(self) -> int:
        """How much memory of the device it holds."""
        return self.tokens.nbytes

    @property
    def num_pixels(self) -> int:
        """How many pixels the network saw of it."""
        return len(self) * PATCH**2

    @property
    def keypoints(self) -> Float32:
        """Where its matches start, [K, 2] COLMAP pixels of the file on disk."""
        return self.stored(self.starts())

    def starts(self) -> Tensor:
        """The pixels [K] of the grid, numbered row by row, in the middle of cells."""
        height, width = (PATCH * side for side in self.grid)
        y, x = (
            torch.arange(0, side, self.stride) + self.stride // 2
            for side in (height, width)
        )
        return (y[y < height, None] * width + x[x < width]).flatten()

    def stored(self, pixels: Tensor) -> Float32:
        """COLMAP pixels [M, 2] of the file for pixels [M], numbered row by row."""
        return self.placed.stored(self.seen(pixels))

    def seen(self, pixels: Tensor) -> Float32:
        """COLMAP pixels [M, 2] of the batch for pixels [M], numbered row by row."""
        width = max(PATCH * self.grid[1], 1)
        xy = torch.stack((pixels % width, pixels // width), 1).cpu().numpy()
        return colmap_from_centre(xy + np.array(self.corner))


def cropped(size: tuple[int, int]) -> tuple[tuple[int, int], tuple[int, int]]:
    """The middle of an image (W, H) that its network takes.

    Returns:
        The corner (x, y) and the size (W, H), which are multiples of 16 pixels. Of
        square images, which the networks were not trained with, three quarters of the
        height.
    """
    middle = [side // 2 for side in size]
    half = [2 * each // PATCH * PATCH // 2 for each in middle]
    if size[0] == size[1]:
        half[1] = 3 * half[0] // 4 // (PATCH // 2) * (PATCH // 2)
    corner = (middle[0] - half[0], middle[1] - half[1])
    return corner, (2 * half[0], 2 * half[1])


def network_tensors(
    tensors: Mapping[str, Tensor], weights: ResolvedWeights
) -> dict[str, Tensor]:
    """The tensors of a file under the names of `PointmapNetwork`, in float32.

    Those of a DPT head stand in the authors' checkpoints twice, as `layer_rn.0` and as
    `layer1_rn`.

    Raises:
        WeightsError: such two are not the same.
    """
    named = below(tensors, "model.") or dict(tensors)
    for name in [name for name in named if ".scratch.layer_rn." in name]:
        before, _, after = name.partition("layer_rn.")
        number, _, kind = after.partition(".")
        alias = named.pop(name)
        twin = named.get(f"{before}layer{int(number) + 1}_rn.{kind}", alias)
        if not torch.equal(alias, twin):
            raise WeightsError(
                f"weights of {weights.name}: {weights.path} holds two different"
                f" tensors for one, {name}. Put a good copy in its place."
            )
    return {name: tensor.float() for name, tensor in named.items()}


def _item(side: Pointmap, number: int) -> Pointmap:
    """One of a batch."""
    local, sure = side.descriptors, side.descriptor_confidence
    return Pointmap(
        side.points[number],
        side.confidence[number],
        None if local is None else local[number],
        None if sure is None else sure[number],
    )
