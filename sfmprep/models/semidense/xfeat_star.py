"""XFeat*: semi-dense matches from the cells of XFeat's descriptor map.

Paper: Potje, Cadar, Araujo, Martins, Nascimento, "XFeat: Accelerated Features for
Lightweight Image Matching", CVPR 2024. Ported from the authors' repository
https://github.com/verlab/accelerated_features and from kornia's `feature.xfeat`, code
and weights Apache-2.0. What changed:

- Matches start at a fixed point of a cell of the first image and are measured in the
  second, the authors' the other way round.
- The network of places is asked in both directions and the answers are averaged. They
  err independently, and their mean is antisymmetric: the reverse of a match moves as
  far the other way.
- Where in its cell a match starts, and how much the network understates a movement,
  were measured on photographs warped by known homographies. By that measure the
  authors' points are a pixel off.
- One scale of the image, 1.3; the authors take a fifth of the cells from 0.6.

On eight neighbouring pairs of fountain-P11 at 1024 pixels the median distance from the
true epipolar line is 1.43 pixels for cells, 0.88 for the authors' points, 0.30 here.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

from sfmprep.config import NearestConfig, XFeatStarConfig
from sfmprep.coords import Placed, resize_xy
from sfmprep.models.extractors.xfeat import FINE_MATCHER, load_network
from sfmprep.models.matchers.nearest import Nearest, PreparedRows
from sfmprep.models.protocols import DenseImage
from sfmprep.models.shared.adapter import Adapter, below, in_parts, inference
from sfmprep.models.shared.extraction import prepared_as
from sfmprep.models.shared.precision import Where
from sfmprep.types import DenseMatches, Float32, ImageBatch, Matches

_CELL = 8  # pixels that one cell of the network's output covers, each way
_MULTIPLE = 32  # of the network's input sides
_SCALE = 1.3  # of the image that the network sees, as in the authors' finer level
_SHARPNESS = 3.0  # what logits of places are multiplied by, as the authors do
_ANCHOR = 3.7  # where in its cell a match starts, both ways, pixels of the network
_GAIN = 1.15  # of true movements over those that the network finds


class XFeatStar:
    """Matches cells of images whose descriptors are mutually nearest.

    The precision is that of the backbone; all else is in float32.
    """

    def __init__(self, config: XFeatStarConfig, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        tensors = self._adapter.tensors()
        self._network = load_network(self._adapter, tensors)
        self._fine_matcher = self._adapter.load(
            _fine_matcher(), below(tensors, FINE_MATCHER)
        )
        self._nearest = Nearest(
            NearestConfig(ratio=None, min_similarity=config.min_similarity),
            device=str(self._adapter.device),
        )
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(config.max_size)

    def match(
        self, pairs: Sequence[tuple[DenseImage, DenseImage]]
    ) -> list[DenseMatches]:
        """Locates cells of each first image in the second.

        Returns:
            Per pair what `DenseMatcher.match` promises; scores are the geometric mean
            of the confidences of the place in both directions.
        """
        sides = prepared_as(StarImage, pairs)
        matches = self._nearest.match([(a.rows, b.rows) for a, b in sides])
        # One by one: the cells of a pair are few.
        return self._adapter.pairs.each(self._located, zip(sides, matches, strict=True))

    @in_parts
    def prepare(self, batch: ImageBatch) -> list[DenseImage]:
        """Describes the most reliable cells of each image of a batch."""
        grey = self._adapter.pixels(batch).mean(1, keepdim=True)
        sides = [
            max(_MULTIPLE, int(side * _SCALE) // _MULTIPLE * _MULTIPLE)
            for side in grey.shape[2:]
        ]
        grey = F.interpolate(grey, sides, mode="bilinear", align_corners=False)
        dense, _, reliability = self._network(grey)
        width = dense.shape[2]
        dense, reliability = dense.flatten(1, 2), reliability.flatten(1)
        limit = min(self._config.max_keypoints, reliability.shape[1])
        best = reliability.topk(limit).indices
        rows = dense.gather(1, best[..., None].expand(-1, -1, dense.shape[2]))
        length = rows.norm(dim=2, keepdim=True)
        unit = F.normalize(rows, dim=2)
        cells = torch.stack([best % width, best // width], 2).float().cpu().numpy()
        images: list[DenseImage] = []
        for row in range(len(batch)):
            placed = Placed.of(batch, row)
            size = (sides[1], sides[0])
            anchors = resize_xy(
                cells[row] * _CELL + np.float32(_ANCHOR), size, placed.network_size
            )
            images.append(
                StarImage(
                    rows=PreparedRows(unit[row].clone()),
                    length=length[row].clone(),
                    anchors=anchors,
                    size=size,
                    placed=placed,
                    keypoints=placed.stored(anchors),
                )
            )
        return images

    @inference
    def _located(
        self, matched: tuple[tuple[StarImage, StarImage], Matches]
    ) -> DenseMatches:
        sides, matches = matched
        image0, image1 = sides
        index = torch.from_numpy(matches.index.astype(np.int64))
        index = index.to(self._adapter.device)
        first, second = (
            image.described(index[:, column]) for column, image in enumerate(sides)
        )
        forward, sure1 = self._place(first, second)
        backward, sure0 = self._place(second, first)
        score = (sure0 * sure1).sqrt()
        order = score.argsort(descending=True, stable=True)
        order = order[score[order] > self._config.min_score]
        movement = (forward - backward)[order] * (_GAIN / 2)
        table = torch.cat([score[order, None], movement], 1).cpu().numpy()
        rows0, rows1 = matches.index[order.cpu().numpy()].T
        xy1 = image1.anchors[rows1] + resize_xy(
            table[:, 1:], image1.size, image1.placed.network_size
        )
        return DenseMatches(
            xy0=image0.keypoints[rows0],
            xy1=image1.placed.stored(xy1),
            scores=table[:, 0].copy(),
        )

    def _place(
        self, fixed: torch.Tensor, measured: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Finds where in the cells `measured` the anchors of the cells `fixed` are.

        Returns:
            place: (x, y) in the cell, 0..7, [M, 2].
            confidence: How likely the most likely pixel is, [M] in 0..1.
        """
        logits = self._fine_matcher(torch.cat([measured, fixed], 1))
        probability = (_SHARPNESS * logits).softmax(1)
        cells = probability.view(-1, _CELL, _CELL)
        steps = torch.arange(_CELL, dtype=cells.dtype, device=cells.device)
        place = torch.stack([cells.sum(1) @ steps, cells.sum(2) @ steps], 1)
        return place, probability.amax(1)


@dataclass(frozen=True, kw_only=True, eq=False)
class StarImage:
    """The most reliable cells of one image, on the device of their matcher."""

    rows: PreparedRows  # [K, 64] unit descriptors
    length: torch.Tensor  # [K, 1] of the descriptors before
    anchors: Float32  # [K, 2] where matches start, COLMAP pixels of the batch
    size: tuple[int, int]  # (W, H) that the network saw
    placed: Placed
    keypoints: Float32  # [K, 2] the same, COLMAP pixels of the file

    @property
    def num_bytes(self) -> int:
        """How much memory of the device it holds."""
        return self.rows.num_bytes + self.length.nbytes

    def described(self, index: torch.Tensor) -> torch.Tensor:
        """Descriptors [M, 64] of cells as the network made them."""
        return self.rows.rows[index] * self.length[index]


def _fine_matcher() -> nn.Sequential:
    """Two descriptors, [M, 128], to logits of the 64 pixels of a cell, row by row."""
    layers: list[nn.Module] = []
    for inputs in (128, 512, 512, 512):
        layers += [
            nn.Linear(inputs, 512),
            nn.BatchNorm1d(512, affine=False),
            nn.ReLU(inplace=True),
        ]
    return nn.Sequential(*layers, nn.Linear(512, 64))
