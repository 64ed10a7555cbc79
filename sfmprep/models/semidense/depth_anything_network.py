"""The network of Depth Anything 3: depths and cameras of several views at once.

Paper: Lin, Chen, Liew and others, "Depth Anything 3: Recovering the Visual Space from
Any Views", 2025. Written after reading ByteDance-Seed/Depth-Anything-3 (2c21ea8,
Apache-2.0); what only serves rays, given cameras and Gaussians is left out, and views
may have different sizes. Keys, and every size, are those of the files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.models.semidense.pointmap_heads import ResidualConv, as_map
from sfmprep.models.shared.vit import (
    EPS,
    GRID,
    LayerScale,
    Mlp,
    PatchEmbed,
    Turn,
    attend,
    grid_places,
    in_heads,
    learned_positions,
    rotary,
)

PATCH = 14  # pixels a side
_HEAD_DIM = 64
_ALONE = 4  # blocks before views see each other, in every second of the rest
_TAKEN = (5, 7, 9, 11)  # blocks whose tokens the head gets
_POSITION_SHARE = 0.1  # of the positions that the head adds
_OMEGA = 100.0
_LEAST_TANGENT = 1e-6

# Tensors of the files that only other uses need, by what their names begin with, or
# have in them.
UNUSED = ("cam_enc.", "_aux.")


class Looks(NamedTuple):
    """What the network says of one view, in float32."""

    depth: Tensor  # [H, W] along the axis of the camera, above 0
    confidence: Tensor  # [H, W] 1 and more
    world_from_cam: Tensor  # [3, 4]
    tangents: Tensor  # [2] of half the field of view, across and down


class DepthAnythingNetwork(nn.Module):
    """Encodes views one by one, and looks at several together.

    Raises:
        KeyError: a tensor is not there that says how large the network is.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        patches = tensors["backbone.pretrained.patch_embed.proj.weight"]
        self.backbone = _Named(len(patches))
        self.head = _Head(2 * len(patches), tensors)
        self.cam_dec = _Cameras(2 * len(patches))

    def encode(self, pixels: Tensor) -> Tensor:
        """Tokens [B, 1 + N, C] of [B, 3, H, W], sides multiples of 14."""
        result: Tensor = self.backbone.pretrained.encode(pixels)
        return result

    def look(
        self,
        tokens: Sequence[Tensor],  # [1, 1 + N, C] of each view, as encoded
        grids: Sequence[tuple[int, int]],  # (rows, columns) of each
    ) -> list[Looks]:
        """Depths and cameras of views; the first is the reference."""
        taken, cameras = self.backbone.pretrained.together(tokens, grids)
        poses, tangents = self.cam_dec(torch.cat(cameras).float())
        found = []
        for view, grid in enumerate(grids):
            depth, confidence = self.head([each.float() for each in taken[view]], grid)
            found.append(Looks(depth, confidence, poses[view], tangents[view]))
        return found


class _Named(nn.Module):
    """The backbone under the name that the files give it."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.pretrained = _Backbone(width)


class _Attention(nn.Module):
    """Self-attention whose queries and keys may be normalised, and turned."""

    def __init__(self, width: int, *, is_normalised: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)
        self.q_norm, self.k_norm = (
            nn.LayerNorm(_HEAD_DIM) if is_normalised else nn.Identity()
            for _ in range(2)
        )

    def forward(self, x: Tensor, turn: Turn | None) -> Tensor:
        q, k, v = (in_heads(part, _HEAD_DIM) for part in self.qkv(x).chunk(3, 2))
        q, k = self.q_norm(q), self.k_norm(k)
        if turn is not None:
            q, k = turn(q), turn(k)
        result: Tensor = self.proj(attend(q, k, v))
        return result


class _Block(nn.Module):
    def __init__(self, width: int, *, is_normalised: bool) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width, EPS)
        self.attn = _Attention(width, is_normalised=is_normalised)
        self.ls1 = LayerScale(width)
        self.norm2 = nn.LayerNorm(width, EPS)
        self.mlp = Mlp(width, 4 * width, width)
        self.ls2 = LayerScale(width)

    def forward(self, x: Tensor, turn: Turn | None = None) -> Tensor:
        x = x + self.ls1.gamma * self.attn(self.norm1(x), turn)
        result: Tensor = x + self.ls2.gamma * self.mlp(self.norm2(x))
        return result


class _Backbone(nn.Module):
    """DINOv2, in which every second block sees all views from the fifth one on."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, width))
        self.camera_token = nn.Parameter(torch.zeros(1, 2, width))
        self.pos_embed = nn.Parameter(torch.zeros(1, 1 + GRID**2, width))
        self.patch_embed = PatchEmbed(width, PATCH)
        self.blocks = nn.ModuleList(
            _Block(width, is_normalised=k >= _ALONE) for k in range(_TAKEN[-1] + 1)
        )
        self.norm = nn.LayerNorm(width)

    def encode(self, pixels: Tensor) -> Tensor:
        """Tokens after the blocks in which each view is alone."""
        grid = pixels.shape[2] // PATCH, pixels.shape[3] // PATCH
        first = (self.cls_token + self.pos_embed[:, :1]).expand(len(pixels), -1, -1)
        patches = self.patch_embed(pixels)
        patches = patches + learned_positions(self.pos_embed[:, 1:], grid)
        x = torch.cat((first, patches), 1)
        for block in self.blocks[:_ALONE]:
            x = block(x)
        return x

    def together(
        self, tokens: Sequence[Tensor], grids: Sequence[tuple[int, int]]
    ) -> tuple[list[list[Tensor]], list[Tensor]]:
        """What the head gets of each view, and the camera's token [1, 2 C] of each."""
        sizes = [each.shape[1] for each in tokens]
        own = []  # where tokens are in their view; the camera's is at 0, 0
        for grid in grids:
            places = grid_places(grid, tokens[0].device) + 1
            own.append(F.pad(places, (0, 0, 1, 0)))
        # where all are when views see each other: patches at 1, 1
        turns = [rotary(places, _HEAD_DIM) for places in own]
        turn = rotary(torch.cat(own).clamp(max=1), _HEAD_DIM)
        views = [
            torch.cat((self.camera_token[:, min(k, 1)][:, None], each[:, 1:]), 1)
            for k, each in enumerate(tokens)
        ]
        alone = views
        taken: list[list[Tensor]] = [[] for _ in views]
        cameras: list[Tensor] = []
        for k, block in enumerate(self.blocks[_ALONE:], _ALONE):
            if k % 2:
                views = list(block(torch.cat(views, 1), turn).split(sizes, 1))
            else:
                views = [block(x, own) for x, own in zip(views, turns, strict=True)]
                alone = views
            if k in _TAKEN:
                for found, one, every in zip(taken, alone, views, strict=True):
                    found.append(torch.cat((one, self.norm(every)), 2)[:, 1:])
                cameras = [
                    torch.cat((one, every), 2)[:, 0]
                    for one, every in zip(alone, views, strict=True)
                ]
        return taken, cameras


class _Cameras(nn.Module):
    """Pose and field of view by a view's token."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.backbone = nn.Sequential(
            nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()
        )
        self.fc_t = nn.Linear(width, 3)
        self.fc_qvec = nn.Linear(width, 4)
        self.fc_fov = nn.Sequential(nn.Linear(width, 2), nn.ReLU())

    def forward(self, tokens: Tensor) -> tuple[Tensor, Tensor]:
        """Poses [V, 3, 4] world from camera, and tangents [V, 2] across and down."""
        x = self.backbone(tokens)
        tangents = (self.fc_fov(x).flip(1) / 2).tan().clamp(min=_LEAST_TANGENT)
        pose = torch.cat((_rotation(self.fc_qvec(x)), self.fc_t(x)[..., None]), 2)
        return pose, tangents


def _rotation(quaternion: Tensor) -> Tensor:
    """The rotations [V, 3, 3] of quaternions [V, 4] x, y, z, w of any length."""
    x, y, z, w = F.normalize(quaternion, dim=1).unbind(1)
    rows = [
        *(1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)),
        *(2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)),
        *(2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)),
    ]
    return torch.stack(rows, 1).view(-1, 3, 3)


class _Fusion(nn.Module):
    """Adds a finer level, and resizes the sum."""

    def __init__(self, channels: int, *, has_finer: bool) -> None:
        super().__init__()
        if has_finer:
            self.resConfUnit1 = ResidualConv(channels)
        self.resConfUnit2 = ResidualConv(channels)
        self.out_conv = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor, finer: Tensor | None, size: Sequence[int]) -> Tensor:
        if finer is not None:
            x = x + self.resConfUnit1(finer)
        result: Tensor = self.out_conv(_resized(self.resConfUnit2(x), size))
        return result


class _Head(nn.Module):
    """A DPT whose maps know where in the image they are."""

    def __init__(self, width: int, tensors: Mapping[str, Tensor]) -> None:
        super().__init__()
        reduced = [len(tensors[f"head.projects.{k}.weight"]) for k in range(4)]
        fused = len(tensors["head.scratch.layer1_rn.weight"])
        last = len(tensors["head.scratch.output_conv2.0.weight"])
        self.norm = nn.LayerNorm(width)
        self.projects = nn.ModuleList(nn.Conv2d(width, c, 1) for c in reduced)
        self.resize_layers = nn.ModuleList(
            [
                nn.ConvTranspose2d(reduced[0], reduced[0], 4, stride=4),
                nn.ConvTranspose2d(reduced[1], reduced[1], 2, stride=2),
                nn.Identity(),
                nn.Conv2d(reduced[3], reduced[3], 3, stride=2, padding=1),
            ]
        )
        self.scratch = nn.ModuleDict()
        for level, channels in enumerate(reduced, 1):
            self.scratch[f"layer{level}_rn"] = nn.Conv2d(
                channels, fused, 3, padding=1, bias=False
            )
            self.scratch[f"refinenet{level}"] = _Fusion(fused, has_finer=level < 4)
        self.scratch["output_conv1"] = nn.Conv2d(fused, fused // 2, 3, padding=1)
        self.scratch["output_conv2"] = nn.Sequential(
            nn.Conv2d(fused // 2, last, 3, padding=1), nn.ReLU(), nn.Conv2d(last, 2, 1)
        )

    def forward(
        self, tokens: Sequence[Tensor], grid: tuple[int, int]
    ) -> tuple[Tensor, Tensor]:
        """Depth and confidence [H, W] from tokens [1, N, 2 C] of four depths."""
        levels = []
        for level, (each, project, resize) in enumerate(
            zip(tokens, self.projects, self.resize_layers, strict=True), 1
        ):
            x = _placed(project(as_map(self.norm(each), grid)), grid)
            levels.append(self.scratch[f"layer{level}_rn"](resize(x)))
        coarse_to_fine = levels[::-1]
        x = self.scratch["refinenet4"](levels[3], None, levels[2].shape[2:])
        twice = [2 * side for side in levels[0].shape[2:]]
        sizes = [finer.shape[2:] for _, finer in pairwise(coarse_to_fine[1:])]
        for level, size in zip((3, 2, 1), (*sizes, twice), strict=True):
            x = self.scratch[f"refinenet{level}"](x, levels[level - 1], size)
        x = self.scratch["output_conv1"](x)
        x = _placed(_resized(x, [PATCH * side for side in grid]), grid)
        raw = self.scratch["output_conv2"](x)[0]
        return raw[0].exp(), 1 + raw[1].exp()


def _resized(x: Tensor, size: Sequence[int]) -> Tensor:
    return F.interpolate(x, tuple(size), mode="bilinear", align_corners=True)


def _placed(x: Tensor, grid: tuple[int, int]) -> Tensor:
    """Adds to a map [1, C, H, W] waves of the places of its cells.

    Places are measured from the middle, in half diagonals of the image, whose sides
    are as those of `grid`.
    """
    height, width = x.shape[2:]
    diagonal = (grid[0] ** 2 + grid[1] ** 2) ** 0.5
    quarter = x.shape[1] // 4
    omega = _OMEGA ** -(torch.arange(quarter, device=x.device) / quarter)
    waves = []
    for side, length in ((width, grid[1]), (height, grid[0])):
        far = length / diagonal * (side - 1) / side
        angle = torch.linspace(-far, far, side, device=x.device) * omega[:, None]
        waves.append(torch.cat((angle.sin(), angle.cos())))
    across = waves[0][:, None, :].expand(-1, height, -1)
    down = waves[1][:, :, None].expand(-1, -1, width)
    return x + _POSITION_SHARE * torch.cat((across, down))
