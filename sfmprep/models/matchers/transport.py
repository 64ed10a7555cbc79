"""Optimal transport between the keypoints of two images, and a head that matches by it.

Paper: Sarlin, DeTone, Malisiewicz, Rabinovich, "SuperGlue: Learning Feature Matching
with Graph Neural Networks", CVPR 2020, section 3.2: a keypoint goes to one of the other
image or to its bin. Changed: pairs of different keypoint counts share a batch, and the
bins are scalars of a pair and no row and column of its matrix.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

NOTHING = -1e30  # log of what padding weighs; finite, so that sums of it are

# Of the head, in training and after it: a transport that was cut short is another one.
_ITERATIONS = 20


class Transport(NamedTuple):
    """Logarithms of a soft assignment whose rows and columns may go to a bin."""

    scores: Tensor  # [B, M, N], without the bins; below -1e29 where there is padding
    bin0: Tensor  # [B, M], of each row going to the bin
    bin1: Tensor  # [B, N], of each column


def optimal_transport(
    similarity: Tensor,
    bin_score: Tensor,
    counts: Tensor,
    *,
    num_iterations: int,
    is_symmetric: bool = False,
) -> Transport:
    """Finds the assignment by Sinkhorn's iterations, in logarithms.

    Cuturi, NeurIPS 2013. Each keypoint has the mass 1, and the bin of each side that of
    all keypoints of the other. Gradients flow through all iterations.

    Args:
        similarity: [B, M, N]; `NOTHING` where a row or a column is padding.
        bin_score: Scalar, the similarity of a keypoint with a bin.
        counts: [B, 2] real rows and columns, 1 or more.
        num_iterations: 0 or more.
        is_symmetric: Whether both sides are balanced at once, and each goes half the
            way: then the transport of the swapped images is the same, swapped. Else
            the columns have the last word, as in SuperGlue.
    """
    m, n = counts[:, :1].to(similarity), counts[:, 1:].to(similarity)
    unit = -torch.log(m + n)
    is_row, is_column = (
        torch.arange(length, device=counts.device) < count
        for length, count in zip(similarity.shape[1:], counts.T[..., None], strict=True)
    )

    def rows(v: Tensor, v_bin: Tensor) -> tuple[Tensor, Tensor]:
        return _balanced(similarity, bin_score, v, v_bin, unit, unit + n.log())

    def columns(u: Tensor, u_bin: Tensor) -> tuple[Tensor, Tensor]:
        return _balanced(similarity.mT, bin_score, u, u_bin, unit, unit + m.log())

    u, v = (
        similarity.new_zeros(is_real.shape).masked_fill(~is_real, NOTHING)
        for is_real in (is_row, is_column)
    )
    u_bin, v_bin = similarity.new_zeros(2, len(similarity), 1).unbind(0)
    for _ in range(num_iterations):
        new_u, new_u_bin = rows(v, v_bin)
        if is_symmetric:
            new_v, new_v_bin = columns(u, u_bin)
            new_u, new_v = (u + new_u) / 2, (v + new_v) / 2
            new_u_bin, new_v_bin = (u_bin + new_u_bin) / 2, (v_bin + new_v_bin) / 2
        else:
            new_v, new_v_bin = columns(new_u.where(is_row, NOTHING), new_u_bin)
        u, u_bin = new_u.where(is_row, NOTHING), new_u_bin
        v, v_bin = new_v.where(is_column, NOTHING), new_v_bin
    return Transport(
        scores=similarity + u[..., None] + v[:, None] - unit[..., None],
        bin0=bin_score + u + v_bin - unit,
        bin1=bin_score + v + u_bin - unit,
    )


def _balanced(
    similarity: Tensor,  # [B, M, N]
    bin_score: Tensor,
    other: Tensor,  # [B, N] potentials of the columns
    other_bin: Tensor,  # [B, 1]
    mass: Tensor,  # [B, 1] logarithms, of a row
    mass_bin: Tensor,  # [B, 1], of the rows' bin
) -> tuple[Tensor, Tensor]:
    """The potentials [B, M] and [B, 1] that give rows and their bin their mass."""
    into = (similarity + other[:, None]).logsumexp(2)
    own = mass - torch.logaddexp(into, bin_score + other_bin)
    rest = torch.logaddexp(other.logsumexp(1, keepdim=True), other_bin)
    return own, mass_bin - bin_score - rest


class SinkhornAssignment(nn.Module):
    """Assigns the tokens of two images by transport, in place of `MatchAssignment`.

    The reverse of a pair has the reversed matches, as of all matchers here.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.final_proj = nn.Linear(dim, dim)
        self.bin_score = nn.Parameter(torch.tensor(1.0))

    def forward(
        self,
        x0: Tensor,
        x1: Tensor,
        is_real0: Tensor | None = None,
        is_real1: Tensor | None = None,
    ) -> Tensor:
        """Returns log assignment scores [B, M, N]; see `transport`."""
        return self.transport(x0, x1, is_real0, is_real1).scores

    def transport(
        self,
        x0: Tensor,  # [B, M, D], M and N 1 or more
        x1: Tensor,  # [B, N, D]
        is_real0: Tensor | None = None,  # [B, M], rows of keypoints before padding
        is_real1: Tensor | None = None,  # [B, N]
    ) -> Transport:
        """Finds the assignment; padding does not change that of others."""
        scale = x0.shape[-1] ** -0.25
        similarity = (self.final_proj(x0) * scale) @ (self.final_proj(x1) * scale).mT
        counts = []
        for real, x, axis in ((is_real0, x0, 2), (is_real1, x1, 1)):
            if real is None:
                count = torch.full((len(x),), x.shape[1], device=x.device)
            else:
                count = real.sum(1)
                similarity = similarity.where(real.unsqueeze(axis), NOTHING)
            counts.append(count)
        return optimal_transport(
            similarity,
            self.bin_score,
            torch.stack(counts, 1),
            num_iterations=_ITERATIONS,
            is_symmetric=True,
        )
