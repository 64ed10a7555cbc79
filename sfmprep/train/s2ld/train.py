"""Trains S2LD on views with parallax, from random weights or from LoFTR's.

The losses and their weights are those of the authors' training (Li, Zhao, Xia, IEEE TIP
32, 2023), except that the triangulation has a gradient and so a small weight. Each step
draws its pairs from the seed and its number alone, so a training that is cut and
continued gives the same weights as one that is not. The learning rate rises at first
and then falls with the inverse square root of the step: it may end at any step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from sfmprep.errors import ConfigError
from sfmprep.models.semidense.s2ld_network import (
    CELL,
    WINDOW_REACH,
    S2ldMaps,
    S2ldNetwork,
)
from sfmprep.train import checkpoints
from sfmprep.train.loop import run_training
from sfmprep.train.pairs.photographs import Photographs
from sfmprep.train.s2ld.data import PairBatch, draw_batch
from sfmprep.train.s2ld.init import random_network, warm_start
from sfmprep.train.s2ld.losses import (
    coarse_loss,
    fine_loss,
    keypoint_losses,
    triangulation_loss,
)
from sfmprep.train.s2ld.supervision import (
    choose_fine_matches,
    find_coarse_truth,
    find_fine_truth,
)

logger = logging.getLogger(__name__)

LOSS_WEIGHTS: Mapping[str, float] = {
    "coarse": 1.0,
    "fine": 1.0,
    "keypoint": 0.1,
    "reliability": 0.1,
    "agreement": 0.1,
    "depth": 0.1,  # 1.0 in the release, where it has no gradient
}
"""What each loss is multiplied by before they are added up."""

_TEMPERATURE = 0.1
_GOOD_MATCH_PX = 3.0
_RATE = 4e-4
_WARM_UP = 50  # steps
_HALF_LIFE = 3000  # step at which the learning rate has fallen to 0.7 of itself
_WEIGHT_DECAY = 0.1
_MAX_GRADIENT = 0.5
_HARDEST_STEP = 5000  # from which on pairs are as hard as they get
_FINE_SHARE = 0.3  # fine matches per cell
_MIN_FINE = 200
_TRUE_SHARE = 0.3  # of the fine matches that are at least true ones
_LOG_EVERY = 10


def train_s2ld(
    data: Path,
    out: Path,
    *,
    minutes: float,
    seed: int = 0,
    init: Path | None = None,
    crop: int = 320,
    batch: int = 2,
    device: str = "cpu",
    max_steps: int | None = None,
) -> int:
    """Trains for a time, from the checkpoint in `out` where there is one.

    Args:
        data: Folder of photographs.
        out: Folder of `s2ld.pt`, the checkpoint, which `S2ldConfig.weights` may name,
            and of `s2ld.jsonl`, the losses.
        minutes: How long to train.
        seed: Of the first weights and of all pairs.
        init: A checkpoint of LoFTR (`.ckpt`, `.pt`, `.safetensors`) to start from;
            without it the first weights are random. Not looked at where `out` has a
            checkpoint.
        crop: Side of the views, pixels, a multiple of 8.
        batch: Pairs of a step.
        device: Where the network runs.
        max_steps: Stop there at the latest.

    Returns:
        The steps taken so far.

    Raises:
        ConfigError: `crop` or `batch` is unusable.
        ImageError: `data` holds no photograph, or one cannot be read.
        StoreError: the checkpoint is damaged.
        WeightsError: `init` is not LoFTR's.
    """
    end = time.monotonic() + 60 * minutes
    if crop % CELL or crop < 8 * CELL or batch < 1:
        raise ConfigError(
            f"crop={crop}, batch={batch}: expected a crop of at least {8 * CELL} pixels"
            f" that is a multiple of {CELL}, and at least one pair."
        )
    photographs = Photographs(data, max_size=max(640, 3 * crop))
    path = out / "s2ld.pt"
    trainer = S2ldTrainer(seed=seed, device=device)
    if (state := checkpoints.load(path)) is not None:
        trainer.restore(state)
    elif init is not None:
        warm_start(trainer.network, init)

    def draw(step: int) -> PairBatch:
        return draw_batch(
            np.random.default_rng([seed, step]),
            photographs,
            num_pairs=batch,
            size=crop,
            difficulty=min(1.0, step / _HARDEST_STEP),
        )

    return run_training(
        trainer,
        draw,
        checkpoint=path,
        log=checkpoints.RunLog(out / "s2ld.jsonl"),
        device=device,
        end=end,
        max_steps=max_steps,
        log_every=_LOG_EVERY,
    )


class S2ldTrainer:
    """The network and what a checkpoint holds beside it."""

    def __init__(self, *, seed: int, device: str = "cpu") -> None:
        self.seed = seed
        self.step = 0
        self.network = random_network(seed).to(device)
        self.optimiser = torch.optim.AdamW(
            self.network.parameters(), lr=_RATE, weight_decay=_WEIGHT_DECAY
        )

    def state(self) -> dict[str, Any]:
        """Returns all that `restore` needs."""
        return {
            "state_dict": self.network.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from what `state` returned."""
        self.network.load_state_dict(state["state_dict"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]

    def advance(self, pairs: PairBatch) -> dict[str, Tensor | float]:
        """Takes one step; returns the losses, unweighted, and counts of matches."""
        self.network.train()
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(self.step)
        seed = np.random.SeedSequence([self.seed, self.step]).generate_state(1)
        generator = torch.Generator().manual_seed(int(seed[0]))
        losses, counts = compute_losses(self.network, pairs, generator=generator)
        total = torch.stack([LOSS_WEIGHTS[k] * v for k, v in losses.items()]).sum()
        self.optimiser.zero_grad()
        torch.autograd.backward(total)
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), _MAX_GRADIENT)
        if norm.isfinite():
            self.optimiser.step()
        else:
            logger.warning("step %d: the gradient is not finite; left out", self.step)
        self.step += 1
        return {name: loss.detach() for name, loss in losses.items()} | counts


def compute_losses(
    network: S2ldNetwork,
    pairs: PairBatch,
    *,
    generator: torch.Generator,
) -> tuple[dict[str, Tensor], dict[str, float]]:
    """Runs the network on pairs and compares with what is true.

    Args:
        network: In the mode it shall run in.
        pairs: The images, and depth and pose.
        generator: Chooses the matches of the fine stage: as many as 30 % of the cells,
            as in the release, but no fewer than 200. 30 % of them are true ones rather
            than the network's own, where the release has 200.

    Returns:
        losses: Scalars by the names of `LOSS_WEIGHTS`, unweighted.
        counts: `positives` and `matches` a pair; `good`, the share of the matches
            within 3 px of the truth; `confidence`, the geometric mean over positives.
    """
    truth = pairs.truth
    both = network.extract(torch.cat([pairs.grey0, pairs.grey1]))
    maps0 = S2ldMaps(*(each[: pairs.num_pairs] for each in both))
    maps1 = S2ldMaps(*(each[pairs.num_pairs :] for each in both))
    tokens0, tokens1 = network.coarse(maps0, maps1)
    points0, points1 = maps0.keypoints, maps1.keypoints
    positives = find_coarse_truth(points0, points1, truth)
    log_confidence = log_confidences(tokens0, tokens1)

    found = network.coarse_matches(tokens0, tokens1, maps0.grid, maps1.grid)
    num_cells = len(points0) * points0.shape[1]
    num_fine = max(_MIN_FINE, int(_FINE_SHARE * num_cells))
    batch, cell0, cell1, is_predicted = choose_fine_matches(
        (found.batch, found.first, found.second),
        positives,
        num_matches=num_fine,
        min_positives=int(_TRUE_SHARE * num_fine),
        generator=generator,
    )
    expectation = network.fine(maps0, maps1, tokens0, tokens1, batch, cell0, cell1)
    target = find_fine_truth(batch, cell0, cell1, positives, points1)

    own = (each[is_predicted] for each in (batch, cell0, cell1, expectation, target))
    batch, cell0, cell1, own_expectation, own_target = own
    xy0 = points0[batch, cell0]
    xy1 = points1[batch, cell1] + own_expectation[:, :2] * WINDOW_REACH
    keypoint, reliability, agreement = keypoint_losses(
        points0, points1, maps0.scores, maps1.scores, truth
    )
    losses = {
        "coarse": coarse_loss(log_confidence, positives),
        "fine": fine_loss(expectation, target),
        "keypoint": keypoint,
        "reliability": reliability,
        "agreement": agreement,
        "depth": triangulation_loss(
            xy0,
            xy1,
            log_confidence[batch, cell0, cell1].exp(),
            batch,
            own_target,
            truth,
        ),
    }
    error = torch.linalg.vector_norm(positives.warped0[batch, cell0] - xy1, dim=1)
    good = (error < _GOOD_MATCH_PX) & positives.visible0[batch, cell0]
    at = positives.batch, positives.cell0, positives.cell1
    counts = {
        "positives": len(positives.batch) / len(points0),
        "matches": len(found.batch) / len(points0),
        "good": float(good.float().mean()) if len(good) else 0.0,
        "confidence": float(log_confidence[at].detach().mean().exp()),
    }
    return losses, counts


def log_confidences(
    tokens0: Tensor,  # [N, L, 256]
    tokens1: Tensor,  # [N, S, 256]
) -> Tensor:
    """Returns the logarithm of all confidences of `mutual_matches`, [N, L, S].

    Unlike the confidences, it has a gradient where they are as small as at the start.
    """
    similarity = tokens0 @ tokens1.mT / (tokens0.shape[2] * _TEMPERATURE)
    return similarity.log_softmax(1) + similarity.log_softmax(2)


def learning_rate(step: int) -> float:
    """Rises over the first steps, then falls with the inverse square root."""
    warm_up = min(1.0, 0.1 + 0.9 * step / _WARM_UP)
    return float(_RATE * warm_up / (1 + step / _HALF_LIFE) ** 0.5)
