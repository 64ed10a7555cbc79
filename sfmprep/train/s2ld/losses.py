"""The losses that train S2LD.

Li, Zhao, Xia, "S2LD: sparse-to-local-dense matching", IEEE TIP 32, 2023, doi
10.1109/TIP.2023.3287500; the coarse and fine losses are LoFTR's (Sun et al., CVPR 2021)
and the depth error's berHu norm is that of Laina et al. (3DV 2016). Written from a
description of the released training, without its slips; no code of it was used.

Every loss of no elements is zero, with a gradient of zero.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from sfmprep.models.semidense.s2ld_network import CELL
from sfmprep.train.s2ld.supervision import EXACT, CoarseTruth, PairTruth

_MIN_CONFIDENCE = 1e-6
_MIN_STD = 1e-10
_ALPHA, _GAMMA = 0.25, 2.0  # of the focal loss
_BERHU_SHARE = 0.2
_MIN_PARALLAX_DEG = 1.0


def coarse_loss(
    log_confidence: Tensor,  # [N, L, S], <= 0
    positives: CoarseTruth,
) -> Tensor:
    """Returns the focal loss of the coarse matches (L_c).

    All pairs of cells that do not match count too. The confidence has no lower bound
    as in the release, where a positive below 1e-6, which is what larger images start
    with, has no gradient.

    Args:
        log_confidence: The logarithm of the dual softmax.
        positives: The true matches.
    """
    probability = log_confidence.exp()
    index = (positives.batch, positives.cell0, positives.cell1)
    positive = (1 - probability[index]) ** _GAMMA * log_confidence[index]
    is_negative = torch.ones_like(probability, dtype=torch.bool)
    is_negative[index] = False
    # log(1 - p) of a p that rounds to 1 would be -inf.
    rejected = torch.log1p(-probability.clamp(max=1 - _MIN_CONFIDENCE))
    negative = probability**_GAMMA * rejected
    return -_ALPHA * _mean(positive) - _ALPHA * _mean(negative[is_negative])


def fine_loss(expectation: Tensor, target: Tensor) -> Tensor:
    """Returns the loss of the fine matches (L_f), certain ones weighing more.

    Args:
        expectation: [M, 3] place in the window (x, y) in -1..1, and its deviation.
        target: [M, 2] the true place in the same unit; those outside do not count.
    """
    inside = target.abs().amax(-1) < 1
    certainty = 1 / expectation[:, 2].detach().clamp(min=_MIN_STD)
    weight = certainty / _mean(certainty).clamp(min=torch.finfo(certainty.dtype).tiny)
    error = (target[inside] - expectation[inside, :2]).square().sum(-1)
    return _mean(weight[inside] * error)


def keypoint_losses(
    keypoints0: Tensor,  # [N, L, 2] pixels of the network's input
    keypoints1: Tensor,  # [N, S, 2]
    scores0: Tensor,  # [N, 1, h, w] in 0..1
    scores1: Tensor,  # [N, 1, h', w']
    truth: PairTruth,
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the losses of the keypoints' places and scores (L_k, L_kr, L_ks).

    L_k, in pixels, is the distance from a keypoint of image 0, warped, to the nearest
    of image 1; it moves the keypoints of image 1 alone, since the warp has no gradient.
    L_kr makes scores high where that distance is short. L_ks makes them agree in both
    images.

    Args:
        keypoints0: One keypoint per cell of image 0.
        keypoints1: One keypoint per cell of image 1.
        scores0: The detector's scores of image 0.
        scores1: The detector's scores of image 1.
        truth: Depth and pose.
    """
    xy1 = keypoints1.clamp(min=0)
    warped, valid = truth.warp0(keypoints0.clamp(min=0))
    with torch.no_grad():
        nearest = torch.cdist(warped, xy1, compute_mode=EXACT).argmin(-1)
    partner = xy1.gather(1, nearest[..., None].expand(-1, -1, 2))
    distance = torch.linalg.vector_norm(warped - partner, dim=-1)
    near = valid & (distance <= CELL)

    flat0, flat1 = scores0.flatten(1), scores1.flatten(1)
    location = _mean(distance[near])
    both = (flat0 + flat1.gather(1, nearest))[near]
    reliability = _mean(both * (distance[near] - location))

    height, width = scores1.shape[2:]
    size = torch.tensor([width, height], device=warped.device)
    grid = warped / CELL / ((size - 1) / 2) - 1
    sampled = functional.grid_sample(
        scores1, grid[:, None], mode="bilinear", align_corners=True
    ).flatten(1)
    agreement = 2 * _mean((sampled - flat0)[valid].square())
    return location, reliability, agreement


def triangulation_loss(
    xy0: Tensor,  # [M, 2] pixels
    xy1: Tensor,  # [M, 2] pixels
    confidence: Tensor,  # [M] in 0..1
    batch: Tensor,  # [M] int64
    fine_target: Tensor,  # [M, 2] of find_fine_truth
    truth: PairTruth,
) -> Tensor:
    """Returns the error in depth of triangulated matches (L_s), as a berHu norm.

    The error is the logarithm of the ratio to the true depth, whose gradient stays
    bounded, of matches in front of the cameras whose rays meet at one degree or more.
    The points of view 1 weigh as much as the match's confidence: in this way a noisy
    match is taught a low one. Gradients reach whichever of `xy0`, `xy1` and
    `confidence` carry them; in the release none does, and the loss only adds a number.

    Args:
        xy0: Where the matches lie in image 0.
        xy1: Where they lie in image 1.
        confidence: The coarse stage's.
        batch: The pair of each match.
        fine_target: Matches whose true place is outside the window do not count.
        truth: Depth and pose.
    """
    column, row = xy0.detach().trunc().long().unbind(-1)
    height, width = truth.depth0.shape[1:]
    target = truth.depth0[batch, row.clamp(0, height - 1), column.clamp(0, width - 1)]
    keep = (target > 0) & (fine_target.abs().amax(-1) < 1)
    keep &= _parallax_deg(xy0.detach(), xy1.detach(), batch, truth) >= _MIN_PARALLAX_DEG
    depth = triangulate_least_squares(
        xy0[keep], xy1[keep], confidence[keep], batch[keep], truth
    )[:, 2]
    in_front = depth > 0
    return _berhu((depth[in_front] / target[keep][in_front]).log())


def triangulate_least_squares(
    xy0: Tensor, xy1: Tensor, weight1: Tensor, batch: Tensor, truth: PairTruth
) -> Tensor:
    """Triangulates matches [M], view 1 weighing `weight1`; returns [M, 3] in camera 0.

    Solves the four equations of the linear method (Hartley and Zisserman, section 12.2)
    for the inhomogeneous point in double precision: unlike the singular vectors', its
    gradient is finite wherever the rays are not parallel.
    """
    rows = _equations(xy0, xy1, weight1, batch, truth).double()
    left, right = rows[..., :3], -rows[..., 3:]
    points: Tensor = torch.linalg.solve(left.mT @ left, left.mT @ right)[..., 0]
    return points.to(xy0.dtype)


def _equations(
    xy0: Tensor, xy1: Tensor, weight1: Tensor, batch: Tensor, truth: PairTruth
) -> Tensor:
    """Returns the linear equations of matches, [M, 4, 4] on homogeneous points."""
    origin = torch.eye(4, dtype=truth.K0.dtype, device=truth.K0.device)[:3]
    projection0 = (truth.K0 @ origin)[batch]
    projection1 = (truth.K1 @ truth.cam1_from_cam0[:, :3])[batch]
    rows0 = xy0[..., None] * projection0[:, 2:] - projection0[:, :2]
    rows1 = xy1[..., None] * projection1[:, 2:] - projection1[:, :2]
    return torch.cat([rows0, weight1[:, None, None] * rows1], 1)


def _parallax_deg(xy0: Tensor, xy1: Tensor, batch: Tensor, truth: PairTruth) -> Tensor:
    """Returns the angle [M] between the matches' rays."""
    ray0 = _rays(xy0, truth.K0[batch])
    ray1 = _rays(xy1, truth.K1[batch])
    ray1 = (ray1[:, None] @ truth.cam1_from_cam0[batch, :3, :3])[:, 0]
    sine = torch.linalg.cross(ray0, ray1).norm(dim=-1)
    return torch.rad2deg(torch.atan2(sine, (ray0 * ray1).sum(-1)))


def _rays(xy: Tensor, K: Tensor) -> Tensor:
    homogeneous = torch.cat([xy, torch.ones_like(xy[:, :1])], -1)
    return functional.normalize(torch.linalg.solve(K, homogeneous), dim=-1)


def _berhu(error: Tensor) -> Tensor:
    """Returns the mean reverse Huber norm: linear for small errors, then quadratic."""
    if len(error) == 0:
        return error.sum()
    size = error.abs()
    bound = (_BERHU_SHARE * size.detach().max()).clamp(min=1e-12)
    return _mean(torch.where(size < bound, size, (size**2 + bound**2) / (2 * bound)))


def _mean(values: Tensor) -> Tensor:
    """Returns the mean, 0 of nothing."""
    return values.sum() / max(values.numel(), 1)
