"""Trains the LightGlue-type matcher, in as many pieces as it is cut into.

Recipe: the losses of `assignment`, AdamW, warm-up, then a learning rate that falls with
the square root of the step, so that no one needs to know how long training will be. A
running mean of the weights stands in for the annealing at the end; it is what is
validated and exported. The confidence heads are trained on it, last.

`out` holds `matcher.pt`, `confidence.pt` (at most 16 MB) and `matcher.jsonl`, the log.
"""

from __future__ import annotations

import copy
import dataclasses
import datetime
import logging
import math
import multiprocessing
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import DataLoader

from sfmprep.errors import ConfigError, ImageError, StoreError
from sfmprep.models.lightglue import SHAPES
from sfmprep.models.lightglue_network import LightGlueNetwork
from sfmprep.models.protocols import Extractor
from sfmprep.progress import Progress, silent
from sfmprep.train import checkpoints
from sfmprep.train.assignment import assignment_loss, confidence_loss
from sfmprep.train.matcher_data import Kind, PairBatches, read_capture
from sfmprep.train.matcher_validation import validate, validation_batches
from sfmprep.train.network import PairBatch, build_network, layer_tokens
from sfmprep.train.photographs import Photographs
from sfmprep.weights import ResolvedWeights, file_sha256, load_strict, load_tensors

logger = logging.getLogger(__name__)

Part = Literal["assignment", "confidence"]

_NAME = "compact-lightglue"
_SHAPE = SHAPES[_NAME]
_FILES: dict[Part, str] = {"assignment": "matcher.pt", "confidence": "confidence.pt"}
_LEARNING_RATE = 1e-3
_WARM_UP, _CONSTANT_UNTIL = 200, 3000  # steps
_WEIGHT_DECAY = 0.01
_MAX_GRADIENT = 1.0
_MEAN_OVER = 500  # steps of the running mean of the weights, at most
_CONFIDENCE_LEARNING_RATE = 1e-2

_LOG_EVERY = 50  # steps
_SAVE_EVERY_S = 120.0
_VALIDATE_EVERY_S = 180.0
_VALIDATION_PAIRS = 32


class AssignmentTraining:
    """Trains all but the confidence heads.

    Args:
        network: As `build_network` makes it, or trained before.
        device: Where to train, as torch names it; bfloat16 is used on CUDA.
    """

    def __init__(self, network: LightGlueNetwork, *, device: str) -> None:
        self.step = 0
        self._device = device
        self._network = network.to(device).train()
        self._network.token_confidence.requires_grad_(False)
        self._parameters = {
            name: parameter
            for name, parameter in self._network.named_parameters()
            if parameter.requires_grad
        }
        self._mean = {
            name: parameter.detach().clone()
            for name, parameter in self._parameters.items()
        }
        self._optimiser = torch.optim.AdamW(
            self._parameters.values(), weight_decay=_WEIGHT_DECAY, fused=True
        )

    def advance(self, batch: PairBatch) -> dict[str, Tensor]:
        """Takes one step of deep supervision."""
        for group in self._optimiser.param_groups:
            group["lr"] = learning_rate(self.step)
        is_cuda = torch.device(self._device).type == "cuda"
        layers = layer_tokens(self._network, batch, half=is_cuda)
        loss = assignment_loss(self._network, layers, batch)
        self._optimiser.zero_grad()
        loss.total.backward()
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), _MAX_GRADIENT)
        self._optimiser.step()
        self.step += 1
        weight = 1 / min(self.step, _MEAN_OVER)
        torch._foreach_lerp_(
            list(self._mean.values()),
            [parameter.detach() for parameter in self._parameters.values()],
            weight,
        )
        return {
            field.name: getattr(loss, field.name).detach()
            for field in dataclasses.fields(loss)
        }

    def mean_network(self) -> LightGlueNetwork:
        """A copy of the network with the mean weights."""
        network = copy.deepcopy(self._network)
        network.load_state_dict(self._network.state_dict() | self._mean)
        return network.eval()

    def state(self) -> dict[str, Any]:
        """Weights and moments in float32, the mean weights in halves."""
        return {
            "step": self.step,
            "shape": dataclasses.asdict(_SHAPE),
            "weights": self._network.state_dict(),
            "mean": {name: mean.half() for name, mean in self._mean.items()},
            "optimiser": self._optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a state; the mean is as exact as halves are."""
        self.step = state["step"]
        self._network.load_state_dict(state["weights"])
        for name, mean in self._mean.items():
            mean.copy_(state["mean"][name])
        self._optimiser.load_state_dict(state["optimiser"])


class ConfidenceTraining:
    """Trains the confidence heads of a network whose assignment is trained.

    Args:
        network: Everything else in it stays as it is.
        device: Where to train, as torch names it.
    """

    def __init__(self, network: LightGlueNetwork, *, device: str) -> None:
        self.step = 0
        self._network = network.to(device).eval().requires_grad_(False)
        self._heads = self._network.token_confidence.requires_grad_(True)
        self._optimiser = torch.optim.AdamW(
            self._heads.parameters(), lr=_CONFIDENCE_LEARNING_RATE, weight_decay=0.0
        )

    def advance(self, batch: PairBatch) -> dict[str, Tensor]:
        """Takes one step."""
        with torch.no_grad():
            layers = layer_tokens(self._network, batch)
        loss = confidence_loss(self._network, layers, batch)
        self._optimiser.zero_grad()
        loss.backward()
        self._optimiser.step()
        self.step += 1
        return {"confidence": loss.detach()}

    def state(self) -> dict[str, Any]:
        """The heads and their optimiser."""
        return {
            "step": self.step,
            "shape": dataclasses.asdict(_SHAPE),
            "weights": self._heads.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a state."""
        self.step = state["step"]
        self._heads.load_state_dict(state["weights"])
        self._optimiser.load_state_dict(state["optimiser"])


def learning_rate(step: int) -> float:
    """Rises in a straight line, stays, then falls with the square root of the step."""
    warm = min(1.0, (step + 1) / _WARM_UP)
    return _LEARNING_RATE * warm * min(1.0, math.sqrt(_CONSTANT_UNTIL / (step + 1)))


def train_matcher(
    *,
    data: Path,
    out: Path,
    minutes: float,
    extractor: Extractor,
    captures: Sequence[Path] = (),
    init: Path | None = None,
    seed: int = 0,
    size: int = 256,
    batch: int = 16,
    device: str = "cpu",
    progress: Progress = silent,
    part: Part = "assignment",
    steps: int | None = None,
    workers: int = 1,
) -> None:
    """Trains for some minutes, or goes on where an earlier call in `out` stopped.

    Args:
        data: The folder of photographs that views are made of, two at least.
        out: Where checkpoints and the log lie; made if it is missing.
        minutes: How long, with all preparations.
        extractor: Its features are what the matcher learns to match. It runs in the
            workers, so on the CPU; it need not find more than 400 keypoints.
        captures: Folders that `sfmprep reconstruct` made, for pairs with real parallax.
        init: Weights to start from, as `export_weights` writes them; not looked at
            where there is a checkpoint.
        seed: Of all that is random.
        size: Side of the crops, pixels.
        batch: Pairs of 256 keypoints a step.
        device: Where to train, as torch names it; the layers are in bfloat16 on CUDA.
        progress: Shows the steps.
        part: What to train; confidence comes last, on the mean weights of the other.
        steps: The step to stop at, if it comes before the time is over.
        workers: Processes that make batches; 0 for none beside this one.

    Raises:
        ConfigError: `data` has one photograph, or a capture is not reconstructed.
        ImageError: `data` has no photograph, or one cannot be read.
        StoreError: a checkpoint is damaged or of a network of another size, or there is
            none to train the confidence of.
        WeightsError: `init` cannot be read or does not fit.
    """
    end = time.monotonic() + 60 * minutes
    training = _training(part, out, init, seed=seed, device=device)
    path = out / _FILES[part]
    if (state := _read(path)) is not None:
        training.restore(state)
    photographs = Photographs(data)
    if len(photographs) < 2:
        raise ConfigError(
            f"{data} has one photograph for training, but two that show nothing in"
            " common are needed. Add some."
        )
    batches = PairBatches(
        photographs,
        [read_capture(folder) for folder in captures],
        extractor,
        # The confidence heads should not see the batches of the assignment again.
        seed=seed + (part == "confidence"),
        size=size,
        batch=batch,
    )
    log = checkpoints.RunLog(out / "matcher.jsonl")
    aside = {}
    if isinstance(training, AssignmentTraining):
        aside = _validation(data, extractor, size=size, device=device)
    saved = validated = time.monotonic()
    meter = _Meter()
    stop = sys.maxsize if steps is None else steps
    numbers = range(training.step, stop)
    for made in progress(_load(batches, numbers, workers), desc=part, total=steps):
        meter.add(training.advance(made.to(device)), pairs=made.num_pairs)
        now = time.monotonic()
        is_last = now >= end or training.step >= stop
        if is_last or training.step % _LOG_EVERY == 0:
            log.write(training.step, meter.read())
        if isinstance(training, AssignmentTraining) and (
            is_last or now - validated > _VALIDATE_EVERY_S
        ):
            log.write(training.step, validate(training.mean_network(), aside))
            validated = time.monotonic()
        if is_last or now - saved > _SAVE_EVERY_S:
            checkpoints.save(path, training.state())
            saved = time.monotonic()
        if is_last:
            break


def export_weights(checkpoint: Path, path: Path) -> None:
    """Writes the mean weights as float16 safetensors that `LightGlue` loads.

    The confidence heads come from `confidence.pt` beside the checkpoint; without it
    they are sure of nothing, so that no pair stops early.

    Args:
        checkpoint: `matcher.pt` of a training.
        path: The file to write.

    Raises:
        StoreError: there is no checkpoint, or it is damaged.
    """
    network, steps = _trained(checkpoint)
    heads = _read(checkpoint.with_name(_FILES["confidence"]))
    if heads is None:
        logger.warning(
            "%s: no confidence was trained, so matching will not stop early", path
        )
    else:
        network.token_confidence.load_state_dict(heads["weights"])
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = {name: value.half() for name, value in network.state_dict().items()}
    metadata = {
        "licence": "Apache-2.0",
        "step": str(steps),
        "confidence_step": str(0 if heads is None else heads["step"]),
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
    }
    save_file(tensors, path, metadata=metadata)


def _training(
    part: Part, out: Path, init: Path | None, *, seed: int, device: str
) -> AssignmentTraining | ConfidenceTraining:
    """Makes a training as it begins."""
    if part == "confidence":
        network, _ = _trained(out / _FILES["assignment"])
        return ConfidenceTraining(network, device=device)
    network = build_network(_SHAPE, seed=seed)
    if init is not None:
        weights = ResolvedWeights(name=_NAME, path=init, sha256=file_sha256(init))
        load_strict(network, load_tensors(weights), weights)
    return AssignmentTraining(network, device=device)


def _trained(checkpoint: Path) -> tuple[LightGlueNetwork, int]:
    """Reads a network with the mean weights, and how many steps it was trained."""
    state = _read(checkpoint)
    if state is None:
        raise StoreError(
            f"{checkpoint} is missing; expected the checkpoint of a trained matcher."
            " Train the assignment first."
        )
    network = build_network(_SHAPE, seed=0)
    network.load_state_dict(state["weights"] | state["mean"])
    return network, state["step"]


def _read(checkpoint: Path) -> dict[str, Any] | None:
    """Reads a checkpoint of a network of this size, or returns None without one."""
    state = checkpoints.load(checkpoint)
    expected = dataclasses.asdict(_SHAPE)
    if state is not None and state.get("shape") != expected:
        raise StoreError(
            f"{checkpoint} holds a network of {state.get('shape')} but expected"
            f" {expected}. Train into another folder."
        )
    return state


def _validation(
    data: Path, extractor: Extractor, *, size: int, device: str
) -> dict[Kind, PairBatch]:
    """Makes pairs of the photographs kept aside, none where too few are."""
    try:
        photographs = Photographs(data, held_out=True)
    except ImageError:
        photographs = None
    if photographs is None or len(photographs) < 2:
        logger.warning("%s: too few photographs to keep some aside to validate", data)
        return {}
    made = validation_batches(
        photographs, extractor, size=size, batch=_VALIDATION_PAIRS
    )
    return {kind: batch.to(device) for kind, batch in made.items()}


def _load(
    batches: PairBatches, numbers: Sequence[int], workers: int
) -> Iterable[PairBatch]:
    """Makes batches ahead of the training, in the order of their numbers."""
    can_fork = "fork" in multiprocessing.get_all_start_methods()
    return DataLoader(
        batches,
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=4 if workers else None,
        # Forked workers share the decoded photographs.
        multiprocessing_context="fork" if workers and can_fork else None,
        worker_init_fn=_use_one_thread,
    )


def _use_one_thread(worker: int) -> None:
    cv2.setNumThreads(1)


class _Meter:
    """Means of the losses, and speed, since they were last read."""

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self._sums: dict[str, Tensor] = {}
        self._steps = self._pairs = 0
        self._start = time.monotonic()

    def add(self, losses: Mapping[str, Tensor], *, pairs: int) -> None:
        """Counts one step; the device is not waited for."""
        for name, loss in losses.items():
            self._sums[name] = self._sums.get(name, 0) + loss
        self._steps += 1
        self._pairs += pairs

    def read(self) -> dict[str, float]:
        """Returns what was counted, one step at least, and starts anew."""
        values = {
            name: float(total) / self._steps for name, total in self._sums.items()
        }
        seconds = time.monotonic() - self._start
        values["steps_per_s"] = self._steps / seconds
        values["pairs_per_s"] = self._pairs / seconds
        self._clear()
        return values
