"""MegaLoc: a vision transformer whose patches are shared out by optimal transport.

Papers: Berton, Masone, "MegaLoc: One Retrieval to Place Them All", CVPR workshops 2025;
its backbone is that of Oquab et al., "DINOv2", 2023, its aggregation follows Izquierdo,
Civera, "Optimal Transport Aggregation for Visual Place Recognition", CVPR 2024. Written
from them and from the shapes of the public checkpoint of gmberton/MegaLoc (MIT).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.config import MegaLocConfig
from sfmprep.errors import WeightsError
from sfmprep.models.shared.adapter import Adapter, in_parts
from sfmprep.models.shared.extraction import imagenet_normalised
from sfmprep.models.shared.precision import Where
from sfmprep.models.shared.vit import (
    EPS,
    GRID,
    Attention,
    LayerScale,
    Mlp,
    PatchEmbed,
    learned_positions,
)
from sfmprep.types import Float32, ImageBatch

PATCH = 14  # pixels a side
_HEAD_DIM = 64
_ROUNDS = 3  # of the transport
_BATCH_SHARE = 2


class MegaLoc:
    """Describes images; the precision is that of the backbone."""

    def __init__(self, config: MegaLocConfig, **where: Unpack[Where]) -> None:
        self._adapter = Adapter.of(config, **where)
        tensors = self._adapter.tensors()
        try:
            with torch.device("meta"):  # 0.9 GB that the file's take the place of
                network = MegaLocNetwork(tensors)
        except (KeyError, ValueError) as error:
            raise WeightsError(
                f"weights of megaloc: {self._adapter.weights.path} holds another"
                f" network (it lacks {error}). Correct the key `weights` of the recipe"
                " or remove it."
            ) from error
        self._network = self._adapter.load(
            network, {name: tensor.float() for name, tensor in tensors.items()}
        )
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(config.max_size, share=_BATCH_SHARE)

    @in_parts
    def embed(self, batch: ImageBatch) -> list[Float32]:
        """Describes each image; see `protocols.Retriever`.

        Those of fewer patches than clusters are enlarged.
        """
        pixels = imagenet_normalised(self._adapter.pixels(batch))
        pixels = self._network.resized(pixels)
        with self._adapter.halved():
            class_token, patches = self._network.backbone(pixels)
        rows = self._network.aggregator(class_token.float(), patches.float())
        return list(rows.cpu().numpy())


class MegaLocNetwork(nn.Module):
    """Backbone and aggregation; keys, and sizes, as in the file.

    Raises:
        KeyError: a tensor is not there that says how large the network is.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        names = [f"backbone.blocks.{k}.norm1.weight" for k in range(100)]
        self.backbone = _Backbone(
            tensors["backbone.patch_embed.proj.weight"].shape[0],
            sum(name in tensors for name in names),
        )
        self.aggregator = _Aggregator(tensors)

    def resized(self, pixels: Tensor) -> Tensor:
        """The images [B, 3, H, W] with sides that are multiples of a patch."""
        height, width = (max(1, round(side / PATCH)) for side in pixels.shape[2:])
        least = self.aggregator.num_clusters + 1
        if height * width < least:
            factor = math.sqrt(least / (height * width))
            height, width = math.ceil(height * factor), math.ceil(width * factor)
        size = (PATCH * height, PATCH * width)
        if size == tuple(pixels.shape[2:]):
            return pixels
        return F.interpolate(pixels, size, mode="bilinear", antialias=True)


class _Backbone(nn.Module):
    def __init__(self, width: int, depth: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID**2, width))
        self.patch_embed = PatchEmbed(width, PATCH)
        self.blocks = nn.ModuleList(_Block(width) for _ in range(depth))
        self.norm = nn.LayerNorm(width, EPS)

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        """The class token [B, C] and the patches [B, N, C] of images."""
        x = self.embedded(pixels)
        for block in self.blocks:
            x = block(x)
        x = self.norm(x)
        return x[:, 0], x[:, 1:]

    def embedded(self, pixels: Tensor) -> Tensor:
        """Tokens [B, 1 + N, C] with their positions."""
        patches = self.patch_embed(pixels)
        grid = pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(pixels), -1, -1)
        patches = patches + learned_positions(self.pos_embed[:, 1:], grid)
        return torch.cat((first, patches), 1)


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = Attention(width, _HEAD_DIM)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.mlp = Mlp(width, 4 * width, width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.ls1.gamma * self.attn(self.norm1(x))
        result: Tensor = x + self.ls2.gamma * self.mlp(self.norm2(x))
        return result


class _Aggregator(nn.Module):
    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        self.agg = _Transport(tensors)
        self.num_clusters = self.agg.num_clusters
        outputs, inputs = tensors["aggregator.linear.weight"].shape
        self.linear = nn.Linear(inputs, outputs)

    def forward(self, class_token: Tensor, patches: Tensor) -> Tensor:
        """Unit rows [B, D] of class tokens [B, C] and patches [B, N, C]."""
        return F.normalize(self.linear(self.agg(class_token, patches)), dim=1)


class _Transport(nn.Module):
    """Shares patches out to clusters and a bin, and sums what each gets."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()

        def sizes(name: str, last: int) -> tuple[int, int, int]:
            hidden, inputs, *_ = tensors[f"aggregator.agg.{name}.0.weight"].shape
            return inputs, hidden, len(tensors[f"aggregator.agg.{name}.{last}.weight"])

        def two(name: str) -> nn.Sequential:
            inputs, hidden, outputs = sizes(name, 3)
            return nn.Sequential(
                nn.Conv2d(inputs, hidden, 1),
                nn.Identity(),
                nn.ReLU(),
                nn.Conv2d(hidden, outputs, 1),
            )

        self.score, self.cluster_features = two("score"), two("cluster_features")
        inputs, hidden, outputs = sizes("token_features", 2)
        self.token_features = nn.Sequential(
            nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, outputs)
        )
        self.dust_bin = nn.Parameter(torch.tensor(1.0))
        self.num_clusters = sizes("score", 3)[2]

    def scores(self, patches: Tensor) -> Tensor:
        """How well patches [B, N, C] fit clusters, [B, K, N]."""
        result: Tensor = self.score(patches.mT[..., None])[..., 0]
        return result

    def log_shares(self, scores: Tensor) -> Tensor:
        """Logarithms of the shares of the clusters and the bin, [B, K + 1, N].

        Sinkhorn's iterations (Cuturi, NeurIPS 2013). A cluster holds one patch, the bin
        all others.
        """
        count, clusters = scores.shape[2], scores.shape[1]
        unit = -math.log(count + clusters)
        bins = self.dust_bin.expand(len(scores), 1, count)
        scores = torch.cat((scores, bins), 1)
        target = scores.new_full((clusters + 1,), unit)
        target[-1] += math.log(count - clusters)
        v = scores.new_zeros(len(scores), count)
        for _ in range(_ROUNDS):
            u = target - (scores + v[:, None]).logsumexp(2)
            v = unit - (scores + u[..., None]).logsumexp(1)
        return scores + u[..., None] + v[:, None] - unit

    def forward(self, class_token: Tensor, patches: Tensor) -> Tensor:
        """Unit rows of the token's features and of what clusters hold."""
        shares = self.log_shares(self.scores(patches))[:, :-1].exp()
        features = self.cluster_features(patches.mT[..., None])[..., 0]
        held = F.normalize(features @ shares.mT, dim=1).flatten(1)
        token = F.normalize(self.token_features(class_token), dim=1)
        return F.normalize(torch.cat((token, held), 1), dim=1)
