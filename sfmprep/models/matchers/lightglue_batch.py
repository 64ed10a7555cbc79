"""The pairs that LightGlue works on: stacked with padding, compacted as they finish."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from sfmprep.models.matchers.pair_batches import bucket, is_row, pad_rows, to_device


@dataclass(frozen=True, eq=False)
class PreparedImage:
    """One image as the first layer takes it."""

    tokens: Tensor  # [N, D] float32
    rotation: Tensor  # [N, D / heads / 2] complex64

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_bytes(self) -> int:
        """How much memory of the device it holds."""
        return self.tokens.nbytes + self.rotation.nbytes


@dataclass(kw_only=True)
class BatchSide:
    """The keypoints of the first or of the second images of a batch."""

    tokens: Tensor  # [B, N, D]
    rotation: Tensor  # [B, N, D / heads / 2] complex
    rows: Tensor  # [B, N] which rows of the features these keypoints are
    counts: list[int]  # so many of N are keypoints; padding comes after them
    is_real: Tensor | None  # [B, N] which are no padding, or None for all

    @staticmethod
    def stack(images: list[PreparedImage], *, is_bucketed: bool) -> BatchSide:
        """Stacks one image or more; see `Batch.stack`."""
        counts = [len(image) for image in images]
        length = bucket(counts) if is_bucketed else max(counts)
        tokens = pad_rows([image.tokens for image in images], length)
        return BatchSide(
            tokens=tokens,
            rotation=pad_rows([image.rotation for image in images], length),
            rows=torch.arange(length, device=tokens.device).expand(len(images), -1),
            counts=counts,
            is_real=is_row(counts, length, tokens.device),
        )

    @property
    def mask(self) -> Tensor | None:
        """Which keys may be attended to, [B, 1, 1, N], or None for all."""
        return None if self.is_real is None else self.is_real[:, None, None]

    def only_real(self, chosen: Tensor) -> Tensor:
        """Returns `chosen` [B, N] without padding."""
        return chosen if self.is_real is None else chosen & self.is_real

    def slice(self, start: int, stop: int) -> BatchSide:
        """Returns some images, with no more padding than the largest of them."""
        counts = self.counts[start:stop]
        longest = max(counts)
        is_real = None if min(counts) == longest else self.is_real
        return BatchSide(
            tokens=self.tokens[start:stop, :longest],
            rotation=self.rotation[start:stop, :longest],
            rows=self.rows[start:stop, :longest],
            counts=counts,
            is_real=None if is_real is None else is_real[start:stop, :longest],
        )


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Pairs that have not finished."""

    items: list[int]  # which of the pairs of the call
    num_points: list[int]  # keypoints of both images before any was pruned
    sides: tuple[BatchSide, BatchSide]
    is_bucketed: bool  # whether few lengths of padded rows are better than short ones

    @staticmethod
    def stack(
        pairs: Sequence[tuple[PreparedImage, PreparedImage]], *, is_bucketed: bool
    ) -> Batch:
        """Stacks one pair or more; what was prepared is copied."""
        return Batch(
            items=list(range(len(pairs))),
            num_points=[len(first) + len(second) for first, second in pairs],
            sides=(
                BatchSide.stack([a for a, _ in pairs], is_bucketed=is_bucketed),
                BatchSide.stack([b for _, b in pairs], is_bucketed=is_bucketed),
            ),
            is_bucketed=is_bucketed,
        )

    def take(
        self,
        chosen: list[int],
        kept: Sequence[Tensor | None] = (None, None),
        counts: Sequence[list[int]] | None = None,
    ) -> Batch:
        """Returns some pairs, with no more padding than they need.

        Args:
            chosen: Which pairs, at least one.
            kept: Per side, which keypoints are kept [B, N]; without, all are.
            counts: Per side, how many are kept of each pair.
        """
        before = [side.counts for side in self.sides]
        counts = before if counts is None else counts
        if len(chosen) == len(self.items) and list(counts) == before:
            return self
        first, second = (
            self._take_side(side, chosen, keep, numbers)
            for side, keep, numbers in zip(self.sides, kept, counts, strict=True)
        )
        return Batch(
            items=[self.items[b] for b in chosen],
            num_points=[self.num_points[b] for b in chosen],
            sides=(first, second),
            is_bucketed=self.is_bucketed,
        )

    def _take_side(
        self, side: BatchSide, chosen: list[int], kept: Tensor | None, counts: list[int]
    ) -> BatchSide:
        device = side.tokens.device
        pairs = to_device(chosen, device)[:, None]
        remaining = [counts[b] for b in chosen]
        length = bucket(remaining) if self.is_bucketed else max(remaining)
        length = min(length, side.rows.shape[1])
        if kept is None or counts == side.counts:
            columns = torch.arange(length, device=device)[None]
        else:
            order = kept[pairs[:, 0]].byte()
            columns = order.argsort(dim=1, descending=True, stable=True)[:, :length]
        return BatchSide(
            tokens=side.tokens[pairs, columns],
            rotation=side.rotation[pairs, columns],
            rows=side.rows[pairs, columns],
            counts=remaining,
            is_real=is_row(remaining, length, device),
        )
