"""Homographic adaptation: what a teacher finds again under many warps.

DeTone, Malisiewicz, Rabinovich, "SuperPoint", CVPR Workshops 2018, with ALIKED
(BSD-3-Clause) for the teacher. A place of a photograph counts as much as the share of
random warps, lit differently, in which the teacher fires there; its descriptor is the
mean of those that the teacher gives it in the warps. The result is one `FeatureStore`,
so that a stopped run continues and training needs no teacher.
"""

from __future__ import annotations

import hashlib
import math
import time
from pathlib import Path

import cv2
import numpy as np
import torch
from torch import Tensor

from sfmprep.coords import colmap_from_centre
from sfmprep.models.extractors.aliked import detect_keypoints
from sfmprep.models.extractors.aliked_network import AlikedNetwork
from sfmprep.models.shared.nms import best_of_each, strict_maxima
from sfmprep.progress import Progress, silent
from sfmprep.stores.tables import FeatureStore
from sfmprep.train.pairs.photographs import Photograph, Photographs
from sfmprep.train.pairs.views import (
    as_tensor_image,
    draw_gaussians,
    inside,
    photometric,
    random_homography,
    shifted,
    transform,
)
from sfmprep.types import Features, Float32, Float64
from sfmprep.weights import load_strict, load_tensors, resolve_weights

TEACHER = "aliked-n16"
NUM_WARPS = 4  # the first is the photograph itself
MAX_KEYPOINTS = 1024
_MIN_REPEATABILITY = 0.2
_SIGMA = 1.0  # pixels, of one detection
_RADIUS = 3
_FULL_SCORE = 0.5  # of the teacher; higher ones count no more


def adapt(
    photographs: Photographs,
    path: Path,
    *,
    seed: int = 0,
    end: float = math.inf,
    device: str = "cpu",
    progress: Progress = silent,
) -> bool:
    """Writes the adapted features of photographs that the store still lacks.

    In the store `scores` are repeatabilities in 0..1 and `descriptors` the teacher's.
    It stops at `end`, a time of `time.monotonic`.

    Returns:
        Whether all photographs are there now.

    Raises:
        StoreError: the store was made with another teacher or seed, or of other
            photographs.
        WeightsError: the teacher's weights cannot be had.
    """
    weights = resolve_weights(TEACHER)
    network = AlikedNetwork(TEACHER)
    load_strict(network, load_tensors(weights), weights)
    network.prepare(torch.float32)
    network.to(device)
    digest = hashlib.sha256()
    for name, pixels in zip(photographs.names, photographs, strict=True):
        digest.update(repr((name, pixels.shape)).encode())
        digest.update(pixels.tobytes())
    provenance = {
        "teacher": TEACHER,
        "weights_sha256": weights.sha256,
        "num_warps": NUM_WARPS,
        "seed": seed,
        "max_size": photographs.max_size,
        "photographs_sha256": digest.hexdigest(),
    }
    with FeatureStore(path, provenance) as store:
        names = [name for name in photographs.names if name not in store]
        for name in progress(names, total=len(names), desc="adaptation"):
            if time.monotonic() > end:
                return False
            of_name = hashlib.sha256(name.encode()).digest()
            rng = np.random.default_rng([seed, *of_name[:8]])
            photograph = photographs[photographs.names.index(name)]
            store.append([(name, adapt_photograph(network, photograph, rng, device))])
    return True


@torch.inference_mode()
def adapt_photograph(
    network: AlikedNetwork,
    photograph: Photograph,
    rng: np.random.Generator,
    device: str,
) -> Features:
    """Finds the repeatable places of one photograph [H, W, 3], and describes them."""
    height, width = photograph.shape[:2]
    size = (width, height)
    fired = np.zeros((height, width), np.float32)
    seen = np.zeros((height, width), np.float32)
    warps = []
    for number in range(NUM_WARPS):
        homography = np.eye(3) if number == 0 else _random_warp(rng, size)
        view = cv2.warpPerspective(photograph, homography, size)
        if number:
            view = photometric(rng, view.astype(np.uint8, copy=False))
        pixels = torch.from_numpy(as_tensor_image(view.astype(np.uint8, copy=False)))
        maps = network(pixels[None].to(device))
        _, xy, scores = detect_keypoints(
            maps.scores, radius=2, min_score=0.1, max_keypoints=2 * MAX_KEYPOINTS
        )
        back = transform(np.linalg.inv(homography), xy.cpu().numpy()).astype(np.float32)
        heights = (scores / _FULL_SCORE).clamp(max=1).cpu().numpy()
        fired += draw_gaussians(back, heights, size, sigma=_SIGMA, radius=_RADIUS)
        seen += cv2.warpPerspective(
            np.ones_like(fired), np.linalg.inv(homography), size, flags=cv2.INTER_LINEAR
        )
        warps.append((homography, maps))
    places, repeatability = _peaks(torch.from_numpy(fired / np.maximum(seen, 1)))
    total: Tensor | float = 0.0
    for homography, maps in warps:
        there = transform(homography, places).astype(np.float32)
        is_seen = torch.from_numpy(inside(there, size)).to(device)
        at = torch.from_numpy(there).to(device).clamp(min=0)
        at = at.minimum(torch.tensor((width - 1.0, height - 1.0), device=device))
        image = torch.zeros(len(at), dtype=torch.int64, device=device)
        total = total + network.describe(maps, image, at) * is_seen[:, None]
    descriptors = torch.nn.functional.normalize(torch.as_tensor(total), dim=1)
    return Features(
        xy=colmap_from_centre(places),
        scores=repeatability,
        descriptors=descriptors.cpu().numpy().astype(np.float16),
        image_size=size,
    )


def _random_warp(rng: np.random.Generator, size: tuple[int, int]) -> Float64:
    """A mild warp of a whole photograph onto its own canvas."""
    side = max(size)
    warp = random_homography(
        rng, size, side, max_rotation_deg=25, max_scale=1.35, max_tilt=0.15
    )
    middle = (np.array(size) - 1) / 2  # of the canvas; the view is square
    return shifted(warp, middle - transform(warp, middle))


def _peaks(heat: Tensor) -> tuple[Float32, Float32]:
    """Finds peaks of a map [H, W]: xy [N, 2], centres at integers, and heights [N]."""
    peaks = strict_maxima(heat[None], radius=2, threshold=_MIN_REPEATABILITY)
    peaks = peaks[
        best_of_each(peaks[:, 0], heat[peaks[:, 1], peaks[:, 2]], limit=MAX_KEYPOINTS)
    ]
    _, y, x = peaks.unbind(1)
    logs = heat.clamp(min=1e-4).log()  # a Gaussian's is a parabola
    offsets = []
    for below, above in (
        (logs[y, x - 1], logs[y, x + 1]),
        (logs[y - 1, x], logs[y + 1, x]),
    ):
        curvature = (below + above - 2 * logs[y, x]).clamp(max=-1e-3)
        offsets.append(((below - above) / (2 * curvature)).clamp(-0.5, 0.5))
    xy = torch.stack((x + offsets[0], y + offsets[1]), 1)
    return xy.numpy().astype(np.float32), heat[y, x].numpy()
