"""What a step of training the compact features sees: views, and places in them."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sfmprep.coords import centre_from_colmap
from sfmprep.models.extractors.compact_network import DESCRIPTOR_DIM, CompactNetwork
from sfmprep.train.pairs.photographs import Photograph
from sfmprep.train.pairs.views import (
    as_tensor_image,
    draw_gaussians,
    inside,
    overlapping,
    photometric,
    random_homography,
    transform,
    warp,
)
from sfmprep.types import Features, Float32, Float64

logger = logging.getLogger(__name__)

_SIGMA = 0.8  # pixels, of a keypoint in the target of the score map
_MAX_PLACES = 384  # of a pair of views in the contrastive loss
_FITTED = 32  # photographs that tell what a trained network's descriptors follow
_JITTER = 0.6  # pixels: descriptors are trained where detections may fall


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapted:
    """What the teacher says of one photograph."""

    xy: Float32  # [N, 2] pixel centres at integers
    repeatability: Float32  # [N] in 0..1
    descriptors: Float32  # [N, 64] unit rows


@dataclass(frozen=True, kw_only=True, eq=False)
class Batch:
    """2 B views, view 2 b and 2 b + 1 of one photograph, and their places."""

    images: Tensor  # [2 B, 3, S, S]
    target: Tensor  # [2 B, S, S] in 0..1
    view: Tensor  # [P] int64, of each place
    xy: Tensor  # [P, 2] pixel centres at integers
    repeatability: Tensor  # [P]
    descriptors: Tensor  # [P, 64] of the teacher
    pairs: tuple[tuple[Tensor, Tensor], ...]  # B of rows [M], the same place in both
    to_second: Tensor  # [B, 3, 3] homography of pixels, from view 2 b to view 2 b + 1
    jitter: Tensor  # [P, 2] pixels by which descriptors are taken beside their places

    @property
    def num_pairs(self) -> int:
        """How many photographs it shows, twice each."""
        return len(self.pairs)


def find_basis(features: Sequence[Features]) -> Float32:
    """Finds the 64 directions [D, 64] that keep the most of the descriptors' products.

    An uncentred principal component analysis.
    """
    rows = np.concatenate([each.descriptors for each in features]).astype(np.float32)
    _, vectors = np.linalg.eigh(rows.T @ rows)
    basis: Float32 = vectors[:, -DESCRIPTOR_DIM:].astype(np.float32)
    kept = float(np.square(rows @ basis).sum() / np.square(rows).sum())
    logger.info("%.1f %% of the teacher's descriptors are kept", 100 * kept)
    return basis


@torch.inference_mode()
def fit_basis(
    network: CompactNetwork,
    photographs: Sequence[Photograph],
    features: Sequence[Features],
) -> Float32:
    """Finds the 64 directions [D, 64] that a trained network's descriptors follow.

    Orthogonal Procrustes of the teacher's descriptors and the network's, in some of the
    photographs.
    """
    network.eval()
    products, cosines = [], []
    for photograph, told in list(zip(photographs, features, strict=True))[:_FITTED]:
        pixels = torch.from_numpy(as_tensor_image(photograph))[None]
        xy = torch.from_numpy(centre_from_colmap(told.xy))
        where = torch.zeros(len(xy), dtype=torch.int64)
        own = network.describe(network(pixels), where, xy).numpy()
        products.append(told.descriptors.astype(np.float32).T @ own)
        cosines.append(own)
    left, _, right = np.linalg.svd(np.sum(products, 0), full_matrices=False)
    basis: Float32 = (left @ right).astype(np.float32)
    said = [project(each, basis).descriptors for each in features[: len(cosines)]]
    alike = np.concatenate([(a * b).sum(1) for a, b in zip(said, cosines, strict=True)])
    logger.info("the network's descriptors are the teacher's to %.2f", alike.mean())
    return basis


def project(features: Features, basis: Float32) -> Adapted:
    """Brings the teacher's descriptors to the length of the student's."""
    projected = features.descriptors.astype(np.float32) @ basis
    projected /= np.linalg.norm(projected, axis=1, keepdims=True) + 1e-8
    return Adapted(
        xy=centre_from_colmap(features.xy),
        repeatability=features.scores,
        descriptors=projected,
    )


def make_batch(
    rng: np.random.Generator,
    photographs: Sequence[Photograph],
    adapted: Sequence[Adapted],
    *,
    num_pairs: int,
    size: int,
) -> Batch:
    """Draws the views of one step."""
    images, targets, columns, pairs, to_second = [], [], [], [], []
    num_rows = 0
    for b, k in enumerate(rng.integers(len(photographs), size=num_pairs)):
        photograph, places = photographs[k], adapted[k]
        size_wh = photograph.shape[1], photograph.shape[0]
        row_of = []
        first, second = _two_views(rng, size_wh, size)
        to_second.append((second @ np.linalg.inv(first)).astype(np.float32))
        for side, homography in enumerate((first, second)):
            xy = transform(homography, places.xy).astype(np.float32)
            seen = np.flatnonzero(inside(xy, (size, size)))
            images.append(
                as_tensor_image(photometric(rng, warp(photograph, homography, size)))
            )
            heights = places.repeatability[seen]
            targets.append(
                draw_gaussians(xy[seen], heights, (size, size), sigma=_SIGMA, radius=2)
            )
            columns.append((2 * b + side, seen, xy[seen], places))
            rows = np.full(len(xy), -1)
            rows[seen] = num_rows + np.arange(len(seen))
            num_rows += len(seen)
            row_of.append(rows)
        both = np.flatnonzero((row_of[0] >= 0) & (row_of[1] >= 0))
        chosen = rng.permutation(both)[:_MAX_PLACES]
        pairs.append(
            (torch.from_numpy(row_of[0][chosen]), torch.from_numpy(row_of[1][chosen]))
        )
    views = np.concatenate([np.full(len(seen), v) for v, seen, _, _ in columns])
    xy = np.concatenate([xy for _, _, xy, _ in columns])
    return Batch(
        images=torch.from_numpy(np.stack(images)),
        target=torch.from_numpy(np.stack(targets)),
        view=torch.from_numpy(views.astype(np.int64)),
        xy=torch.from_numpy(xy),
        repeatability=torch.from_numpy(
            np.concatenate([p.repeatability[s] for _, s, _, p in columns])
        ),
        descriptors=torch.from_numpy(
            np.concatenate([p.descriptors[s] for _, s, _, p in columns])
        ),
        pairs=tuple(pairs),
        to_second=torch.from_numpy(np.stack(to_second)),
        jitter=torch.from_numpy(rng.normal(0, _JITTER, xy.shape).astype(np.float32)),
    )


def _two_views(
    rng: np.random.Generator, photograph_size: tuple[int, int], size: int
) -> tuple[Float64, Float64]:
    """Two overlapping views: one near upright, the other turned and scaled freely."""
    first = random_homography(
        rng, photograph_size, size, max_rotation_deg=10, max_scale=1.3
    )
    second = random_homography(
        rng, photograph_size, size, max_rotation_deg=50, max_scale=1.6, max_tilt=0.35
    )
    return first, overlapping(rng, first, second, size, 0.2)
