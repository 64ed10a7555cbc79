"""The nearest two of descriptors, searched in distances of 8 significant bits.

A product of bfloat16 takes 0.4 of the time of one of float32 on a CPU that has it, but
its results have 8 bits: cosines of near descriptors would all be one number. So two
columns are put beside the descriptors that make the product `1 - cos` itself, of which
8 bits tell near from nearer. Bfloat16 that are not negative are in the order of their
bits as integers, whose minima are five times as fast on a CPU.

What is found is measured again in float32, the best and the second best; only who they
are, and the best of the others of a column, rests on 8 bits of descriptors and of
`1 - cos`: of several that are nearer than some 5e-4, any may be taken; those beyond
`CONFUSED` are told to about 1 %, where the ratio test asks for 20.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Columns of which only the best takes part in the search for the best column.
GROUP = 64

CONFUSED = 0.004  # `1 - cos`, up to which they may be taken for each other

_FAR = 1e30  # the distance of padding
_BEYOND = 1e20  # real ones are 2 at most
_NONE = torch.iinfo(torch.int16).max


@dataclass(frozen=True, kw_only=True, eq=False)
class RoundedRows:
    """Rows of B pairs of images, ready for products that are distances."""

    rows0: Tensor  # [B, M, D] float32 unit rows; zeros for padding
    rows1: Tensor  # [B, N, D] likewise; N is a multiple of `GROUP`
    left: Tensor  # [B, M, D + 2] bfloat16
    right: Tensor  # [B, N, D + 2]
    step: int  # rows of M at a time
    memory: Tensor  # for the distances of so many rows, bfloat16

    @staticmethod
    def of(
        rows0: Tensor,
        rows1: Tensor,
        counts0: Sequence[int],
        counts1: Sequence[int],
        step: int,
    ) -> RoundedRows:
        """Makes them of padded rows, of which so many [B] are real."""
        batch, length = rows1.shape[:2]
        num_rows = min(step, rows0.shape[1])
        return RoundedRows(
            rows0=rows0,
            rows1=rows1,
            left=_beside(-rows0, _far_rows(counts0, rows0) + 1, first=True),
            right=_beside(rows1, _far_rows(counts1, rows1), first=False),
            step=step,
            memory=rows1.new_empty(batch * num_rows * length, dtype=torch.bfloat16),
        )

    def best_two(self, start: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Finds the best two of each of the rows from `start` on.

        Returns:
            column: [B, m], the best of each row.
            cosine: [B, m] of the best, float32; -inf for padding.
            second: [B, m] of the second best; -inf where there is none.
            others: [B, N] the best cosine of each column, to 8 bits of `1 - cos`, with
                rows that have another best; -inf where there is none.
        """
        block = self.left[:, start : start + self.step]
        batch, count, length = *block.shape[:2], self.right.shape[1]
        distance = self.memory[: batch * count * length].view(batch, count, length)
        torch.bmm(block, self.right.mT, out=distance)
        bits = distance.view(torch.int16)
        groups = bits.view(batch, count, -1, GROUP)
        tops = groups.amin(3)
        first, was_first = _pop(groups, tops)
        bits.scatter_(2, first, _NONE)
        second, was_second = _pop(groups, tops)
        columns = torch.cat([first, second], 2)
        cosines = self._cosines(start, columns)
        far = torch.cat([was_first, was_second], 2).view(torch.bfloat16) > _BEYOND
        cosines.masked_fill_(far, -torch.inf)
        # 8 bits may have taken one for the other
        swap = (cosines[..., 1:] > cosines[..., :1]) & ~far[..., 1:]
        bits.scatter_(2, first, torch.where(swap, was_first, _NONE))
        bits.scatter_(2, second, torch.where(swap, _NONE, was_second))
        others = bits.amin(1).view(torch.bfloat16).float()
        return (
            torch.where(swap, second, first)[..., 0],
            cosines.amax(2),
            cosines.amin(2),
            torch.where(others < _BEYOND, 1 - others, -torch.inf),
        )

    def _cosines(self, start: int, columns: Tensor) -> Tensor:
        """Of the rows from `start` on with two columns of each, [B, m, 2] float32."""
        rows = self.rows0[:, start : start + columns.shape[1]]
        batch, length = self.rows1.shape[:2]
        image = torch.arange(batch)[:, None, None] * length
        found = self.rows1.flatten(0, 1)[columns + image]
        return (found @ rows[..., None])[..., 0]


def _pop(groups: Tensor, tops: Tensor) -> tuple[Tensor, Tensor]:
    """Finds the least of rows of bits [B, M, G, GROUP], and takes it out of `tops`.

    Returns:
        Its column [B, M, 1], and its bits.
    """
    group = tops.argmin(2, keepdim=True)
    inside = groups.gather(2, group[..., None].expand(-1, -1, 1, GROUP)).squeeze(2)
    offset = inside.argmin(2, keepdim=True)
    least = inside.gather(2, offset)
    inside.scatter_(2, offset, _NONE)
    tops.scatter_(2, group, inside.amin(2, keepdim=True))
    return group * GROUP + offset, least


def _far_rows(counts: Sequence[int], rows: Tensor) -> Tensor:
    """[B, N, 1] that puts what is padding far away."""
    is_real = torch.arange(rows.shape[1]) < torch.tensor(counts)[:, None]
    return torch.where(is_real, 0.0, _FAR)[..., None]


def _beside(rows: Tensor, distance: Tensor, *, first: bool) -> Tensor:
    """Rows with their own distance, and a one for that of the others."""
    one = torch.ones_like(distance)
    both = (distance, one) if first else (one, distance)
    return torch.cat([rows, *both], 2).bfloat16()
