"""The network of LightGlue.

Paper: Lindenberger, Sarlin, Pollefeys, "LightGlue: Local Feature Matching at Light
Speed", ICCV 2023. Ported from cvg/LightGlue and kornia (kornia.feature.LightGlue), both
Apache-2.0, whose names of tensors it keeps. LighterGlue is the smaller one of XFeat,
verlab/accelerated_features, Apache-2.0. Changed: padding is masked by keys alone, both
attentions are `scaled_dot_product_attention`, rotations are complex numbers, heads for
adaptive depth and width are optional, the output projections of attentions may be
multiplied into the next layer, and attention is sharper where keypoints are many.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.models.matchers.transport import SinkhornAssignment

Head: TypeAlias = Literal["lightglue", "sinkhorn"]

# Similarity of padding: finite, so that a row of nothing else gives no NaN.
_PADDING = -1e30


@dataclass(frozen=True, kw_only=True)
class LightGlueShape:
    """The size of one LightGlue network."""

    input_dim: int  # length of the descriptors
    dim: int = 256  # length of the tokens
    num_heads: int = 4
    num_layers: int = 9
    has_scale_and_angle: bool = False  # whether positions are (x, y, scale, angle)
    usual_keypoints: int | None = None  # logits are as learned; None: always
    head: Head = "lightglue"  # of the last layer; that of earlier ones is LightGlue's


class LightGlueNetwork(nn.Module):
    """Updates the tokens of two images layer by layer, and assigns them to each other.

    `log_assignment` has a head for every layer if `adaptive`, else one for the last.
    """

    def __init__(self, shape: LightGlueShape, *, adaptive: bool) -> None:
        super().__init__()
        self.shape = shape
        self.adaptive = adaptive
        dim, layers = shape.dim, shape.num_layers
        self.input_proj: nn.Module = (
            nn.Identity() if shape.input_dim == dim else nn.Linear(shape.input_dim, dim)
        )
        self.posenc = RotaryEncoding(
            4 if shape.has_scale_and_angle else 2, dim // shape.num_heads
        )
        self.transformers = nn.ModuleList(
            TransformerLayer(dim, shape.num_heads, shape.usual_keypoints)
            for _ in range(layers)
        )
        with_head = range(layers) if adaptive else [layers - 1]
        self.log_assignment = nn.ModuleDict(
            {
                str(layer): SinkhornAssignment(dim)
                if layer == layers - 1 and shape.head == "sinkhorn"
                else MatchAssignment(dim)
                for layer in with_head
            }
        )
        self.token_confidence = nn.ModuleList(
            TokenConfidence(dim) for _ in range(layers - 1 if adaptive else 0)
        )

    def assignment(self, layer: int) -> MatchAssignment | SinkhornAssignment:
        """The head that assigns the tokens of a layer."""
        return cast(
            MatchAssignment | SinkhornAssignment, self.log_assignment[str(layer)]
        )

    def fold(self) -> None:
        """Rearranges the weights so that the same takes less work.

        The names and shapes of the tensors are no longer those of the checkpoints.
        """
        for layer in self.transformers:
            cast(TransformerLayer, layer).fold()


class RotaryEncoding(nn.Module):
    """Learned frequencies that turn positions into rotations (section 3.2)."""

    def __init__(self, position_dim: int, head_dim: int) -> None:
        super().__init__()
        self.Wr = nn.Linear(position_dim, head_dim // 2, bias=False)

    def forward(self, positions: Tensor) -> Tensor:
        """Returns unit complex numbers [..., N, head_dim / 2] of [..., N, 2 or 4]."""
        phase = self.Wr(positions)
        return torch.polar(torch.ones_like(phase), phase)


def feed_forward(dim: int) -> nn.Sequential:
    """The perceptron after each attention, from token and message to an update."""
    return nn.Sequential(
        nn.Linear(2 * dim, 2 * dim),
        nn.LayerNorm(2 * dim),
        nn.GELU(),
        nn.Linear(2 * dim, dim),
    )


@torch.no_grad()
def _merge(projection: nn.Module, ffn: nn.Sequential) -> nn.Identity:
    """Multiplies a projection of the message into the layer that takes it in."""
    linear, first = cast(nn.Linear, projection), cast(nn.Linear, ffn[0])
    dim = linear.out_features
    weight = first.weight[:, dim:].double()
    first.bias.add_(weight @ linear.bias.double())
    first.weight[:, dim:] = weight @ linear.weight.double()
    return nn.Identity()


def _sharpened(queries: Tensor, sharpness: Tensor | None) -> Tensor:
    """Multiplies the logits of queries [B, heads, N, head_dim]; None leaves them."""
    return queries if sharpness is None else queries * sharpness.to(queries.dtype)


class SelfAttention(nn.Module):
    """Attention within one image, aware of relative positions."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.is_folded = False
        self.Wqkv = nn.Linear(dim, 3 * dim)
        self.out_proj: nn.Module = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim)

    @torch.no_grad()
    def fold(self) -> None:
        """Merges the output's projection; sorts queries, keys and values apart."""
        self.out_proj = _merge(self.out_proj, self.ffn)
        order = torch.arange(self.Wqkv.out_features).view(self.num_heads, -1, 3)
        order = order.permute(2, 0, 1).flatten()
        self.Wqkv.weight.copy_(self.Wqkv.weight[order])
        self.Wqkv.bias.copy_(self.Wqkv.bias[order])
        self.is_folded = True

    def forward(
        self,
        x: Tensor,  # [B, N, D]
        rotation: Tensor,
        mask: Tensor | None,  # [B, 1, 1, N], False for padding
        sharpness: Tensor | None = None,  # [B or 1, 1, 1, 1], of attention to x
    ) -> Tensor:
        """Returns updated tokens [B, N, D]."""
        inputs = x.to(self.Wqkv.weight.dtype)
        qkv = self.Wqkv(inputs)
        if self.is_folded:
            qkv = qkv.unflatten(-1, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)
        else:
            qkv = qkv.unflatten(-1, (self.num_heads, -1, 3)).permute(4, 0, 2, 1, 3)
            qkv = qkv.contiguous()  # [3, B, heads, N, head_dim]
        pairs = torch.view_as_complex(qkv[:2].float().unflatten(-1, (-1, 2)))
        rotated = torch.view_as_real(pairs * rotation.unsqueeze(1))
        q, k = rotated.flatten(-2).to(qkv.dtype)
        message = F.scaled_dot_product_attention(
            _sharpened(q, sharpness), k, qkv[2], attn_mask=mask
        )
        message = self.out_proj(message.transpose(1, 2).flatten(-2))
        updated: Tensor = x + self.ffn(torch.cat([inputs, message], -1))
        return updated


class CrossAttention(nn.Module):
    """Attention of each image to the other, with one projection for query and key."""

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.to_qk = nn.Linear(dim, dim)
        self.to_v = nn.Linear(dim, dim)
        self.to_out: nn.Module = nn.Linear(dim, dim)
        self.ffn = feed_forward(dim)

    def fold(self) -> None:
        """Merges the output's projection."""
        self.to_out = _merge(self.to_out, self.ffn)

    def forward(
        self,
        x0: Tensor,
        x1: Tensor,
        mask0: Tensor | None,
        mask1: Tensor | None,
        sharpness0: Tensor | None = None,  # [B or 1, 1, 1, 1], of attention to x0
        sharpness1: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Returns updated tokens [B, M, D] and [B, N, D]."""
        inputs0, inputs1 = (x.to(self.to_v.weight.dtype) for x in (x0, x1))
        qk0, qk1 = self._heads(self.to_qk(inputs0)), self._heads(self.to_qk(inputs1))
        v0, v1 = self._heads(self.to_v(inputs0)), self._heads(self.to_v(inputs1))
        message0 = F.scaled_dot_product_attention(
            _sharpened(qk0, sharpness1), qk1, v1, attn_mask=mask1
        )
        message1 = F.scaled_dot_product_attention(
            _sharpened(qk1, sharpness0), qk0, v0, attn_mask=mask0
        )
        return (
            x0 + self._update(inputs0, message0),
            x1 + self._update(inputs1, message1),
        )

    def _heads(self, x: Tensor) -> Tensor:
        return x.view(*x.shape[:2], self.num_heads, -1).transpose(1, 2)

    def _update(self, x: Tensor, message: Tensor) -> Tensor:
        message = self.to_out(message.transpose(1, 2).flatten(-2))
        update: Tensor = self.ffn(torch.cat([x, message], -1))
        return update


class TransformerLayer(nn.Module):
    """Self-attention in both images, then cross-attention between them.

    With `usual_keypoints`, logits of n keys are multiplied by log n over its logarithm
    (Chiang and Cholak, ACL 2022): attention that was learned among hundreds does not
    spread over thousands.
    """

    def __init__(
        self, dim: int, num_heads: int, usual_keypoints: int | None = None
    ) -> None:
        super().__init__()
        self.usual_keypoints = usual_keypoints
        self.self_attn = SelfAttention(dim, num_heads)
        self.cross_attn = CrossAttention(dim, num_heads)

    def fold(self) -> None:
        """Folds both attentions; see `LightGlueNetwork.fold`."""
        self.self_attn.fold()
        self.cross_attn.fold()

    def forward(
        self,
        tokens: tuple[Tensor, Tensor],  # [B, M, D], [B, N, D]
        rotations: tuple[Tensor, Tensor],
        masks: tuple[Tensor | None, Tensor | None],  # None: nothing is padding
    ) -> tuple[Tensor, Tensor]:
        """Returns updated tokens; those of padding are finite and mean nothing.

        Tokens stay in float32 where the weights are in half precision; so do rotations.
        """
        sharpness = [self._sharpness(*side) for side in zip(tokens, masks, strict=True)]
        x0, x1 = (
            self.self_attn(*side)
            for side in zip(tokens, rotations, masks, sharpness, strict=True)
        )
        updated: tuple[Tensor, Tensor] = self.cross_attn(x0, x1, *masks, *sharpness)
        return updated

    def _sharpness(self, x: Tensor, mask: Tensor | None) -> Tensor | None:
        """What logits of attention to tokens are multiplied by, [B or 1, 1, 1, 1]."""
        if self.usual_keypoints is None:
            return None
        if mask is None:
            count = x.new_full((1, 1, 1, 1), x.shape[1])
        else:
            count = mask.sum(-1, keepdim=True)
        return count.clamp(min=2).log() / math.log(self.usual_keypoints)


class TokenConfidence(nn.Module):
    """Guesses whether a token's match would be the same in the last layer."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.token = nn.Sequential(nn.Linear(dim, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        """Returns confidences [..., N] in 0..1 of tokens [..., N, D], without gradient.

        The transformer does not learn from this head (section 3.3 of the paper).
        """
        confidence: Tensor = self.token(x.detach()).squeeze(-1)
        return confidence


class MatchAssignment(nn.Module):
    """Similarity times matchability (section 3.2, equations 7 and 8)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.matchability = nn.Linear(dim, 1)
        self.final_proj = nn.Linear(dim, dim)

    def forward(
        self,
        x0: Tensor,
        x1: Tensor,
        is_real0: Tensor | None = None,
        is_real1: Tensor | None = None,
    ) -> Tensor:
        """Returns log assignment scores [B, M, N].

        Where `is_real0` [B, M] or `is_real1` [B, N] says that a token is padding, its
        scores with real tokens are below -1e29, and do not change those of others.
        """
        scale = x0.shape[-1] ** -0.25
        similarity = (self.final_proj(x0) * scale) @ (self.final_proj(x1) * scale).mT
        if is_real0 is not None:
            similarity = similarity.masked_fill(~is_real0[..., None], _PADDING)
        if is_real1 is not None:
            similarity = similarity.masked_fill(~is_real1[..., None, :], _PADDING)
        # The sum of the two log-softmaxes, with one matrix instead of five.
        shift0 = F.logsigmoid(self.matchability(x0)) - similarity.logsumexp(-1, True)
        shift1 = F.logsigmoid(self.matchability(x1)).mT - similarity.logsumexp(-2, True)
        scores: Tensor = torch.add(shift0, similarity, alpha=2).add_(shift1)
        return scores

    def get_matchability(self, x: Tensor) -> Tensor:
        """Returns how likely each token has a match at all, [..., N] in 0..1."""
        matchability: Tensor = self.matchability(x).squeeze(-1).sigmoid()
        return matchability


def confidence_threshold(layer: int, num_layers: int) -> float:
    """The confidence, in 0..1, above which a token of this layer is decided."""
    return min(0.8 + 0.1 * math.exp(-4.0 * layer / num_layers), 1.0)
