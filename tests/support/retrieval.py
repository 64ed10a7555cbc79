"""A small MegaLoc of random weights."""

from __future__ import annotations

import torch
from torch import Tensor

from sfmprep.models.retrieval.megaloc import MegaLocNetwork


def megaloc_tensors(
    *, width: int = 64, depth: int = 2, clusters: int = 8, outputs: int = 32
) -> dict[str, Tensor]:
    """Its tensors; what a cluster holds has 16 values, and so has the token."""
    agg = "aggregator.agg."
    shapes = {
        "backbone.patch_embed.proj.weight": (width, 3, 14, 14),
        **{f"backbone.blocks.{k}.norm1.weight": (width,) for k in range(depth)},
        f"{agg}score.0.weight": (16, width, 1, 1),
        f"{agg}score.3.weight": (clusters, 16, 1, 1),
        f"{agg}cluster_features.0.weight": (16, width, 1, 1),
        f"{agg}cluster_features.3.weight": (16, 16, 1, 1),
        f"{agg}token_features.0.weight": (16, width),
        f"{agg}token_features.2.weight": (16, 16),
        "aggregator.linear.weight": (outputs, 16 + 16 * clusters),
    }
    network = MegaLocNetwork({key: torch.empty(s) for key, s in shapes.items()})
    return dict(network.state_dict())
