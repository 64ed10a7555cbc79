"""The image pairs that S2LD is trained on, made of single photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from sfmprep.train.pairs.parallax import sample_parallax
from sfmprep.train.pairs.photographs import Photograph
from sfmprep.train.pairs.views import as_tensor_image, photometric
from sfmprep.train.s2ld.supervision import PairTruth
from sfmprep.types import Float32

# from pixel centres at integers to COLMAP's pixels
_HALF_PIXEL = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
_MAX_ANGLE_DEG = (4.0, 45.0)  # of the easiest and of the hardest pairs
_MAX_ROLL_DEG = (4.0, 30.0)
_MAX_SCALE = (1.05, 1.5)


@dataclass(frozen=True)
class PairBatch:
    """N image pairs and what is true of them."""

    grey0: Tensor
    """[N, 1, H, W] float32 in 0..1."""
    grey1: Tensor
    """[N, 1, H, W], the same."""
    truth: PairTruth

    @property
    def num_pairs(self) -> int:
        """How many pairs there are."""
        return len(self.grey0)


def draw_batch(
    rng: np.random.Generator,
    photographs: Sequence[Photograph],
    *,
    num_pairs: int,
    size: int,
    difficulty: float,
) -> PairBatch:
    """Draws pairs of views of photographs that were given a random depth.

    Args:
        rng: The only source of chance.
        photographs: What is seen.
        num_pairs: N.
        size: Side of the square views, pixels, a multiple of 8.
        difficulty: In 0..1. At 0 the cameras are near each other and see the same
            light, which a network with random weights learns to match soonest; at 1
            they are up to 45 degrees apart and each sees its own.
    """
    views = [
        sample_parallax(
            rng,
            photographs[index],
            size,
            max_angle_deg=float(np.interp(difficulty, (0, 1), _MAX_ANGLE_DEG)),
            max_roll_deg=float(np.interp(difficulty, (0, 1), _MAX_ROLL_DEG)),
            max_scale=float(np.interp(difficulty, (0, 1), _MAX_SCALE)),
        )
        for index in rng.integers(len(photographs), size=num_pairs)
    ]
    motion = np.tile(np.eye(4), (num_pairs, 1, 1))
    motion[:, :3] = [view.cam1_from_cam0 for view in views]
    truth = PairTruth(
        depth0=_stacked([view.depth0 for view in views]),
        depth1=_stacked([view.depth1 for view in views]),
        K0=_stacked([view.K0 + _HALF_PIXEL for view in views]),
        K1=_stacked([view.K1 + _HALF_PIXEL for view in views]),
        cam1_from_cam0=_stacked(motion),
    )
    return PairBatch(
        _stacked([_lit(rng, view.image0, difficulty) for view in views]),
        _stacked([_lit(rng, view.image1, difficulty) for view in views]),
        truth,
    )


def _lit(rng: np.random.Generator, image: Float32, difficulty: float) -> Float32:
    """Turns [3, S, S] RGB into [1, S, S] grey, in another light if chance says so."""
    if rng.random() < difficulty:
        as_bytes = np.rint(image.transpose(1, 2, 0) * 255).astype(np.uint8)
        image = as_tensor_image(photometric(rng, as_bytes))
    pixels = np.ascontiguousarray(image.transpose(1, 2, 0))
    return np.asarray(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY)[None], np.float32)


def _stacked(arrays: Sequence[np.ndarray] | np.ndarray) -> Tensor:
    return torch.from_numpy(np.asarray(arrays, np.float32))
