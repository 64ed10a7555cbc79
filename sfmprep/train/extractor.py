"""Trains the compact features on adapted photographs.

Each step draws two views of some photographs, lit differently. The network learns
    score       where the teacher fired repeatedly (binary cross-entropy with a Gaussian
                of the height of the repeatability at each place),
    position    the sub-pixel place of each (soft-argmax of the window around it),
    teacher     the teacher's mean descriptor, projected to 64 dimensions (cosine),
    contrast    that a place is more like itself in the other view than like any other
                place (dual softmax over the places that both views see).
The learning rate falls with the inverse square root of the step and the weights that
are exported are an exponential mean, so that training may stop at any step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor, nn

from sfmprep.coords import centre_from_colmap
from sfmprep.errors import StoreError
from sfmprep.models.compact import soft_offset
from sfmprep.models.compact_network import DESCRIPTOR_DIM, CompactNetwork, Maps
from sfmprep.progress import Progress, silent
from sfmprep.stores import FeatureStore
from sfmprep.train import checkpoints
from sfmprep.train.adaptation import adapt
from sfmprep.train.photographs import Photograph, Photographs
from sfmprep.train.views import (
    Matrix,
    as_tensor_image,
    inside,
    photometric,
    random_homography,
    transform,
    warp,
)
from sfmprep.types import Features, Float32

logger = logging.getLogger(__name__)

_SAVE_EVERY_S = 120
_LOG_EVERY = 50
_WARM_UP = 100  # steps
_HALF_LIFE = 3000  # step at which the learning rate has fallen to 0.7 of itself
_RATE = 2e-3
_MEAN_STEPS = 500  # that the exported weights are a mean of, about
_SIGMA = 0.8  # pixels, of a keypoint in the target of the score map
_MAX_PLACES = 384  # of a pair of views in the contrastive loss
_JITTER = 0.6  # pixels: descriptors are trained where detections may fall
_TOO_NEAR = 3.0  # pixels: neighbours are no negatives
_WEIGHTS = {"score": 1.0, "position": 1.0, "teacher": 1.5, "contrast": 0.3}


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

    def to(self, device: str) -> Batch:
        """The same on another device."""
        return Batch(
            images=self.images.to(device),
            target=self.target.to(device),
            view=self.view.to(device),
            xy=self.xy.to(device),
            repeatability=self.repeatability.to(device),
            descriptors=self.descriptors.to(device),
            pairs=tuple((a.to(device), b.to(device)) for a, b in self.pairs),
        )


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
    images, targets, columns, pairs = [], [], [], []
    num_rows = 0
    for b, k in enumerate(rng.integers(len(photographs), size=num_pairs)):
        photograph, places = photographs[k], adapted[k]
        size_wh = photograph.shape[1], photograph.shape[0]
        row_of = []
        for side, homography in enumerate(_two_views(rng, size_wh, size)):
            xy = transform(homography, places.xy)
            seen = np.flatnonzero(inside(xy, (size, size)))
            images.append(
                as_tensor_image(photometric(rng, warp(photograph, homography, size)))
            )
            targets.append(_target(xy[seen], places.repeatability[seen], size))
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
    return Batch(
        images=torch.from_numpy(np.stack(images)),
        target=torch.from_numpy(np.stack(targets)),
        view=torch.from_numpy(views.astype(np.int64)),
        xy=torch.from_numpy(np.concatenate([xy for _, _, xy, _ in columns])),
        repeatability=torch.from_numpy(
            np.concatenate([p.repeatability[s] for _, s, _, p in columns])
        ),
        descriptors=torch.from_numpy(
            np.concatenate([p.descriptors[s] for _, s, _, p in columns])
        ),
        pairs=tuple(pairs),
    )


def _two_views(
    rng: np.random.Generator, photograph_size: tuple[int, int], size: int
) -> tuple[Matrix, Matrix]:
    """Two overlapping views: one near upright, the other turned and scaled freely."""
    first = random_homography(
        rng, photograph_size, size, max_rotation_deg=10, max_scale=1.3
    )
    second = random_homography(
        rng, photograph_size, size, max_rotation_deg=50, max_scale=1.6, max_tilt=0.35
    )
    shift = np.eye(3)
    middle = transform(second @ np.linalg.inv(first), np.full(2, (size - 1) / 2))
    shift[:2, 2] = (size - 1) / 2 + rng.uniform(-0.2, 0.2, 2) * size - middle
    return first, shift @ second


def _target(xy: Float32, heights: Float32, size: int) -> Float32:
    """Draws a Gaussian for each place, [S, S]; the higher one where two meet."""
    drawn = np.zeros((size, size), np.float32)
    whole = np.rint(xy).astype(np.int64)
    for dy in range(-2, 3):
        for dx in range(-2, 3):
            at = whole + (dx, dy)
            squared = np.square(at - xy).sum(1, dtype=np.float32)
            value = heights * np.exp(-squared / np.float32(2 * _SIGMA**2))
            keep = inside(at, (size, size))
            np.maximum.at(drawn, (at[keep, 1], at[keep, 0]), value[keep])
    return drawn


def losses(
    network: CompactNetwork, temperature: Tensor, batch: Batch, jitter: Tensor
) -> dict[str, Tensor]:
    """Computes the four losses of a batch, unweighted; see the module.

    Args:
        network: In training mode.
        temperature: Logarithm of what cosines are multiplied by, a scalar.
        batch: The views.
        jitter: [P, 2] pixels by which descriptors are taken beside their places.
    """
    maps = network(batch.images)
    weight = 1 + 10 * batch.target
    score = F.binary_cross_entropy_with_logits(maps.logits, batch.target, weight)
    cosines = network.describe(maps, batch.view, batch.xy + jitter)
    teacher = 1 - (cosines * batch.descriptors).sum(1)
    return {
        "score": 10 * score,
        "position": _position_loss(maps, batch),
        "teacher": (teacher * batch.repeatability).sum()
        / batch.repeatability.sum().clamp(min=1),
        "contrast": _contrast_loss(cosines, temperature, batch),
    }


def _position_loss(maps: Maps, batch: Batch) -> Tensor:
    """Mean distance of the soft-argmax of a window from the place in it, pixels."""
    size = maps.logits.shape[-1]
    whole = batch.xy.round().long()
    usable = ((whole > 1) & (whole < size - 2)).all(1)  # the window is inside
    usable &= batch.repeatability > 0.4
    whole, view = whole[usable], batch.view[usable]
    found = soft_offset(maps.logits, view, whole[:, 1], whole[:, 0])
    error = (found - (batch.xy[usable] - whole)).abs().sum(1)
    return error.sum() / max(1, len(error))


def _contrast_loss(descriptors: Tensor, temperature: Tensor, batch: Batch) -> Tensor:
    """Negative log-likelihood of the true places in a dual softmax of cosines."""
    total = descriptors.sum() * 0
    count = 0.0
    for rows0, rows1 in batch.pairs:
        if len(rows0) < 2:
            continue
        similarity = descriptors[rows0] @ descriptors[rows1].T * temperature.exp()
        places = batch.xy[rows1]
        near = torch.cdist(places, places) < _TOO_NEAR
        near.fill_diagonal_(False)
        similarity = similarity.masked_fill(near, -1e4)
        likelihood = similarity.log_softmax(0) + similarity.log_softmax(1)
        weight = batch.repeatability[rows0]
        total = total - (likelihood.diagonal() * weight).sum()
        count += float(weight.sum())
    return total / max(1.0, 2 * count)


class _Trainer:
    """Everything that a checkpoint holds."""

    def __init__(self, device: str, seed: int, basis: Float32) -> None:
        torch.manual_seed(seed)
        self.basis = torch.from_numpy(basis)
        self.network = CompactNetwork().to(device)
        self.temperature = nn.Parameter(torch.tensor(2.7, device=device))
        self.mean = CompactNetwork().to(device)
        self.mean.load_state_dict(self.network.state_dict())
        self.optimiser = torch.optim.AdamW(
            [*self.network.parameters(), self.temperature], lr=_RATE, weight_decay=1e-4
        )
        self.step = 0

    def state(self) -> dict[str, Any]:
        return {
            "network": self.network.state_dict(),
            "mean": self.mean.state_dict(),
            "temperature": self.temperature.detach(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "basis": self.basis,
        }

    def restore(self, state: dict[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.mean.load_state_dict(state["mean"])
        self.temperature.data.copy_(state["temperature"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        self.basis = state["basis"]

    def advance(self, batch: Batch, jitter: Tensor) -> dict[str, float]:
        """Takes one step; returns the losses."""
        self.network.train()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step)
        found = losses(self.network, self.temperature, batch, jitter)
        total = sum((_WEIGHTS[name] * loss for name, loss in found.items()), 0.0)
        assert isinstance(total, Tensor)
        self.optimiser.zero_grad()
        total.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimiser.step()
        self.step += 1
        share = min(1 / _MEAN_STEPS, 1 - self.step / (self.step + 10))
        with torch.no_grad():
            mean = self.mean.state_dict()
            for name, value in self.network.state_dict().items():
                if value.is_floating_point():
                    mean[name].lerp_(value, max(share, 1 / (self.step + 1)))
                else:
                    mean[name].copy_(value)
        return {name: float(loss.detach()) for name, loss in found.items()}


def learning_rate(step: int) -> float:
    """Rises over the first steps, then falls with the inverse square root."""
    return float(_RATE * min(1, (step + 1) / _WARM_UP) / (1 + step / _HALF_LIFE) ** 0.5)


def train_extractor(
    *,
    data: Path,
    out: Path,
    minutes: float,
    seed: int = 0,
    num_pairs: int = 6,
    size: int = 256,
    device: str = "cpu",
    max_steps: int | None = None,
    progress: Progress = silent,
) -> int:
    """Trains for a time, from the checkpoint in `out` where there is one.

    The first minutes go into the adaptation of the photographs, `adapted.h5`.

    Args:
        data: The photographs.
        out: Folder of `extractor.pt` and `extractor.jsonl`.
        minutes: How long, with all preparations.
        seed: With the step it determines the views of that step.
        num_pairs: Photographs of a step, two views each.
        size: Side of the views, pixels, a multiple of 16.
        device: Where the network runs; in bfloat16 on CUDA.
        max_steps: Stop there at the latest.
        progress: Shows the adaptation.

    Returns:
        The steps taken so far, 0 where the time did not suffice for the adaptation.

    Raises:
        ImageError: see `Photographs`.
        StoreError: a checkpoint is damaged, or `adapted.h5` was made otherwise.
        WeightsError: the teacher's weights cannot be had.
    """
    end = time.monotonic() + 60 * minutes
    photographs = Photographs(data)
    adapted = out / "adapted.h5"
    out.mkdir(parents=True, exist_ok=True)
    if not adapt(photographs, adapted, end=end, device=device, progress=progress):
        logger.info("the adaptation is not finished; the next call goes on")
        return 0
    with FeatureStore(adapted) as store:
        features = [store.get(name) for name in photographs.names]
    trainer = _Trainer(device, seed, find_basis(features))
    checkpoint = out / "extractor.pt"
    if (state := checkpoints.load(checkpoint)) is not None:
        trainer.restore(state)
    teachings = [project(each, trainer.basis.numpy()) for each in features]
    log = checkpoints.RunLog(out / "extractor.jsonl")
    saved = time.monotonic()
    recent: list[dict[str, float]] = []

    def draw(step: int) -> tuple[Batch, Tensor]:
        rng = np.random.default_rng([seed, step])
        batch = make_batch(rng, photographs, teachings, num_pairs=num_pairs, size=size)
        jitter = rng.normal(0, _JITTER, tuple(batch.xy.shape)).astype(np.float32)
        return batch, torch.from_numpy(jitter)

    for batch, jitter in _ahead(draw, trainer.step, max_steps):
        with torch.autocast("cuda", torch.bfloat16, enabled=device.startswith("cuda")):
            recent.append(trainer.advance(batch.to(device), jitter.to(device)))
        if trainer.step % _LOG_EVERY == 0:
            means = {
                name: round(sum(each[name] for each in recent) / len(recent), 5)
                for name in recent[0]
            }
            log.write(trainer.step, means)
            logger.info("step %d: %s", trainer.step, means)
            recent.clear()
        if time.monotonic() - saved > _SAVE_EVERY_S:
            checkpoints.save(checkpoint, trainer.state())
            saved = time.monotonic()
        if time.monotonic() > end:
            break
    checkpoints.save(checkpoint, trainer.state())
    return trainer.step


def _ahead(draw: Any, start: int, stop: int | None) -> Iterator[Any]:
    """Yields `draw(step)` for the steps from `start`, made ahead in threads."""
    with ThreadPoolExecutor(2) as pool:
        waiting = []
        step = start
        while stop is None or step < stop or waiting:
            while len(waiting) < 4 and (stop is None or step < stop):
                waiting.append(pool.submit(draw, step))
                step += 1
            if not waiting:
                return
            yield waiting.pop(0).result()


def export_extractor(checkpoint: Path, path: Path) -> None:
    """Writes the mean weights of a checkpoint as float16 safetensors.

    Raises:
        StoreError: there is no checkpoint, or it is damaged.
    """
    state = checkpoints.load(checkpoint)
    if state is None:
        raise StoreError(f"{checkpoint} is not there. Train the extractor first.")
    tensors = {
        name: value.half() if value.is_floating_point() else value
        for name, value in state["mean"].items()
    }
    save_file(tensors, path, {"licence": "Apache-2.0", "step": str(state["step"])})
    path.chmod(0o644)  # safetensors makes a file for its owner alone
