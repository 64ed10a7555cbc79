"""LoFTR: semi-dense matches that start on a grid of the first image.

Paper: Sun, Shen, Wang, Bao, Zhou, "LoFTR: Detector-Free Local Feature Matching with
Transformers", CVPR 2021. The modules are kornia's (`feature.LoFTR`), code and weights
Apache-2.0, and give the same matches. What differs: backbone and first layer of the
transformer run once an image, and the matrix of all confidences is never made.

Cell (x, y) is the point (8 x, 8 y) in COLMAP pixels, not in pixel centres: the poses
and depths that LoFTR was trained with are COLMAP's, and kornia documents the same.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Unpack

import numpy as np
import torch
from kornia.feature import LoFTR
from kornia.feature.loftr.loftr import default_cfg

from sfmprep.config import LoftrConfig
from sfmprep.coords import Placed
from sfmprep.models.protocols import DenseImage
from sfmprep.models.semidense.dual_softmax import (
    MutualMatches,
    is_inner,
    mutual_matches,
    without_border,
)
from sfmprep.models.shared.adapter import Adapter, below, in_parts, inference
from sfmprep.models.shared.extraction import only_row, padded_grey, prepared_as
from sfmprep.models.shared.precision import Where
from sfmprep.progress import batched
from sfmprep.types import DenseMatches, Float32, ImageBatch

_CELL = 8  # pixels from one token to the next
_FINE_STRIDE = 2  # pixels of one cell of the fine map
_BATCH_SHARE = 4  # its maps take four times the memory of an extractor's
_BATCH_TOKENS = 1 << 17  # of the pairs that go through a GPU at once
_FINE_WINDOWS = 4096  # that are correlated at once: 52 MB a map


class Loftr:
    """Matches with LoFTR, from what was computed once for each image.

    The precision is that of the backbone and of what is kept of its fine map; the
    transformers are in float32.
    """

    def __init__(self, config: LoftrConfig, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        tensors = self._adapter.tensors()
        self._network = self._adapter.load(
            loftr_network(config.model), below(tensors, "state_dict.") or tensors
        )
        self._network.backbone.to(self._adapter.dtype)
        self._temperature: float = self._network.coarse_matching.temperature
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(config.max_size, share=_BATCH_SHARE)

    @in_parts
    def prepare(self, batch: ImageBatch) -> list[DenseImage]:
        """Computes the maps of each image of a batch."""
        # Every cell begins in the image, so none is masked.
        grey = padded_grey(self._adapter.pixels(batch), multiple=_CELL)
        network = self._network
        coarse, fine = network.backbone(grey.to(network.backbone.conv1.weight.dtype))
        height, width = coarse.shape[2:]
        tokens = network.pos_encoding(coarse.float()).flatten(2).mT.contiguous()
        # The first layer sees each image alone.
        tokens = network.loftr_coarse.layers[0](tokens, tokens)
        return [
            LoftrImage(
                tokens=only_row(tokens, row),
                fine=only_row(fine, row),
                grid=(height, width),
                placed=Placed.of(batch, row),
            )
            for row in range(len(batch))
        ]

    def match(
        self, pairs: Sequence[tuple[DenseImage, DenseImage]]
    ) -> list[DenseMatches]:
        """Locates cells of each first image in the second.

        Pairs of equal sizes go through the network together.

        Returns:
            Per pair what `DenseMatcher.match` promises; scores are the confidence that
            the cells belong together. Images of fewer than 5 cells (33 pixels) a side
            have no matches.
        """
        sides = prepared_as(LoftrImage, pairs)
        results: dict[int, DenseMatches] = {}
        for items in self._batches(sides):
            group = [sides[item] for item in items]
            found = self._adapter.pairs.run(
                self._match_batch, group, _num_tokens(*group[0])
            )
            results.update(zip(items, found, strict=True))
        return [results[item] for item in range(len(pairs))]

    def _batches(
        self, sides: Sequence[tuple[LoftrImage, LoftrImage]]
    ) -> Iterator[Sequence[int]]:
        """Yields the numbers of the pairs that go into one batch, each pair once."""
        groups: dict[tuple[tuple[int, int], tuple[int, int]], list[int]] = {}
        for item, (first, second) in enumerate(sides):
            groups.setdefault((first.grid, second.grid), []).append(item)
        for items in groups.values():
            # A CPU gains nothing from more than one.
            is_cpu = self._adapter.device.type == "cpu"
            limit = 0 if is_cpu else _BATCH_TOKENS // _num_tokens(*sides[items[0]])
            yield from batched(items, max(1, limit))

    @inference
    def _match_batch(
        self, pairs: Sequence[tuple[LoftrImage, LoftrImage]]
    ) -> list[DenseMatches]:
        grid0, grid1 = (image.grid for image in pairs[0])
        tokens0, tokens1 = (
            torch.cat([image.tokens for image in images])
            for images in zip(*pairs, strict=True)
        )
        transformer = self._network.loftr_coarse
        for layer, kind in zip(
            transformer.layers[1:], transformer.layer_names[1:], strict=True
        ):
            if kind == "self":
                tokens0, tokens1 = layer(tokens0, tokens0), layer(tokens1, tokens1)
            else:
                tokens0 = layer(tokens0, tokens1)
                tokens1 = layer(tokens1, tokens0)
        found = mutual_matches(
            tokens0,
            tokens1,
            temperature=self._temperature,
            min_confidence=self._config.min_score,
        )
        found = without_border(found, grid0, grid1)
        return [
            self._measured(
                pair,
                tokens0[item : item + 1],
                tokens1[item : item + 1],
                MutualMatches(*(column[found.batch == item] for column in found)),
            )
            for item, pair in enumerate(pairs)
        ]

    def _measured(
        self,
        pair: tuple[LoftrImage, LoftrImage],
        tokens0: torch.Tensor,
        tokens1: torch.Tensor,
        found: MutualMatches,
    ) -> DenseMatches:
        """Measures the matches of one pair, whose tokens went through all layers."""
        image0, image1 = pair
        order = found.confidence.argsort(descending=True, stable=True)
        first, second = found.first[order], found.second[order]
        xy1 = [first.new_empty((0, 2), dtype=torch.float32)]
        for start in range(0, len(order), _FINE_WINDOWS):
            rows = slice(start, start + _FINE_WINDOWS)
            data: dict[str, Any] = {
                "stride_c": _CELL,
                "stride_f": _FINE_STRIDE,
                "b_ids": torch.zeros_like(first[rows]),
                "i_ids": first[rows],
                "j_ids": second[rows],
                "mkpts0_c": _cell_xy(first[rows], image0.grid),
                "mkpts1_c": _cell_xy(second[rows], image1.grid),
                "mconf": found.confidence[order[rows]],
            }
            windows = self._network.fine_preprocess(
                image0.fine.float(), image1.fine.float(), tokens0, tokens1, data
            )
            self._network.fine_matching(*self._network.loftr_fine(*windows), data)
            xy1.append(data["mkpts1_f"])
        return DenseMatches(
            xy0=image0.placed.stored(_cell_xy(first, image0.grid).cpu().numpy()),
            xy1=image1.placed.stored(torch.cat(xy1).cpu().numpy()),
            scores=found.confidence[order].clamp(max=1).cpu().numpy(),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class LoftrImage:
    """One image on the device of the matcher that prepared it."""

    tokens: torch.Tensor  # [1, h w, 256] float32, after the first layer
    fine: torch.Tensor  # [1, 128, 4 h, 4 w]
    grid: tuple[int, int]  # (h, w) cells
    placed: Placed

    @property
    def num_bytes(self) -> int:
        """How much memory of the device it holds."""
        return self.tokens.nbytes + self.fine.nbytes

    @property
    def keypoints(self) -> Float32:
        """Where its matches start, [K, 2] COLMAP pixels of the file on disk.

        One a cell, without the outermost two cells at each side, row by row. Images of
        fewer than 5 cells a side have none.
        """
        cells = torch.arange(self.grid[0] * self.grid[1])
        inner = cells[is_inner(cells, self.grid)]
        xy: Float32 = _cell_xy(inner, self.grid).numpy().astype(np.float32)
        return self.placed.stored(xy)


def loftr_network(model: str) -> LoFTR:
    """LoFTR in evaluation mode with random weights, ready for those of `model`."""
    config: dict[str, Any] = copy.deepcopy(default_cfg)
    # The indoor checkpoint was trained anew with the position encoding as intended.
    config["coarse"]["temp_bug_fix"] = model == "loftr-indoor"
    return LoFTR(pretrained=None, config=config).eval()


def _cell_xy(cells: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The points (x, y) of cells [M] in pixels of the network, [M, 2] float32."""
    return _CELL * torch.stack([cells % grid[1], cells // grid[1]], 1).float()


def _num_tokens(*images: LoftrImage) -> int:
    return sum(image.grid[0] * image.grid[1] for image in images)
