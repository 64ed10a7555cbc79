"""Correlations of two pictures' features around where their content may have gone.

Paper: Teed, Deng, "RAFT: Recurrent All-Pairs Field Transforms for Optical Flow", ECCV
2020. Otherwise than there a look-up is one window of whole pixels, blended, and outside
the picture there are zeros; so small pictures have no undefined coordinates.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

NUM_LEVELS = 4
_MAX_VOLUME_BYTES = 1 << 28  # of the correlations of one pair that are kept
_MAX_WINDOW_BYTES = 1 << 26  # of the features that are gathered at once else


class Correlation:
    """The products of the features of all pixels of two pictures, on four scales.

    They are computed once where they fit, and else for each look-up anew, so that
    memory grows with the pixels and not with their square. Pooling the products over
    the second picture equals pooling its features.

    Args:
        features: [B, D, h, w] of the first pictures.
        others: [B, D, h, w] of the second ones.
        radius: Of the window of a look-up, in pixels of the level.
        divisor: Of all products; None for the root of D.
        max_bytes: Of the products of one pair that may be kept.
    """

    def __init__(
        self,
        features: Tensor,
        others: Tensor,
        radius: int,
        *,
        divisor: float | None = None,
        max_bytes: int = _MAX_VOLUME_BYTES,
    ) -> None:
        self._radius = radius
        self._features = features.flatten(2) / (divisor or features.shape[1] ** 0.5)
        self._levels = [others]
        for _ in range(NUM_LEVELS - 1):
            self._levels.append(F.avg_pool2d(self._levels[-1], 2))
        num_products = sum(level[0, 0].numel() for level in self._levels)
        num_bytes = num_products * features[0, 0].numel() * features.element_size()
        self._volumes = (
            [
                self._features.transpose(1, 2) @ level.flatten(2)
                for level in self._levels
            ]
            if num_bytes <= max_bytes
            else None
        )

    def at(
        self,
        target: Tensor,  # [B, 2, h, w] place in the second picture, (x, y), in pixels
    ) -> Tensor:
        """The products around the target of each pixel, zero outside the picture.

        Returns:
            [B, C, h, w]: by level, then x of the window, then y.
        """
        found = []
        for number, level in enumerate(self._levels):
            bounds = torch.tensor(level.shape[:1:-1]).to(target)
            xy = target.flatten(2).transpose(1, 2) / 2**number  # [B, N, 2]
            # beyond this the whole window is outside; and integers do not overflow
            reach = self._radius + 2
            xy = torch.minimum(xy.clamp(min=-reach), bounds + reach)
            corner = xy.floor()
            window = self._window(number, corner.long())  # [B, N, x, y]
            x, y = (xy - corner)[..., None, None].unbind(2)
            window = window[:, :, :-1] * (1 - x) + window[:, :, 1:] * x
            window = window[..., :-1] * (1 - y) + window[..., 1:] * y
            found.append(window.flatten(2).transpose(1, 2))
        around: Tensor = torch.cat(found, 1).view(len(target), -1, *target.shape[2:])
        return around

    def _window(self, number: int, corner: Tensor) -> Tensor:
        """Products at the whole pixels around corners [B, N, 2]: [B, N, x, y]."""
        level = self._levels[number]
        height, width = level.shape[2:]
        steps = torch.arange(-self._radius, self._radius + 2, device=corner.device)
        x = corner[..., 0, None, None] + steps[:, None]
        y = corner[..., 1, None, None] + steps
        inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
        place = (y.clamp(0, height - 1) * width + x.clamp(0, width - 1)).flatten(2)
        if self._volumes is not None:
            values = self._volumes[number].gather(2, place)
        else:
            values = self._products(level.flatten(2), place)
        window: Tensor = values.view(inside.shape) * inside
        return window

    def _products(self, level: Tensor, place: Tensor) -> Tensor:
        """Products of each pixel with the pixels `place` [B, N, K] of a level."""
        batch, count, window = place.shape
        values: Tensor = self._features.new_empty(place.shape)
        step = max(1, _MAX_WINDOW_BYTES // (window * level.shape[1] * 4))
        for item in range(batch):
            for first in range(0, count, step):
                rows = slice(first, first + step)
                near = level[item][:, place[item, rows].flatten()]
                near = near.view(len(near), -1, window)
                here = self._features[item, :, rows]
                values[item, rows] = torch.einsum("dn,dnk->nk", here, near)
        return values
