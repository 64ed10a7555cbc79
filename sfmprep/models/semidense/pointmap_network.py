"""The network of DUSt3R and MASt3R: a shared encoder and two entangled decoders.

Papers: Wang, Leroy, Cabon, Chidlovskii, Revaud, "DUSt3R: Geometric 3D Vision Made
Easy", CVPR 2024; Leroy, Cabon, Revaud, "Grounding Image Matching in 3D with MASt3R",
ECCV 2024. Written from them and from the shapes of the public checkpoints of
naver/dust3r and naver/mast3r (CC BY-NC-SA 4.0). Every size follows from the shapes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.models.semidense.pointmap_heads import (
    DptHead,
    LinearHead,
    MatchingHead,
    RawMaps,
)
from sfmprep.models.shared.vit import (
    EPS,
    Attention,
    Mlp,
    PatchEmbed,
    Turn,
    attend,
    grid_places,
    in_heads,
    rotary,
)

PATCH = 16  # pixels a side
_HEAD_DIM = 64  # of every attention


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """Which network a file holds."""

    kind: str  # "linear", "dpt" or "mast3r"
    encoder_width: int
    encoder_depth: int
    decoder_width: int
    decoder_depth: int
    reduced: tuple[int, ...] = ()  # channels of the four levels of a DPT head
    fused: int = 0  # of all levels
    last: int = 0  # before its last layer


def architecture(tensors: Mapping[str, Tensor]) -> Architecture | None:
    """Reads it off the names and shapes; None where they are of something else."""
    head = "downstream_head1."
    try:
        width, *_ = tensors["patch_embed.proj.weight"].shape
        decoder_width, _ = tensors["decoder_embed.weight"].shape
        depths = [
            sum(f"{blocks}.{k}.norm1.weight" in tensors for k in range(100))
            for blocks in ("enc_blocks", "dec_blocks", "dec_blocks2")
        ]
        if depths[1] != depths[2] or depths[1] % 4:
            return None
        made = partial(
            Architecture,
            encoder_width=width,
            encoder_depth=depths[0],
            decoder_width=decoder_width,
            decoder_depth=depths[1],
        )
        if f"{head}proj.weight" in tensors:
            return made(kind="linear")
        is_mast3r = f"{head}head_local_features.fc1.weight" in tensors
        return made(
            kind="mast3r" if is_mast3r else "dpt",
            reduced=tuple(
                len(tensors[f"{head}dpt.act_postprocess.{k}.0.weight"])
                for k in range(4)
            ),
            fused=len(tensors[f"{head}dpt.scratch.layer1_rn.weight"]),
            last=len(tensors[f"{head}dpt.head.2.weight"]),
        )
    except (KeyError, ValueError):
        return None


class Pointmap(NamedTuple):
    """What one side of a pair looks like, in float32."""

    points: Tensor  # [B, H, W, 3] in the camera of the first image
    confidence: Tensor  # [B, H, W] 1 and more
    descriptors: Tensor | None  # [B, H, W, 24] unit, of MASt3R
    descriptor_confidence: Tensor | None  # [B, H, W] above 0


class PointmapNetwork(nn.Module):
    """Encodes images one by one, and decodes pairs of them."""

    def __init__(self, of: Architecture) -> None:
        super().__init__()
        self.mask_token = nn.Parameter(torch.zeros(1, 1, of.decoder_width))  # unused
        self.patch_embed = PatchEmbed(of.encoder_width, PATCH)
        self.enc_blocks = nn.ModuleList(
            _EncoderBlock(of.encoder_width) for _ in range(of.encoder_depth)
        )
        self.enc_norm = nn.LayerNorm(of.encoder_width, EPS)
        self.decoder_embed = nn.Linear(of.encoder_width, of.decoder_width)
        self.dec_blocks, self.dec_blocks2 = (
            nn.ModuleList(
                _DecoderBlock(of.decoder_width) for _ in range(of.decoder_depth)
            )
            for _ in range(2)
        )
        self.dec_norm = nn.LayerNorm(of.decoder_width, EPS)
        self.downstream_head1, self.downstream_head2 = (_head(of) for _ in range(2))

    def encode(self, pixels: Tensor) -> Tensor:
        """Tokens [B, N, C] of [B, 3, H, W] in -1..1, sides multiples of 16."""
        x: Tensor = self.patch_embed(pixels)
        grid = (pixels.shape[2] // PATCH, pixels.shape[3] // PATCH)
        turn = rotary(grid_places(grid, x.device), _HEAD_DIM)
        for block in self.enc_blocks:
            x = block(x, turn)
        result: Tensor = self.enc_norm(x)
        return result

    def decode(
        self,
        tokens: tuple[Tensor, Tensor],  # [B, N, C] of each side, as encoded
        grids: tuple[tuple[int, int], tuple[int, int]],  # (rows, columns) of each
    ) -> tuple[list[Tensor], list[Tensor]]:
        """The tokens of both sides after each block, before them those encoded."""
        places = [grid_places(grid, tokens[0].device) for grid in grids]
        turns = [rotary(each, _HEAD_DIM) for each in places]
        seen: tuple[list[Tensor], list[Tensor]] = ([tokens[0]], [tokens[1]])
        x, y = (self.decoder_embed(side) for side in tokens)
        for first, second in zip(self.dec_blocks, self.dec_blocks2, strict=True):
            # both from what was before
            x, y = first(x, y, turns[0], turns[1]), second(y, x, turns[1], turns[0])
            seen[0].append(x)
            seen[1].append(y)
        for side in seen:
            side[-1] = self.dec_norm(side[-1])
        return seen

    def look(self, side: int, tokens: list[Tensor], grid: tuple[int, int]) -> Pointmap:
        """The pointmap of a side, 0 or 1, from its tokens after each block."""
        head = (self.downstream_head1, self.downstream_head2)[side]
        raw: RawMaps = head([each.float() for each in tokens], grid)
        shape = raw.points.permute(0, 2, 3, 1)
        direction, confidence = shape[..., :3], shape[..., 3]
        length = direction.norm(dim=3, keepdim=True)
        points = direction / length.clamp(min=1e-8) * length.expm1()
        if raw.local is None:
            return Pointmap(points, 1 + confidence.exp(), None, None)
        local = raw.local.permute(0, 2, 3, 1)
        return Pointmap(
            points,
            1 + confidence.exp(),
            F.normalize(local[..., :-1], dim=3),
            local[..., -1].exp(),
        )


def _head(of: Architecture) -> nn.Module:
    if of.kind == "linear":
        return LinearHead(of.decoder_width, PATCH)
    widths = (of.encoder_width, *3 * (of.decoder_width,))
    step = of.decoder_depth // 4
    hooks = (0, 2 * step, 3 * step, 4 * step)
    dpt = DptHead(widths, hooks, of.reduced, of.fused, of.last)
    if of.kind == "dpt":
        return _OnlyPoints(dpt)
    return MatchingHead(dpt, of.encoder_width + of.decoder_width, PATCH)


class _OnlyPoints(nn.Module):
    """A DPT head under the name that its checkpoint gives it."""

    def __init__(self, dpt: DptHead) -> None:
        super().__init__()
        self.dpt = dpt

    def forward(self, tokens: list[Tensor], grid: tuple[int, int]) -> RawMaps:
        return RawMaps(self.dpt(tokens, grid), None)


class _EncoderBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = Attention(width, _HEAD_DIM)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(self, x: Tensor, turn: Turn) -> Tensor:
        x = x + self.attn(self.norm1(x), turn)
        result: Tensor = x + self.mlp(self.norm2(x))
        return result


class _CrossAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.projq, self.projk, self.projv, self.proj = (
            nn.Linear(width, width) for _ in range(4)
        )

    def forward(self, x: Tensor, y: Tensor, turn_x: Turn, turn_y: Turn) -> Tensor:
        q, k, v = (
            in_heads(part, _HEAD_DIM)
            for part in (self.projq(x), self.projk(y), self.projv(y))
        )
        result: Tensor = self.proj(attend(turn_x(q), turn_y(k), v))
        return result


class _DecoderBlock(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = Attention(width, _HEAD_DIM)
        self.norm_y = nn.LayerNorm(width, EPS)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.cross_attn = _CrossAttention(width)
        self.norm3 = nn.LayerNorm(width, EPS)
        self.mlp = Mlp(width, 4 * width, width)

    def forward(self, x: Tensor, y: Tensor, turn_x: Turn, turn_y: Turn) -> Tensor:
        x = x + self.attn(self.norm1(x), turn_x)
        x = x + self.cross_attn(self.norm2(x), self.norm_y(y), turn_x, turn_y)
        result: Tensor = x + self.mlp(self.norm3(x))
        return result
