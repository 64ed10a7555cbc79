"""The LightGlue network as training sees it: where it starts, and its tokens by layer.

Paper: Lindenberger, Sarlin, Pollefeys, "LightGlue: Local Feature Matching at Light
Speed", ICCV 2023. New here: the network starts as a dual softmax of the descriptors, so
that training begins with mutual nearest neighbours instead of with noise.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeAlias, cast

import torch
from torch import Tensor, nn

from sfmprep.models.matchers.lightglue_network import (
    LightGlueNetwork,
    LightGlueShape,
    TokenConfidence,
    TransformerLayer,
)
from sfmprep.models.matchers.transport import SinkhornAssignment

Tokens: TypeAlias = tuple[Tensor, Tensor]  # [B, M, D], [B, N, D] float32

# Of the first dual softmax: descriptors whose cosines differ by 0.02 differ by e in
# their score. It is the best for XFeat among 0.1, 0.05, 0.03, 0.02, 0.0125, 0.008.
_TEMPERATURE = 0.02

# At which a keypoint goes as gladly to its bin as to a partner, to begin with. The loss
# of two batches of the compact features was least at 0.5 and 0.6 of 0.1, 0.2, ... 1.
_COSINE_OF_NONE = 0.5

# Radians over half the longer side of an image. The paper starts at a deviation of 1
# and lets training find the higher ones; a short training finds few.
_MIN_FREQUENCY, _MAX_FREQUENCY = 0.5, 30.0

# Untrained heads must stop nothing: far below any `confidence_threshold`.
_UNSURE = -4.0


@dataclass(frozen=True, kw_only=True, eq=False)
class Keypoints:
    """The keypoints of the first or of the second images of B pairs."""

    descriptors: Tensor  # [B, N, D] float32 unit rows; zero where padding
    positions: Tensor  # [B, N, 2] float32, as `scaled_positions` gives them
    is_real: Tensor | None  # [B, N] bool, which are no padding, or None for all
    is_unmatchable: Tensor  # [B, N] bool, which surely have no partner

    @property
    def mask(self) -> Tensor | None:
        """Which keys may be attended to, [B, 1, 1, N], or None for all."""
        return None if self.is_real is None else self.is_real[:, None, None]


@dataclass(frozen=True, kw_only=True, eq=False)
class PairBatch:
    """B pairs, and what is known of their matches.

    A keypoint that is in no match and not unmatchable is left out of the losses.
    """

    sides: tuple[Keypoints, Keypoints]
    matches: Tensor  # [K, 3] int64: pair, row of the first, row of the second image

    @property
    def num_pairs(self) -> int:
        """How many pairs it has."""
        return len(self.sides[0].descriptors)


def build_network(shape: LightGlueShape, *, seed: int) -> LightGlueNetwork:
    """Makes a network with all heads that assigns by a dual softmax of descriptors.

    Every residual branch ends in zeros, input and final projections keep angles, and
    all keypoints are half matchable, whatever their layer.

    Args:
        shape: The size; input projections that shorten descriptors keep angles only
            approximately.
        seed: Of what is random: the other weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = LightGlueNetwork(shape, adaptive=True)
        _start_from_neighbours(network)
    return network


@torch.no_grad()
def _start_from_neighbours(network: LightGlueNetwork) -> None:
    dim = network.shape.dim
    length = 1.0  # of a token
    if isinstance(network.input_proj, nn.Linear):
        length = math.sqrt(dim)  # entries of variance 1, as the perceptrons like it
        nn.init.orthogonal_(network.input_proj.weight, gain=length)
        nn.init.zeros_(network.input_proj.bias)
    for layer in network.transformers:
        layer = cast(TransformerLayer, layer)
        for attention in (layer.self_attn, layer.cross_attn):
            last = cast(nn.Linear, attention.ffn[-1])
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
    # The head divides similarities by the square root of `dim`.
    gain = dim**0.25 / (length * math.sqrt(_TEMPERATURE))
    for index in range(network.shape.num_layers):
        head = network.assignment(index)
        nn.init.eye_(head.final_proj.weight).mul_(gain)
        nn.init.zeros_(head.final_proj.bias)
        if isinstance(head, SinkhornAssignment):
            head.bin_score.fill_(_COSINE_OF_NONE / _TEMPERATURE)
        else:
            nn.init.zeros_(head.matchability.weight)
            nn.init.zeros_(head.matchability.bias)
    reset_confidence(network)
    direction = nn.init.normal_(network.posenc.Wr.weight)
    direction /= direction.norm(dim=1, keepdim=True)
    spread = torch.linspace(
        math.log(_MIN_FREQUENCY), math.log(_MAX_FREQUENCY), len(direction)
    )
    direction *= spread.exp()[:, None]


@torch.no_grad()
def reset_confidence(network: LightGlueNetwork) -> None:
    """Makes the confidence heads sure of nothing, so that no pair stops early."""
    for confidence in network.token_confidence:
        linear = confidence_layer(cast(TokenConfidence, confidence))
        nn.init.zeros_(linear.weight)
        nn.init.constant_(linear.bias, _UNSURE)


def confidence_layer(head: TokenConfidence) -> nn.Linear:
    """The layer whose sigmoid is the confidence."""
    return cast(nn.Linear, head.token[0])


def layer_tokens(
    network: LightGlueNetwork, batch: PairBatch, *, half: bool = False
) -> list[Tokens]:
    """Computes the tokens after each layer, as inference does.

    Args:
        network: Not folded.
        batch: One pair or more.
        half: Whether the layers multiply in bfloat16; tokens stay in float32.
    """
    first, second = batch.sides
    tokens = (
        network.input_proj(first.descriptors),
        network.input_proj(second.descriptors),
    )
    rotations = network.posenc(first.positions), network.posenc(second.positions)
    masks = first.mask, second.mask
    found = []
    for layer in network.transformers:
        with torch.autocast(tokens[0].device.type, torch.bfloat16, enabled=half):
            tokens = layer(tokens, rotations, masks)
        found.append(tokens)
    return found
