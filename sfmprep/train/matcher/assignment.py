"""The losses of the matcher: assignment at every layer, then confidence.

Paper: Lindenberger, Sarlin, Pollefeys, "LightGlue: Local Feature Matching at Light
Speed", ICCV 2023, section 3.3: the negative log-likelihood of the true matches and of
"unmatchable" for the rest, averaged over all layers (deep supervision); and, with all
else frozen, the binary cross-entropy of each layer's confidence. A head by transport
has the same loss, where "unmatchable" is the bin: Sarlin, DeTone, Malisiewicz,
Rabinovich, "SuperGlue", CVPR 2020, section 3.3.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from sfmprep.models.matchers.lightglue_network import (
    LightGlueNetwork,
    MatchAssignment,
    TokenConfidence,
)
from sfmprep.models.matchers.transport import SinkhornAssignment
from sfmprep.train.network import PairBatch, Tokens, confidence_layer


class Assignment(NamedTuple):
    """What a head says of B pairs, in logarithms."""

    scores: Tensor  # [B, M, N] of the assignment; of padding below -1e29
    alone0: Tensor  # [B, M] of having no partner
    alone1: Tensor  # [B, N]


def assign(
    head: MatchAssignment | SinkhornAssignment, tokens: Tokens, batch: PairBatch
) -> Assignment:
    """Applies a head."""
    x0, x1 = tokens
    first, second = batch.sides
    if isinstance(head, SinkhornAssignment):
        return Assignment(*head.transport(x0, x1, first.is_real, second.is_real))
    return Assignment(
        head(x0, x1, first.is_real, second.is_real),
        F.logsigmoid(-head.matchability(x0).squeeze(-1)),
        F.logsigmoid(-head.matchability(x1).squeeze(-1)),
    )


def layer_loss(
    head: MatchAssignment | SinkhornAssignment, tokens: Tokens, batch: PairBatch
) -> dict[str, Tensor]:
    """Computes the loss of one layer's assignment, in parts that are to be added up.

    Matches and the unmatchable weigh the same, however many there are. A part without
    any keypoint to judge is 0.

    Returns:
        Scalars. `unmatchable`: keypoints without a partner. Of true matches LightGlue's
        head has `similarity`, both softmaxes, and `matchable`, both matchabilities; one
        by transport has `transport` alone.
    """
    found = assign(head, tokens, batch)
    pair, row0, row1 = batch.matches.unbind(1)
    scores = found.scores[pair, row0, row1]
    without0, without1 = (
        _mean(-alone[side.is_unmatchable])
        for alone, side in zip(found[1:], batch.sides, strict=True)
    )
    unmatchable = (without0 + without1) / 2
    if isinstance(head, SinkhornAssignment):
        return {"transport": _mean(-scores), "unmatchable": unmatchable}
    matchable0, matchable1 = (
        F.logsigmoid(head.matchability(x[pair, row]).squeeze(-1))
        for x, row in zip(tokens, (row0, row1), strict=True)
    )
    matchable = matchable0 + matchable1
    return {
        "similarity": _mean(matchable - scores),
        "matchable": _mean(-matchable),
        "unmatchable": unmatchable,
    }


def assignment_loss(
    network: LightGlueNetwork, layers: list[Tokens], batch: PairBatch
) -> dict[str, Tensor]:
    """Computes the loss's parts, of all layers together over the number of layers."""
    parts = [
        layer_loss(network.assignment(index), tokens, batch)
        for index, tokens in enumerate(layers)
    ]
    return {
        name: torch.stack([part[name] for part in parts if name in part]).sum()
        / len(parts)
        for name in {**parts[0], **parts[-1]}
    }


def decisions(found: Assignment) -> tuple[Tensor, Tensor]:
    """The likeliest partner of each keypoint, [B, M] and [B, N]; -1 for none."""
    decided = []
    for dim, alone in ((2, found.alone0), (1, found.alone1)):
        score, partner = found.scores.max(dim)
        decided.append(partner.where(score > alone, -1))
    return decided[0], decided[1]


def confidence_loss(
    network: LightGlueNetwork, layers: list[Tokens], batch: PairBatch
) -> Tensor:
    """Computes how wrong the confidences are, as a mean over layers and keypoints.

    Right is whether the decision of the layer equals that of the last one. Gradients
    reach the confidence heads alone.
    """
    with torch.no_grad():
        decided = [
            decisions(assign(network.assignment(index), tokens, batch))
            for index, tokens in enumerate(layers)
        ]
    losses = []
    for head, tokens, decision in zip(
        network.token_confidence, layers, decided, strict=False
    ):
        linear = confidence_layer(cast(TokenConfidence, head))
        for k, side in enumerate(batch.sides):
            loss = F.binary_cross_entropy_with_logits(
                linear(tokens[k].detach()).squeeze(-1),
                (decision[k] == decided[-1][k]).float(),
                reduction="none",
            )
            losses.append(_mean(loss if side.is_real is None else loss[side.is_real]))
    return torch.stack(losses).mean()


def _mean(values: Tensor) -> Tensor:
    return values.sum() / max(1, values.numel())
