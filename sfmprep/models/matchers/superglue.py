"""SuperGlue: a graph network over the keypoints of a pair, and optimal transport.

Paper: Sarlin, DeTone, Malisiewicz, Rabinovich, "SuperGlue: Learning Feature Matching
with Graph Neural Networks", CVPR 2020. Written from it and from the shapes of the
public checkpoints of magicleap/SuperGluePretrainedNetwork (non-commercial: bring the
file, or accept the licence). What is otherwise: pairs of different keypoint counts
share a batch, each with the result that it has alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.config import SuperGlueConfig
from sfmprep.errors import ConfigError
from sfmprep.models.matchers.lightglue import scaled_positions
from sfmprep.models.matchers.pair_batches import (
    Candidates,
    collect_matches,
    is_row,
    match_in_groups,
    pad_rows,
    prepare_pairs,
    unit_descriptors,
)
from sfmprep.models.matchers.transport import NOTHING, optimal_transport
from sfmprep.models.protocols import Side
from sfmprep.models.shared.adapter import Adapter, inference
from sfmprep.models.shared.precision import Where
from sfmprep.types import Features, Matches

_DIM, _HEADS, _LAYERS = 256, 4, 18
_ENCODER = (3, 32, 64, 128, 256, 256)
_WIDTH = 1.4  # SuperGlue's unit of length in half longer sides
_CPU_BUDGET, _CUDA_BUDGET = 1 << 22, 1 << 27  # similarities of a batch


class SuperGlue:
    """Matches SuperPoint features, in float32.

    Args:
        config: The checkpoint, its threshold and the iterations of the transport.
        where: See `Where`.

    Raises:
        ConfigError: half precision without a CUDA device.
        WeightsError: the weights are missing, damaged or do not fit.
    """

    def __init__(self, config: SuperGlueConfig, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        self._network = self._adapter.load(SuperGlueNetwork())
        self.identity = self._adapter.identity
        is_cpu = self._adapter.device.type == "cpu"
        self._budget = _CPU_BUDGET if is_cpu else _CUDA_BUDGET

    @inference
    def prepare(self, features: Features) -> PreparedTokens:
        """Encodes the keypoints of an image; see `protocols.Matcher`.

        Raises:
            ConfigError: the descriptors are not of SuperPoint's length.
        """
        rows = unit_descriptors(features)
        if rows.shape[1] != _DIM:
            raise ConfigError(
                f"{self._config.model} matches descriptors of length {_DIM}, but these"
                f" have {rows.shape[1]}. Name the matcher that goes with the features"
                " in the recipe."
            )
        places = scaled_positions(features, with_scale_and_angle=False) / _WIDTH
        device = self._adapter.device
        seen = torch.cat(
            (torch.from_numpy(places), torch.from_numpy(features.scores)[:, None]), 1
        ).to(device)
        encoded = self._network.kenc(seen.T[None])[0].T if len(seen) else 0
        return PreparedTokens(torch.from_numpy(rows).to(device) + encoded)

    @inference
    def match(self, pairs: Sequence[tuple[Side, Side]]) -> list[Matches]:
        """Matches each pair; see `protocols.Matcher`.

        Raises:
            ConfigError: the descriptors are not of SuperPoint's length.
            DeviceError: a single pair does not fit into the memory of the device.
        """
        return match_in_groups(
            prepare_pairs(pairs, PreparedTokens, self.prepare),
            self._match_batch,
            cost=lambda m, n: m * n,
            budget=self._budget,
            memory=self._adapter.pairs,
            device=self._adapter.device.type,
        )

    def _match_batch(
        self, pairs: Sequence[tuple[PreparedTokens, PreparedTokens]]
    ) -> list[Matches]:
        counts = [[len(pair[side]) for pair in pairs] for side in (0, 1)]
        tokens = [
            pad_rows([pair[side].tokens for pair in pairs], max(counts[side]))
            for side in (0, 1)
        ]
        device = tokens[0].device
        real = [is_row(counts[k], max(counts[k]), device) for k in (0, 1)]
        similarity = self._network(tokens[0], tokens[1], real[0], real[1])
        log_weight = optimal_transport(
            similarity,
            self._network.bin_score,
            torch.tensor(counts, device=device).T,
            num_iterations=self._config.num_iterations,
        ).scores
        best, column = log_weight.max(2)
        rows = torch.arange(best.shape[1], device=device).expand_as(best)
        is_mutual = log_weight.argmax(1).gather(1, column) == rows
        scores = best.exp()
        is_match = is_mutual & (scores > self._config.min_score)
        scores = scores.clamp(max=1).where(is_match, -1)
        return collect_matches([Candidates(rows, column, scores)])


@dataclass(frozen=True, eq=False)
class PreparedTokens:
    """The descriptors of one image with where its keypoints are."""

    tokens: Tensor  # [N, 256] float32

    def __len__(self) -> int:
        return len(self.tokens)

    @property
    def num_bytes(self) -> int:
        """How much memory of the device it holds."""
        return self.tokens.nbytes


class SuperGlueNetwork(nn.Module):
    """Keypoint encoder, graph network and projection; keys as in the public files."""

    def __init__(self) -> None:
        super().__init__()
        self.kenc = _KeypointEncoder()
        self.gnn = _Graph()
        self.final_proj = nn.Conv1d(_DIM, _DIM, 1)
        self.bin_score = nn.Parameter(torch.tensor(1.0))

    def forward(
        self,
        tokens0: Tensor,  # [B, M, 256]
        tokens1: Tensor,  # [B, N, 256]
        real0: Tensor | None,  # [B, M] which are no padding, or None for all
        real1: Tensor | None,  # [B, N]
    ) -> Tensor:
        """Returns similarities [B, M, N], `NOTHING` where there is padding."""
        x0, x1 = self.gnn(tokens0.mT, tokens1.mT, real0, real1)
        similarity: Tensor = self.final_proj(x0).mT @ self.final_proj(x1) / _DIM**0.5
        for real, axis in ((real0, 2), (real1, 1)):
            if real is not None:
                similarity = similarity.where(real.unsqueeze(axis), NOTHING)
        return similarity


class _KeypointEncoder(nn.Module):
    """From the place and the score of a keypoint to what is added to its descriptor."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = _perceptron(*_ENCODER)

    def forward(self, seen: Tensor) -> Tensor:
        encoded: Tensor = self.encoder(seen)
        return encoded


class _Graph(nn.Module):
    """Layers in which tokens ask those of their own image and of the other in turn."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(_Layer() for _ in range(_LAYERS))

    def forward(
        self, x0: Tensor, x1: Tensor, real0: Tensor | None, real1: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        for number, layer in enumerate(self.layers):
            own, other = (x0, real0), (x1, real1)
            if number % 2:
                own, other = other, own
            x0, x1 = layer(x0, *own), layer(x1, *other)
        return x0, x1


class _Layer(nn.Module):
    """Each token is changed by what it hears from a source."""

    def __init__(self) -> None:
        super().__init__()
        self.attn = _Attention()
        self.mlp = _perceptron(2 * _DIM, 2 * _DIM, _DIM)

    def forward(self, x: Tensor, source: Tensor, is_real: Tensor | None) -> Tensor:
        message = self.attn(x, source, is_real)
        changed: Tensor = x + self.mlp(torch.cat((x, message), 1))
        return changed


class _Attention(nn.Module):
    """Attention of four heads."""

    def __init__(self) -> None:
        super().__init__()
        self.proj = nn.ModuleList(nn.Conv1d(_DIM, _DIM, 1) for _ in range(3))
        self.merge = nn.Conv1d(_DIM, _DIM, 1)

    def forward(self, x: Tensor, source: Tensor, is_real: Tensor | None) -> Tensor:
        def heads(tokens: Tensor, number: int) -> Tensor:
            # of the channels the number of the head is the fast index
            rows: Tensor = self.proj[number](tokens)
            batch, _, count = rows.shape
            return rows.view(batch, -1, _HEADS, count).permute(0, 2, 3, 1)

        heard = F.scaled_dot_product_attention(
            heads(x, 0),
            heads(source, 1),
            heads(source, 2),
            attn_mask=None if is_real is None else is_real[:, None, None],
        )
        merged: Tensor = self.merge(heard.permute(0, 3, 1, 2).flatten(1, 2))
        return merged


def _perceptron(*widths: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for inputs, outputs in itertools.pairwise(widths):
        layers += [nn.Conv1d(inputs, outputs, 1), nn.BatchNorm1d(outputs), nn.ReLU()]
    return nn.Sequential(*layers[:-2])
