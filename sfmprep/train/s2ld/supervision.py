"""What S2LD's training compares with: matches that depth and pose tell.

The truth follows the keypoints that the network has at the moment, so it changes during
training. Nothing here carries a gradient. Written from the description of the released
training of S2LD (Li, Zhao, Xia, IEEE TIP 32, 2023, doi 10.1109/TIP.2023.3287500); no
code of it was used.

Pixels are COLMAP's: (0.5, 0.5) is the centre of the first. Depth maps and intrinsics
have those of the network's input.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from sfmprep.models.semidense.s2ld_network import WINDOW_REACH

EXACT = "donot_use_mm_for_euclid_dist"
"""Distances by differences: by products they are off by a tenth of a pixel."""

_MAX_CELL_DISTANCE_PX = 16.0
_MAX_DEPTH_ERROR = 0.2


@dataclass(frozen=True)
class PairTruth:
    """Depth and relative pose of N image pairs."""

    depth0: Tensor
    """[N, H, W] depth along the optical axis, > 0; 0 where it is unknown."""
    depth1: Tensor
    """[N, H', W'], the same for image 1."""
    K0: Tensor
    """[N, 3, 3] intrinsics."""
    K1: Tensor
    """[N, 3, 3], the same for image 1."""
    cam1_from_cam0: Tensor
    """[N, 4, 4] rigid transform in the unit of the depth."""

    def swapped(self) -> PairTruth:
        """Returns the same pairs with the images' roles swapped."""
        motion = torch.linalg.inv(self.cam1_from_cam0)
        return PairTruth(self.depth1, self.depth0, self.K1, self.K0, motion)

    @torch.no_grad()
    def warp0(self, xy0: Tensor) -> tuple[Tensor, Tensor]:
        """Takes points of image 0 to image 1 by their depth.

        Args:
            xy0: [N, P, 2] pixels of image 0; the depth is that of the pixel they lie
                in, or the nearest for points outside.

        Returns:
            xy1: [N, P, 2] pixels of image 1; meaningless where the depth is 0.
            valid: [N, P] bool, True where the depth is known, the point falls into
                image 1, and the depth there differs by less than 20 %.
        """
        z0 = _look_up(self.depth0, xy0.floor().clamp(min=0))
        rays = _homogeneous(xy0) @ torch.linalg.inv(self.K0).mT
        rotation, translation = self.cam1_from_cam0[:, :3, :3], self.cam1_from_cam0
        in_cam1 = rays * z0[..., None] @ rotation.mT + translation[:, None, :3, 3]
        projected = in_cam1 @ self.K1.mT
        depth = projected[..., 2:]
        xy1 = projected[..., :2] / torch.where(depth == 0, 1e-12, depth)
        height, width = self.depth1.shape[1:]
        inside = (xy1 > 0).all(-1) & (xy1[..., 0] < width - 1)
        inside &= xy1[..., 1] < height - 1
        z1 = _look_up(self.depth1, torch.where(inside[..., None], xy1, 0).trunc())
        agrees = (z1 - in_cam1[..., 2]).abs() < _MAX_DEPTH_ERROR * z1
        return xy1, (z0 > 0) & inside & agrees


@dataclass(frozen=True)
class CoarseTruth:
    """Which cells of two images hold the same point; P positives in all pairs."""

    batch: Tensor
    """[P] int64, the pair."""
    cell0: Tensor
    """[P] int64, the cell of image 0, row-major."""
    cell1: Tensor
    """[P] int64, the cell of image 1, row-major."""
    warped0: Tensor
    """[N, L, 2], where the keypoints of image 0 lie in image 1."""
    visible0: Tensor
    """[N, L] bool, which of them are known to be visible there."""


@torch.no_grad()
def find_coarse_truth(
    keypoints0: Tensor,  # [N, L, 2] pixels of the network's input
    keypoints1: Tensor,  # [N, S, 2]
    truth: PairTruth,
) -> CoarseTruth:
    """Finds the cells whose keypoints are each other's nearest after the warp.

    Args:
        keypoints0: One keypoint per cell of image 0.
        keypoints1: One keypoint per cell of image 1.
        truth: Depth and pose.

    Returns:
        The positives, at most one per cell on each side; none where the images share
        nothing. Partners are visible and at most 16 pixels apart.
    """
    warped0, visible0 = truth.warp0(keypoints0)
    warped1, visible1 = truth.swapped().warp0(keypoints1)
    partner1 = _find_partners(warped0, visible0, keypoints1)
    partner0 = _find_partners(warped1, visible1, keypoints0)
    returned = partner0.gather(1, partner1.clamp(min=0))
    cells0 = torch.arange(keypoints0.shape[1], device=keypoints0.device)
    batch, cell0 = torch.where((returned == cells0) & (partner1 >= 0))
    return CoarseTruth(batch, cell0, partner1[batch, cell0], warped0, visible0)


@torch.no_grad()
def find_fine_truth(
    batch: Tensor,  # [M] int64
    cell0: Tensor,  # [M] int64
    cell1: Tensor,  # [M] int64
    coarse: CoarseTruth,
    keypoints1: Tensor,  # [N, S, 2] pixels of the network's input
) -> Tensor:
    """Returns where matches lie in their windows of image 1, [M, 2].

    The unit is the window's radius, 4 px of the network's input, from the keypoint of
    the cell: beyond -1..1 the true point lies outside the window. Infinite where the
    point is not visible in image 1, which the release does not look at.
    """
    offset = coarse.warped0[batch, cell0] - keypoints1[batch, cell1]
    target = offset / WINDOW_REACH
    return target.masked_fill(~coarse.visible0[batch, cell0, None], torch.inf)


@torch.no_grad()
def choose_fine_matches(
    predicted: tuple[Tensor, Tensor, Tensor],  # (batch, cell0, cell1), [P] int64 each
    positives: CoarseTruth,
    *,
    num_matches: int,
    min_positives: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Chooses the matches that the fine stage trains on.

    Early in a training the network predicts none: true ones stand in. Both are drawn
    without replacement, where the release repeats true ones up to a fixed number; the
    losses are means, so that only costs time.

    Args:
        predicted: The network's matches: pair, cell of image 0, cell of image 1.
        positives: The true ones.
        num_matches: The most to choose in all.
        min_positives: How many places predictions leave to true ones.
        generator: On the CPU; the choice depends on it alone.

    Returns:
        batch, cell0, cell1: [M] int64; the predicted ones come first.
        is_predicted: [M] bool, False for those that only the fine loss may use.
    """
    device = positives.batch.device
    truth = (positives.batch, positives.cell0, positives.cell1)

    def draw(count: int, most: int) -> Tensor:
        order = torch.randperm(count, generator=generator)[: max(most, 0)]
        return order.sort().values.to(device)

    kept = draw(len(predicted[0]), num_matches - min_positives)
    added = draw(len(truth[0]), num_matches - len(kept))
    columns = [
        torch.cat([ours[kept], true[added]])
        for ours, true in zip(predicted, truth, strict=True)
    ]
    is_predicted = torch.arange(len(columns[0]), device=device) < len(kept)
    return columns[0], columns[1], columns[2], is_predicted


def _find_partners(
    warped: Tensor,  # [N, P, 2]
    visible: Tensor,  # [N, P] bool
    xy: Tensor,  # [N, Q, 2] of the same image
) -> Tensor:
    """Returns the row of the nearest point, -1 where it is far or hidden; [N, P]."""
    distance, nearest = torch.cdist(warped, xy, compute_mode=EXACT).min(-1)
    return nearest.masked_fill(~(visible & (distance <= _MAX_CELL_DISTANCE_PX)), -1)


def _look_up(depth: Tensor, xy: Tensor) -> Tensor:
    """Returns depth [N, P] at whole pixels [N, P, 2]; the border's for those beyond."""
    height, width = depth.shape[1:]
    column = xy[..., 0].long().clamp(0, width - 1)
    row = xy[..., 1].long().clamp(0, height - 1)
    return depth.flatten(1).gather(1, row * width + column)


def _homogeneous(xy: Tensor) -> Tensor:
    return torch.cat([xy, torch.ones_like(xy[..., :1])], -1)
