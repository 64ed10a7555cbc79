"""The losses of R2D2, for one map of scores and descriptors at places.

Paper: Revaud, Weinzaepfel, De Souza, Humenberger, "R2D2: Repeatable and Reliable
Detector and Descriptor", NeurIPS 2019, sections 3.2 and 3.3; the average precision of
soft bins is that of He, Lu, Sclaroff, "Local Descriptors Optimized for Average
Precision", CVPR 2018. R2D2 has two maps, of what repeats and of what can be told
apart, and its score is their product; here the one map of scores stands for both.
Otherwise as there, but: queries are places that both views see, not a grid; positives
and the near negatives are some of the pixels around the target; patches that the other
view does not show whole do not count.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sfmprep.models.extractors.compact_network import CompactNetwork, Maps
from sfmprep.train.extractor.data import Batch

PATCH = 16  # pixels, N of the paper: a peak is wanted in each window of this side
_NUM_BINS = 20
_KAPPA = 0.5  # the average precision that a place is worth being scored for
_QUERIES = 96  # of a pair of views
_POSITIVE_STEP = 2.0  # pixels between positives, all within 3 of the target
_NEGATIVE_PX, _NUM_NEAR = 6.0, 16  # near negatives lie on a circle around it
_TOO_NEAR = 5.0  # pixels: other places nearer to the target are no negatives


# ------------------------------------------------------------------------- reliability
def average_precision(positive: Tensor, negatives: Tensor) -> Tensor:
    """How far before the negatives each query's positive is ranked.

    Similarities go softly into 20 bins from 1 down to 0, so that it can be learned; 1
    is perfect, and one positive among many equal negatives is near 0.

    Args:
        positive: [Q] similarities in -1..1; those below 0 count as 0.
        negatives: [Q, K] likewise; K may be 0.

    Returns:
        [Q] in 0..1.
    """
    everything = torch.cat((positive[:, None], negatives), 1)
    centres = torch.linspace(1, 0, _NUM_BINS, device=positive.device)
    away = (everything.clamp(0, 1)[:, None] - centres[:, None]).abs()
    weight = (1 - away * (_NUM_BINS - 1)).clamp(min=0)  # [Q, bins, 1 + K]
    true, found = weight[..., 0], weight.sum(2)
    precision = true.cumsum(1) / (found.cumsum(1) + 1e-16)
    return (precision * true).sum(1) / true.sum(1)


def reliability_loss(precision: Tensor, reliability: Tensor) -> Tensor:
    """Makes places whose precision is above one half reliable, and others not.

    Args:
        precision: [Q] in 0..1.
        reliability: [Q] in 0..1.

    Returns:
        A scalar, 0 without queries.
    """
    gain = precision * reliability + _KAPPA * (1 - reliability)
    return (1 - gain).sum() / max(1, len(gain))


def places_loss(
    network: CompactNetwork, maps: Maps, descriptors: Tensor, batch: Batch
) -> Tensor:
    """Computes the reliability loss of places that both views of a pair see.

    Args:
        network: Describes what lies around them.
        maps: Of the views.
        descriptors: [P, 64] of the places of the batch.
        batch: The views.
    """
    rows0 = torch.cat([rows[:_QUERIES] for rows, _ in batch.pairs])
    rows1 = torch.cat([rows[:_QUERIES] for _, rows in batch.pairs])
    queries, target, view = descriptors[rows0], batch.xy[rows1], batch.view[rows1]

    def similar(offsets: Tensor) -> tuple[Tensor, Tensor]:
        """Similarities [Q, K] to what lies there, and where that is, [Q, K, 2]."""
        at = (target[:, None] + offsets).clamp(0, maps.logits.shape[-1] - 1)
        views = view[:, None].expand(at.shape[:2])
        there = network.describe(maps, views.flatten(), at.flatten(0, 1))
        return (queries[:, None] * there.view(*at.shape[:2], there.shape[1])).sum(2), at

    near, at = similar(_square(target.device))
    positive, best = near.max(1)
    chosen = at[torch.arange(len(at), device=at.device), best]
    on_circle, _ = similar(_circle(target.device))
    others = batch.view % 2 == 1  # the second views of all pairs
    far = queries @ descriptors[others].T
    is_target = (view[:, None] == batch.view[others]) & (
        torch.cdist(target, batch.xy[others]) < _TOO_NEAR
    )
    precision = average_precision(
        positive, torch.cat((on_circle, far.masked_fill(is_target, 0)), 1)
    )
    scores = (
        _score_at(maps, batch.view[rows0], batch.xy[rows0]),
        _score_at(maps, view, chosen),
    )
    return reliability_loss(precision, (scores[0] + scores[1]) / 2)


def _score_at(maps: Maps, view: Tensor, xy: Tensor) -> Tensor:
    x, y = xy.round().long().clamp(0, maps.logits.shape[-1] - 1).unbind(1)
    return maps.logits[view, y, x].sigmoid()


def _square(device: torch.device) -> Tensor:
    step = torch.arange(-1, 2, device=device) * _POSITIVE_STEP
    return torch.cartesian_prod(step, step)


def _circle(device: torch.device) -> Tensor:
    angle = torch.arange(_NUM_NEAR, device=device) * (2 * math.pi / _NUM_NEAR)
    return _NEGATIVE_PX * torch.stack((angle.cos(), angle.sin()), 1)


# ----------------------------------------------------------------------- repeatability
def cosine_loss(
    scores: Tensor, warped: Tensor, is_known: Tensor | None = None
) -> Tensor:
    """How differently two maps rise and fall, patch by patch.

    Args:
        scores: [B, H, W] in 0..1, sides of `PATCH` or more.
        warped: [B, H, W] those of the other view, brought to the same pixels.
        is_known: [B, H, W] which pixels the other view shows, or None for all; patches
            with others are passed over.

    Returns:
        One minus the mean cosine, a scalar in 0..1; 0 where no patch is known.
    """

    def patches(values: Tensor) -> Tensor:  # [B, pixels of a patch, patches]
        return F.unfold(values[:, None], PATCH, stride=PATCH // 2)

    cosine = F.cosine_similarity(patches(scores), patches(warped), dim=1)
    if is_known is None:
        return 1 - cosine.mean()
    whole = patches(is_known.to(scores.dtype)).amin(1) > 0
    return ((1 - cosine) * whole).sum() / whole.sum().clamp(min=1)


def peaky_loss(scores: Tensor) -> Tensor:
    """How flat a map [B, H, W] in 0..1 is: one minus maximum over mean of windows."""
    smooth = F.avg_pool2d(scores[:, None], 3, stride=1, padding=1)
    window = PATCH + 1
    highest = F.max_pool2d(smooth, window, stride=1, padding=PATCH // 2)
    mean = F.avg_pool2d(smooth, window, stride=1, padding=PATCH // 2)
    return 1 - (highest - mean).mean()


def repeatability_loss(maps: Maps, batch: Batch) -> Tensor:
    """Computes both losses of the score maps of pairs of views, added up."""
    scores = maps.logits.sigmoid()
    first, second = scores[0::2], scores[1::2]
    places, is_known = places_in_second(batch.to_second, scores.shape[-1])
    grid = places * (2 / (scores.shape[-1] - 1)) - 1
    warped = F.grid_sample(
        second[:, None], grid, padding_mode="border", align_corners=True
    )[:, 0]
    peaky = (peaky_loss(first) + peaky_loss(second)) / 2
    return cosine_loss(first, warped, is_known) + peaky


def places_in_second(homographies: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Where the pixels of square views lie in others.

    Args:
        homographies: [B, 3, 3] of pixels, centres at integers.
        size: Side of all views, pixels.

    Returns:
        1. [B, S, S, 2] (x, y), something finite where it is behind.
        2. [B, S, S] whether the other view shows it.
    """
    step = torch.arange(size, device=homographies.device, dtype=homographies.dtype)
    y, x = torch.meshgrid(step, step, indexing="ij")
    pixels = torch.stack((x, y, torch.ones_like(x)), -1)[:, :, None]
    # no product of matrices, which CUDA's bfloat16 would take
    lifted = (pixels * homographies[:, None, None]).sum(-1)
    depth = lifted[..., 2:]
    places = lifted[..., :2] / depth.clamp(min=1e-6)
    is_inside = ((places >= 0) & (places <= size - 1)).all(-1)
    return places, is_inside & (depth[..., 0] > 1e-6)
