"""Trains the compact features on adapted photographs.

Each step draws two views of some photographs, lit differently. The network learns
    score       where the teacher fired repeatedly (binary cross-entropy with a Gaussian
                of the height of the repeatability at each place),
    position    the sub-pixel place of each (soft-argmax of the window around it),
    teacher     the teacher's mean descriptor, projected to 64 dimensions (cosine),
    contrast    that a place is more like itself in the other view than like any other
                place (dual softmax over the places that both views see).
On request also the two of R2D2, see `r2d2_losses`:
    reliability     a high score only where the descriptor finds its place,
    repeatability   score maps of both views alike, and a peak in each window.
The learning rate falls with the inverse square root of the step and the weights that
are exported are an exponential mean, so that training may stop at any step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.errors import StoreError
from sfmprep.models.extractors.compact import soft_offset
from sfmprep.models.extractors.compact_network import CompactNetwork, Maps
from sfmprep.progress import Progress, silent
from sfmprep.stores.tables import FeatureStore
from sfmprep.train import checkpoints
from sfmprep.train.extractor.adaptation import adapt
from sfmprep.train.extractor.data import (
    Batch,
    find_basis,
    fit_basis,
    make_batch,
    project,
)
from sfmprep.train.extractor.r2d2_losses import places_loss, repeatability_loss
from sfmprep.train.loop import run_training
from sfmprep.train.pairs.photographs import Photographs
from sfmprep.types import Float32
from sfmprep.weights import ResolvedWeights, file_sha256, load_strict, load_tensors

logger = logging.getLogger(__name__)


_WARM_UP = 100  # steps
_HALF_LIFE = 3000  # step at which the learning rate has fallen to 0.7 of itself
_RATE = 2e-3
_MEAN_STEPS = 500  # that the exported weights are a mean of, about
_TOO_NEAR = 3.0  # pixels: neighbours are no negatives
_WEIGHTS = {
    "score": 1.0,
    "position": 1.0,
    "teacher": 1.5,
    "contrast": 0.3,
    "reliability": 1.0,
    "repeatability": 1.0,
}

Added = Literal["reliability", "repeatability"]


def losses(
    network: CompactNetwork,
    temperature: Tensor,
    batch: Batch,
    also: Collection[Added] = (),
) -> dict[str, Tensor]:
    """Computes the losses of a batch, unweighted; see the module.

    Args:
        network: In training mode.
        temperature: Logarithm of what cosines are multiplied by, a scalar.
        batch: The views.
        also: Which of R2D2's losses beside the four.
    """
    maps = network(batch.images)
    weight = 1 + 10 * batch.target
    score = F.binary_cross_entropy_with_logits(maps.logits, batch.target, weight)
    descriptors = network.describe(maps, batch.view, batch.xy + batch.jitter)
    teacher = 1 - (descriptors * batch.descriptors).sum(1)
    found = {
        "score": 10 * score,
        "position": _position_loss(maps, batch),
        "teacher": (teacher * batch.repeatability).sum()
        / batch.repeatability.sum().clamp(min=1),
        "contrast": _contrast_loss(descriptors, temperature, batch),
    }
    if "reliability" in also:
        found["reliability"] = places_loss(network, maps, descriptors, batch)
    if "repeatability" in also:
        found["repeatability"] = repeatability_loss(maps, batch)
    return found


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

    def __init__(
        self,
        device: str,
        basis: Float32,
        network: CompactNetwork,
        also: Collection[Added],
        began: Mapping[str, Any],
    ) -> None:
        self.basis = torch.from_numpy(basis)
        self.also = also
        self.began = began
        self.network = network.to(device)
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
            "began": self.began,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        self.network.load_state_dict(state["network"])
        self.mean.load_state_dict(state["mean"])
        self.temperature.data.copy_(state["temperature"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]

    def advance(self, batch: Batch) -> dict[str, Tensor]:
        """Takes one step; returns the losses."""
        self.network.train()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step)
        with torch.autocast("cuda", torch.bfloat16, enabled=batch.images.is_cuda):
            found = losses(self.network, self.temperature, batch, self.also)
        total = torch.stack([_WEIGHTS[name] * loss for name, loss in found.items()])
        self.optimiser.zero_grad()
        torch.autograd.backward(total.sum())
        nn.utils.clip_grad_norm_(self.network.parameters(), 5.0)
        self.optimiser.step()
        self.step += 1
        share = max(1 / (self.step + 1), min(1 / _MEAN_STEPS, 10 / (self.step + 10)))
        with torch.no_grad():
            mean = self.mean.state_dict()
            for name, value in self.network.state_dict().items():
                if value.is_floating_point():
                    mean[name].lerp_(value, share)
                else:
                    mean[name].copy_(value)
        return {name: loss.detach() for name, loss in found.items()}


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
    init: Path | None = None,
    also: Sequence[Added] = (),
    device: str = "cpu",
    max_steps: int | None = None,
    progress: Progress = silent,
) -> int:
    """Trains for a time, from the checkpoint in `out` where there is one.

    The first minutes go into the adaptation of the photographs, `adapted.h5`.

    Args:
        data: The photographs.
        out: Folder of `extractor.pt` and `extractor.jsonl`.
        minutes: How long for the adaptation and the steps together.
        seed: With the step it determines the views of that step.
        num_pairs: Photographs of a step, two views each.
        size: Side of the views, pixels, a multiple of 16.
        init: Weights to start from, as `export_extractor` writes them; the teacher's
            descriptors are turned to theirs.
        also: Which of R2D2's losses beside the four.
        device: Where the network runs; in bfloat16 on CUDA.
        max_steps: Stop there at the latest.
        progress: Shows the adaptation.

    Returns:
        The steps taken so far, 0 where the time did not suffice for the adaptation.

    Raises:
        ImageError: see `Photographs`.
        StoreError: a checkpoint is damaged or began otherwise, or `adapted.h5` was made
            otherwise.
        WeightsError: the teacher's weights cannot be had, or `init` does not fit.
    """
    photographs = Photographs(data)
    end = time.monotonic() + 60 * minutes
    adapted = out / "adapted.h5"
    out.mkdir(parents=True, exist_ok=True)
    if not adapt(photographs, adapted, end=end, device=device, progress=progress):
        logger.info("the adaptation is not finished; the next call goes on")
        return 0
    left = max(0.0, end - time.monotonic())
    with FeatureStore(adapted) as store:
        features = [store.get(name) for name in photographs.names]
    torch.manual_seed(seed)
    network = CompactNetwork()
    began: dict[str, Any] = {"init_sha256": None, "also": sorted(also)}
    if init is not None:
        weights = ResolvedWeights(name="compact", path=init, sha256=file_sha256(init))
        load_strict(network, load_tensors(weights), weights)
        began["init_sha256"] = weights.sha256
    checkpoint = out / "extractor.pt"
    state = checkpoints.load(checkpoint)
    if state is not None and state.get("began") != began:
        raise StoreError(
            f"{checkpoint} began with {state.get('began')}, but this call has {began}."
            " Go on with the same weights and losses, or train into another folder."
        )
    if state is not None:
        basis = state["basis"].numpy()
    elif init is not None:
        basis = fit_basis(network, photographs, features)
    else:
        basis = find_basis(features)
    trainer = _Trainer(device, basis, network, also, began)
    if state is not None:
        trainer.restore(state)
        logger.info("%s: going on from step %d", checkpoint, trainer.step)
    teachings = [project(each, trainer.basis.numpy()) for each in features]

    def draw(step: int) -> Batch:
        rng = np.random.default_rng([seed, step])
        return make_batch(rng, photographs, teachings, num_pairs=num_pairs, size=size)

    return run_training(
        trainer,
        draw,
        checkpoint=checkpoint,
        log=checkpoints.RunLog(out / "extractor.jsonl"),
        device=device,
        end=time.monotonic() + left,
        max_steps=max_steps,
        num_threads=2,
    )


def export_extractor(checkpoint: Path, path: Path) -> None:
    """Writes the mean weights of a checkpoint as float16 safetensors.

    Raises:
        StoreError: there is no checkpoint, or it is damaged.
    """
    state = checkpoints.load(checkpoint)
    if state is None:
        raise StoreError(f"{checkpoint} is not there. Train the extractor first.")
    about = {"steps": str(state["step"]), "also": " ".join(state["began"]["also"])}
    checkpoints.export_halves(state["mean"], path, about)
    logger.info("wrote %s", path)
