"""What streamed matching is compared with: the matrix of all confidences."""

from __future__ import annotations

import torch


def confidence_matrix(
    tokens0: torch.Tensor,  # [N, L, D]
    tokens1: torch.Tensor,  # [N, S, D]
    *,
    temperature: float = 0.1,
) -> torch.Tensor:
    """[N, L, S] in 0..1."""
    similarity = tokens0.float() @ tokens1.float().mT
    similarity = similarity / (tokens0.shape[-1] * temperature)
    return similarity.softmax(1) * similarity.softmax(2)
