"""Mutual nearest neighbours of descriptors, with Lowe's ratio test."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch

from sfmprep.config import NearestConfig
from sfmprep.errors import ConfigError
from sfmprep.models.pair_batches import (
    group_by_size,
    is_row,
    pad_rows,
    sorted_matches,
    unit_descriptors,
)
from sfmprep.types import Features, Matches

# Similarities that are in memory at once: 8 MiB keep a block in the caches of a
# CPU, 1 GiB keep a GPU busy.
_CPU_BUDGET = 1 << 21
_GPU_BUDGET = 1 << 28

# Below this squared distance float32 cosines do not tell two descriptors apart, so a
# keypoint that was found twice has the ratio 1 instead of rounding noise. One step of
# one byte of a RootSIFT descriptor is 4e-6.
_MIN_SQUARED_DISTANCE = 1e-6


class Nearest:
    """Matches each descriptor with its nearest, where that holds in both directions.

    The distance is the Euclidean one of unit descriptors, d^2 = 2 - 2 cos. The ratio
    test (Lowe, IJCV 2004) keeps a match if best distance <= `ratio` * second best
    distance and, like COLMAP's cross-check, is asked of both images, so it does not
    matter which image is the first. On SIFT of fountain-P11, images 4 and 7, it left
    701 matches, 96.0 % of them within 3 px of the true epipolar line; asked of the
    first image alone, 765 and 93.3 %; not asked, 1636 and 55.9 %; asked of angles, as
    COLMAP does, 704 and 95.7 %. Where the other image has one keypoint, there is no
    second best and the test passes.

    Scores are cosines, cut to 0..1. Of equally near descriptors the one with the
    lowest row is the nearest; with `ratio` below 1 such keypoints are not matched.
    """

    def __init__(self, config: NearestConfig, *, device: str = "cpu") -> None:
        self._config = config
        self._device = device
        on_cpu = torch.device(device).type == "cpu"
        self._budget = _CPU_BUDGET if on_cpu else _GPU_BUDGET

    @property
    def weights_sha256(self) -> None:
        """None: nothing here was learned."""
        return None

    @torch.inference_mode()
    def match(self, pairs: Sequence[tuple[Features, Features]]) -> list[Matches]:
        """Matches each pair; see `protocols.Matcher`.

        Raises:
            ConfigError: not all descriptors have the same length.
        """
        results = [Matches.none()] * len(pairs)
        filled = [k for k, (a, b) in enumerate(pairs) if len(a) and len(b)]
        dims = {side.descriptors.shape[1] for k in filled for side in pairs[k]}
        if len(dims) > 1:
            raise ConfigError(
                f"descriptors of lengths {sorted(dims)} cannot be matched with each"
                " other. Extract the features of all images with one recipe."
            )
        sizes = [(len(pairs[k][0]), len(pairs[k][1])) for k in filled]
        for group in group_by_size(sizes, lambda m, n: m * n, self._budget):
            chosen = [filled[g] for g in group]
            matches = self._match_batch([pairs[k] for k in chosen])
            for k, match in zip(chosen, matches, strict=True):
                results[k] = match
        return results

    def _match_batch(self, pairs: list[tuple[Features, Features]]) -> list[Matches]:
        first, second = (
            [unit_descriptors(pair[side]) for pair in pairs] for side in (0, 1)
        )
        rows0, rows1 = pad_rows(first, self._device), pad_rows(second, self._device)
        counts0, counts1 = (
            torch.tensor([len(item) for item in side], device=self._device)
            for side in (first, second)
        )
        ahead = _find_nearest(rows0, rows1, counts1, self._budget)
        kept = self._passes(ahead) & is_row(counts0, rows0.shape[1])

        # Only those rows of the second image that were chosen need to look back.
        chosen = torch.zeros(rows1.shape[:2], dtype=torch.long, device=self._device)
        chosen.scatter_add_(1, ahead.row, kept.long())
        chosen_first = torch.argsort(
            chosen.clamp(max=1), dim=1, descending=True, stable=True
        )
        looking = chosen_first[:, : int((chosen > 0).sum(1).max())]
        back = _find_nearest(
            torch.take_along_dim(rows1, looking[..., None], 1),
            rows0,
            counts0,
            self._budget,
        )
        origin = torch.full_like(chosen, -1)
        origin.scatter_(1, looking, torch.where(self._passes(back), back.row, -1))
        here = torch.arange(rows0.shape[1], device=self._device)
        kept &= origin.gather(1, ahead.row) == here
        results = []
        for item, row1, cosine in zip(kept, ahead.row, ahead.cosine, strict=True):
            row0 = item.nonzero().squeeze(1)
            results.append(sorted_matches(row0, row1[row0], cosine[row0].clamp(0, 1)))
        return results

    def _passes(self, nearest: _Neighbours) -> torch.Tensor:
        passes = torch.ones_like(nearest.row, dtype=torch.bool)
        if self._config.min_similarity is not None:
            passes &= nearest.cosine >= self._config.min_similarity
        if self._config.ratio is not None:
            best, second = (
                (2 - 2 * cosine).clamp(min=_MIN_SQUARED_DISTANCE)
                for cosine in (nearest.cosine, nearest.second_cosine)
            )
            passes &= best <= self._config.ratio**2 * second
        return passes


class _Neighbours(NamedTuple):
    """The nearest and second nearest of each of M rows, B times."""

    row: torch.Tensor  # [B, M] int64
    cosine: torch.Tensor  # [B, M]
    second_cosine: torch.Tensor  # [B, M], -inf where there is no second


def _find_nearest(
    rows: torch.Tensor,  # [B, M, D]
    others: torch.Tensor,  # [B, N, D]
    num_others: torch.Tensor,  # [B] how many of N are no padding
    budget: int,  # similarities in memory at once
) -> _Neighbours:
    batch, columns = others.shape[:2]
    padding = ~is_row(num_others, columns)[:, None]
    is_padded = bool(padding.any())
    blocks = []
    for block in torch.split(rows, max(1, budget // (batch * columns)), dim=1):
        similarity = block @ others.mT
        if is_padded:
            similarity.masked_fill_(padding, -torch.inf)
        cosine, row = similarity.max(2)
        similarity.scatter_(2, row[..., None], -torch.inf)
        blocks.append(_Neighbours(row, cosine, similarity.amax(2)))
    return _Neighbours(*(torch.cat(part, 1) for part in zip(*blocks, strict=True)))
