"""What streamed matching is compared with: the matrix of all confidences."""

from __future__ import annotations

import torch


def confidence_matrix(
    tokens0: torch.Tensor,  # [N, L, D]
    tokens1: torch.Tensor,  # [N, S, D]
    *,
    mask0: torch.Tensor | None = None,  # [N, ...] bool, L in all, True for image
    mask1: torch.Tensor | None = None,  # [N, ...]
    temperature: float = 0.1,
) -> torch.Tensor:
    """[N, L, S] in 0..1; those of masked tokens are meaningless."""
    similarity = tokens0.float() @ tokens1.float().mT
    similarity = similarity / (tokens0.shape[-1] * temperature)
    if mask0 is not None:
        similarity = similarity.masked_fill(~mask0.flatten(1)[:, :, None], -1e9)
    if mask1 is not None:
        similarity = similarity.masked_fill(~mask1.flatten(1)[:, None, :], -1e9)
    return similarity.softmax(1) * similarity.softmax(2)
