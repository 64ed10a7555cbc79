"""The network of S2LD: one keypoint a cell in one image, its place in the other.

Paper: Li, Zhao, Xia, "Sparse-to-Local-Dense Matching for Geometry-Guided Correspondence
Estimation", IEEE Transactions on Image Processing 32, 2023. Written from a description
of the authors' network, whose code has no licence; none of it is here. The backbone is
kornia's, position encoding and transformer follow its `feature.loftr` (Apache-2.0, Sun
et al., "LoFTR", CVPR 2021). What changed there: attention sums the keys times tokens
before the projections to values and to the message, which saves two products over all
tokens; nothing is masked; windows are gathered around matches alone.

Image sides are multiples of 8. A cell is 8 by 8 pixels; cells are counted row by row.
Network pixels are COLMAP pixels: (0.5, 0.5) is the centre of the first. Cell (row,
column) is anchored at (8 column, 8 row), as in LoFTR. It is the supervision that says
so: intrinsics of COLMAP, and one bare product from the network's pixels to the file's,
which is exact for these pixels alone. The maps do not decide it, for a shift of both
images by half a pixel is no movement between them; only scale tells it. The functions
are differentiable in training mode, except for `coarse_matches`.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from kornia.feature.loftr.backbone.resnet_fpn import ResNetFPN_8_2
from torch import nn

from sfmprep.models.semidense.dual_softmax import (
    MutualMatches,
    mutual_matches,
    without_border,
)
from sfmprep.models.semidense.s2ld_layers import (
    FeatureAdjuster,
    KeypointDetector,
    Transformer,
    WindowContext,
)
from sfmprep.models.shared.folding import fold_batch_norms

CELL = 8
"""Pixels that a cell covers, each way."""
MAX_SIDE = 2048
"""Longest side in pixels that the position encoding was made for."""
WINDOW_REACH = 4.0
"""How far in pixels a match may be from the keypoint of its cell, each way."""
_BACKBONE = {"initial_dim": 128, "block_dims": [128, 196, 256]}
_WINDOW = 5  # fine cells, each way
_FINE = 2  # pixels that a fine cell covers


class S2ldMaps(NamedTuple):
    """What depends on one image alone."""

    coarse: torch.Tensor  # [N, 256, h, w] descriptors of the cells' keypoints
    fine: torch.Tensor  # [N, 128, 4 h, 4 w]
    offsets: torch.Tensor  # [N, 2, h, w] float32 x, y in -1.2..1.2 half cells
    scores: torch.Tensor  # [N, 1, h, w] float32 in 0..1

    @property
    def grid(self) -> tuple[int, int]:
        """(h, w), the rows and columns of cells."""
        return self.offsets.shape[2], self.offsets.shape[3]

    @property
    def keypoints(self) -> torch.Tensor:
        """One keypoint a cell, x and y in network pixels, [N, h w, 2] float32."""
        rows, columns = self.grid
        y = torch.arange(rows, device=self.offsets.device) * CELL
        x = torch.arange(columns, device=self.offsets.device) * CELL
        anchors = torch.stack(torch.meshgrid(x, y, indexing="xy"))
        return (anchors + self.offsets * (CELL / 2)).flatten(2).mT


class S2ldNetwork(nn.Module):
    """Extracts maps of images and matches them; state dict as the official one."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = ResNetFPN_8_2(_BACKBONE)
        self.keypoint_detector = KeypointDetector()
        self.feature_adjuster = FeatureAdjuster()
        self.s2ld_coarse = Transformer(256, num_layers=8)
        self.fine_preprocess = WindowContext()
        self.s2ld_fine = Transformer(128, num_layers=2)

    def prepare(self, dtype: torch.dtype) -> None:
        """Makes the network fast to evaluate, once, after its weights were loaded.

        It cannot be trained or saved afterwards: batch normalisation is folded into the
        convolutions.

        Args:
            dtype: Of weights and maps; offsets, scores, sums over tokens and
                similarities are in float32.
        """
        fold_batch_norms(self.eval())
        self.to(dtype)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def extract(
        self,
        grey: torch.Tensor,  # [N, 1, H, W] float32 in 0..1
    ) -> S2ldMaps:
        """Computes what depends on each image alone.

        Raises:
            ValueError: a side is no multiple of 8, or longer than `MAX_SIDE`.
        """
        sides = grey.shape[2:]
        if any(side % CELL or side > MAX_SIDE for side in sides):
            raise ValueError(
                f"grey.shape={tuple(grey.shape)} but expected sides that are multiples"
                f" of {CELL} up to {MAX_SIDE}"
            )
        coarse, fine = self.backbone(grey.to(self.backbone.conv1.weight.dtype))
        offsets, scores = self.keypoint_detector(coarse, fine)
        return S2ldMaps(
            coarse=self.feature_adjuster(coarse, offsets),
            fine=fine,
            offsets=offsets,
            scores=scores,
        )

    def coarse(
        self,
        maps0: S2ldMaps,
        maps1: S2ldMaps,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Lets the cells of two images see each other.

        Not symmetric: the second image sees the first one's updated cells.

        Args:
            maps0: Maps of the first images.
            maps1: Maps of the second images, which may be of another size.

        Returns:
            Tokens [N, h0 w0, 256] and [N, h1 w1, 256].
        """
        return self.cross(self.tokens(maps0), self.tokens(maps1))

    def tokens(self, maps: S2ldMaps) -> torch.Tensor:
        """Does the part of `coarse` before images see each other: [N, h w, 256]."""
        encoding = _position_encoding(*maps.grid, maps.coarse)
        tokens = (maps.coarse + encoding).flatten(2).mT.contiguous()
        return cast(torch.Tensor, self.s2ld_coarse.layers[0](tokens, tokens))

    def cross(
        self,
        tokens0: torch.Tensor,  # [N, L, 256] from `tokens`
        tokens1: torch.Tensor,  # [N, S, 256]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Does the rest of `coarse`, and returns what it returns."""
        return cast(
            tuple[torch.Tensor, torch.Tensor],
            self.s2ld_coarse(tokens0, tokens1, first_layer=1),
        )

    def coarse_matches(
        self,
        tokens0: torch.Tensor,  # [N, L, 256]
        tokens1: torch.Tensor,  # [N, S, 256]
        grid0: tuple[int, int],  # (h0, w0), h0 w0 = L
        grid1: tuple[int, int],
        *,
        min_confidence: float = 0.2,
    ) -> MutualMatches:
        """Matches cells that are each other's best and not at an image border.

        Without gradient; the confidences of all pairs are never held at once.

        Returns:
            `first` and `second` are cells, row by row. Two cells at each side of the
            image are left out.

        Raises:
            ValueError: `min_confidence` is less than 0.01.
        """
        matches = mutual_matches(tokens0, tokens1, min_confidence=min_confidence)
        return without_border(matches, grid0, grid1)

    def fine(
        self,
        maps0: S2ldMaps,
        maps1: S2ldMaps,
        tokens0: torch.Tensor,  # [N, L, 256] from `coarse`
        tokens1: torch.Tensor,  # [N, S, 256]
        batch: torch.Tensor,  # [M] int64
        first: torch.Tensor,  # [M] int64 cells of the first image
        second: torch.Tensor,  # [M] int64 cells of the second image
    ) -> torch.Tensor:
        """Locates the keypoints of matched cells in the second image.

        Any cells may be given, not only those of `coarse_matches`; M may be 0.

        Returns:
            [M, 3] float32: x and y in -1..1, to be multiplied by `WINDOW_REACH` and
            added to the second cell's keypoint, which gives network pixels; and the sum
            of their standard deviations, in the same unit.
        """
        window0, window1 = self.windows(
            maps0, maps1, tokens0, tokens1, batch, first, second
        )
        window0, window1 = self.s2ld_fine(window0, window1)
        return _expectation(window0, window1)

    def windows(
        self,
        maps0: S2ldMaps,
        maps1: S2ldMaps,
        tokens0: torch.Tensor,  # [N, L, 256]
        tokens1: torch.Tensor,  # [N, S, 256]
        batch: torch.Tensor,  # [M] int64
        first: torch.Tensor,  # [M] int64
        second: torch.Tensor,  # [M] int64
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Gathers what `fine` compares: twice [M, 25, 128], row by row."""
        return (
            self.fine_preprocess(
                _gather_windows(maps0, batch, first), tokens0[batch, first]
            ),
            self.fine_preprocess(
                _gather_windows(maps1, batch, second), tokens1[batch, second]
            ),
        )


def _position_encoding(rows: int, columns: int, like: torch.Tensor) -> torch.Tensor:
    """Sines and cosines of rows and columns counted from 1, [256, rows, columns].

    The frequencies exp(-2 k) are a slip in LoFTR's code, of which all but a few are
    next to 0; checkpoints were trained with it.
    """
    k = torch.arange(64, device=like.device, dtype=torch.float32)
    x = torch.arange(1, columns + 1, device=like.device) * (-2 * k).exp()[:, None]
    y = torch.arange(1, rows + 1, device=like.device) * (-2 * k).exp()[:, None]
    across, down = (
        torch.stack((x.sin(), x.cos()), dim=1)[:, :, None, :],
        torch.stack((y.sin(), y.cos()), dim=1)[:, :, :, None],
    )
    size = (-1, -1, rows, columns)
    encoding = torch.cat((across.expand(size), down.expand(size)), dim=1)
    return encoding.flatten(0, 1).to(like.dtype)


def _gather_windows(
    maps: S2ldMaps,
    batch: torch.Tensor,  # [M] int64
    cells: torch.Tensor,  # [M] int64
) -> torch.Tensor:
    """The fine cells around keypoints, 0 outside of the map, [M, 25, 128].

    The centre is rounded to a fine cell. A keypoint outside of the image, at most 4.8
    pixels, has the window of the nearest fine cell.
    """
    height, width = maps.fine.shape[2:]
    size = torch.tensor((width, height), device=cells.device)
    centre = (maps.keypoints[batch, cells] / _FINE).round().long()
    centre = centre.clamp(min=torch.zeros_like(size), max=size - 1)
    reach = torch.arange(_WINDOW, device=cells.device) - _WINDOW // 2
    steps = torch.cartesian_prod(reach, reach).flip(1)  # x is the faster one
    places = centre[:, None] + steps
    inside = ((places >= 0) & (places < size)).all(2)
    x, y = places.clamp(min=torch.zeros_like(size), max=size - 1).unbind(2)
    windows = maps.fine.permute(0, 2, 3, 1)[batch[:, None], y, x]
    return windows * inside[:, :, None]


def _expectation(window0: torch.Tensor, window1: torch.Tensor) -> torch.Tensor:
    """Where each first window's centre lies in the second, as `fine` returns it."""
    queries = window0[:, _WINDOW * _WINDOW // 2, :, None].float()
    heat = (window1.float() @ queries)[:, :, 0] / window0.shape[2] ** 0.5
    heat = heat.softmax(1)
    axis = torch.linspace(-1, 1, _WINDOW, device=heat.device)
    places = torch.cartesian_prod(axis, axis).flip(1)
    mean = heat @ places
    variance = heat @ places**2 - mean**2
    deviation = variance.clamp(min=1e-10).sqrt().sum(1, keepdim=True)
    return torch.cat((mean, deviation), dim=1)
