"""S2LD: matches that start at one keypoint a cell and are located in the other image.

The network and its sources are in `s2ld_network.py`. Its weights have no stated licence
and are not fetched: the user brings the file.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch

from sfmprep.config import S2ldConfig
from sfmprep.coords import Placed
from sfmprep.models.protocols import DenseImage
from sfmprep.models.semidense.dual_softmax import BORDER
from sfmprep.models.semidense.s2ld_network import (
    CELL,
    WINDOW_REACH,
    S2ldMaps,
    S2ldNetwork,
)
from sfmprep.models.shared.adapter import Adapter, below, in_parts, inference
from sfmprep.models.shared.extraction import only_row, padded_grey, prepared_as
from sfmprep.models.shared.precision import Where
from sfmprep.types import DenseMatches, Float32, ImageBatch

_BATCH_SHARE = 4  # its maps take four times the memory of an extractor's


class S2ld:
    """Matches with S2LD, from what was computed once for each image.

    The precision is that of backbone and transformer; similarities are in float32.
    """

    def __init__(self, config: S2ldConfig, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        tensors = network_tensors(self._adapter.tensors())
        self._network = self._adapter.load(S2ldNetwork(), tensors)
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(config.max_size, share=_BATCH_SHARE)

    @in_parts
    def prepare(self, batch: ImageBatch) -> list[DenseImage]:
        """Finds the keypoints and computes the maps of each image of a batch."""
        # Every cell begins in the image, so none is masked.
        grey = padded_grey(self._adapter.pixels(batch), multiple=CELL)
        maps = self._network.extract(grey)
        tokens = self._network.tokens(maps)
        # The tokens stand for it.
        maps = maps._replace(coarse=tokens.new_empty(len(batch), 0))
        table = maps.keypoints.cpu().numpy()
        images = (Placed.of(batch, row) for row in range(len(batch)))
        return [
            S2ldImage(
                maps=S2ldMaps(*(only_row(part, row) for part in maps)),
                tokens=only_row(tokens, row),
                placed=placed,
                table=placed.stored(table[row]),
            )
            for row, placed in enumerate(images)
        ]

    def match(
        self, pairs: Sequence[tuple[DenseImage, DenseImage]]
    ) -> list[DenseMatches]:
        """Locates keypoints of each first image in the second.

        Returns:
            Per pair what `DenseMatcher.match` promises; scores are the confidence that
            the cells belong together. Images of fewer than 5 cells (33 pixels) a side
            have no matches.
        """
        # One by one: a pair fills a device, and pairs of a batch had to be of one size.
        return self._adapter.pairs.each(self._match_one, prepared_as(S2ldImage, pairs))

    @inference
    def _match_one(self, pair: tuple[S2ldImage, S2ldImage]) -> DenseMatches:
        image0, image1 = pair
        tokens = self._network.cross(image0.tokens, image1.tokens)
        maps0, maps1 = image0.maps, image1.maps
        item, first, second, confidence = self._network.coarse_matches(
            *tokens, maps0.grid, maps1.grid, min_confidence=self._config.min_score
        )
        order = confidence.argsort(descending=True, stable=True)
        item, first, second = item[order], first[order], second[order]
        places = self._network.fine(maps0, maps1, *tokens, item, first, second)
        xy1 = maps1.keypoints[0, second] + places[:, :2] * WINDOW_REACH
        return DenseMatches(
            xy0=image0.table[first.cpu().numpy()],
            xy1=image1.placed.stored(xy1.cpu().numpy()),
            scores=confidence[order].clamp(max=1).cpu().numpy(),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class S2ldImage:
    """One image on the device of the matcher that prepared it."""

    maps: S2ldMaps  # of one image, without the coarse one
    tokens: torch.Tensor  # [1, h w, 256]
    placed: Placed
    table: Float32  # [h w, 2] keypoints of all cells, COLMAP pixels of the file

    @property
    def num_bytes(self) -> int:
        """How much memory of the device it holds."""
        return sum(part.nbytes for part in (*self.maps, self.tokens))

    @property
    def keypoints(self) -> Float32:
        """Where its matches start, [K, 2] COLMAP pixels of the file on disk.

        One a cell, without the outermost two cells at each side, row by row. Images of
        fewer than 5 cells a side have none.
        """
        cells = self.table.reshape(*self.maps.grid, 2)
        inner = cells[BORDER:-BORDER, BORDER:-BORDER]
        return np.ascontiguousarray(inner.reshape(-1, 2))


def network_tensors(tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Names a checkpoint's tensors as the network does.

    Of a training checkpoint they are what lies under `state_dict`. The prefix
    `matcher.` goes, and so does the position encoding, which is computed.
    """
    named = below(tensors, "state_dict.") or tensors
    named = below(named, "matcher.") or named
    return {k: tensor for k, tensor in named.items() if k != "pos_encoding.pe"}
