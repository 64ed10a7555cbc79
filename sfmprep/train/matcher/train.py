"""Trains the LightGlue-type matcher, in as many pieces as it is cut into.

The assignment comes first, on the batches of `matcher_data`. The mean of its weights is
what is validated and exported, and what the confidence heads are trained on, last.

`out` holds `matcher.pt`, `confidence.pt` (at most 16 MB) and `matcher.jsonl`, the log.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from sfmprep.errors import ConfigError, ImageError, StoreError
from sfmprep.models.matchers.lightglue import SHAPES
from sfmprep.models.matchers.lightglue_network import (
    Head,
    LightGlueNetwork,
    LightGlueShape,
)
from sfmprep.models.matchers.lightglue_weights import named_head
from sfmprep.models.protocols import Extractor
from sfmprep.progress import Progress, silent
from sfmprep.train import checkpoints
from sfmprep.train.loop import on_device, run_training
from sfmprep.train.matcher.data import WARM_UP_BATCHES, Kind, PairBatches, read_capture
from sfmprep.train.matcher.session import AssignmentTraining, ConfidenceTraining
from sfmprep.train.matcher.validation import validate, validation_batches
from sfmprep.train.network import PairBatch, build_network, reset_confidence
from sfmprep.train.pairs.photographs import Photograph, Photographs, photograph_of
from sfmprep.weights import ResolvedWeights, file_sha256, load_strict, load_tensors

logger = logging.getLogger(__name__)

Part = Literal["assignment", "confidence"]

_NAME = "compact-lightglue"
_SHAPE = SHAPES[_NAME]
_FILES: dict[Part, str] = {"assignment": "matcher.pt", "confidence": "confidence.pt"}

_VALIDATION_PAIRS = 32


def train_matcher(
    *,
    data: Path | None,
    out: Path,
    minutes: float,
    extractor: Extractor,
    captures: Sequence[Path] = (),
    init: Path | None = None,
    seed: int = 0,
    size: int = 256,
    batch: int = 16,
    device: str = "cpu",
    num_threads: int = 1,
    progress: Progress = silent,
    part: Part = "assignment",
    head: Head = "lightglue",
    steps: int | None = None,
) -> None:
    """Trains for some minutes, or goes on where an earlier call in `out` stopped.

    Args:
        data: The folder of photographs that views are made of, two at least; None for
            those of the captures, without a validation then.
        out: Where checkpoints and the log lie; made if it is missing.
        minutes: How long, from the first step on.
        extractor: Its features are what the matcher learns to match. It runs beside
            the training, so on the CPU; of an image `MAX_COUNT` keypoints are used.
        captures: Folders that `sfmprep reconstruct` made, for pairs with real parallax.
        init: Weights to start from, as `export_weights` writes them, without the first
            batches of homographies alone. It may be left out to go on.
        seed: Of all that is random.
        size: Side of crops of up to 256 keypoints, pixels; of more, they are larger.
        batch: Pairs of 256 keypoints a step.
        device: Where to train, as torch names it; the layers are in bfloat16 on CUDA.
        num_threads: That make batches, each with torch's threads; more than one where
            the device would wait for them. The batches stay the same.
        progress: Shows the steps.
        part: What to train; confidence comes last, on the mean weights of the other.
        head: What assigns the tokens of the last layer; those of earlier layers, where
            a pair may stop, have LightGlue's. The confidence takes it as it is.
        steps: The step to stop at, if it comes before the time is over.

    Raises:
        ConfigError: there are fewer than two photographs, or a capture is not
            reconstructed.
        ImageError: `data` has no photograph, or one, also of a capture, cannot be read.
        ReconstructionError: a capture cannot be read or has no pairs.
        StoreError: a checkpoint is damaged, of a network of another size or head or
            begun with another seed or `init`, or there is none to train the confidence
            of.
        WeightsError: `init` cannot be read or does not fit.
    """
    path = out / _FILES[part]
    shape = dataclasses.replace(_SHAPE, head=head)
    began = {
        "seed": seed,
        "init_sha256": None if init is None else file_sha256(init),
        "size": size,
        "batch": batch,
    }
    state = _read(path)
    if state is not None and part == "assignment":
        if state["shape"]["head"] != head:
            raise StoreError(
                f"{path} holds a network with the head {state['shape']['head']}, but"
                f" {head} was asked for. Name its own, or train into another folder."
            )
        began = _beginning(path, state, began)
    training = _training(part, out, init, shape=shape, seed=seed, device=device)
    if state is not None:
        training.restore(state)
        logger.info("%s: going on from step %d", path, training.step)
    read = [
        read_capture(capture)
        for capture in progress(captures, desc="captures", total=len(captures))
    ]
    photographs: Sequence[Photograph]
    sources: list[str | int]
    if data is not None:
        photographs = folder = Photographs(data)
        sources = [photograph_of(name) for name in folder.names]
    else:
        photographs = [image.pixels for each in read for image in each.images]
        sources = [k for k, each in enumerate(read) for _ in each.images]
    if len(photographs) < 2:
        raise ConfigError(
            f"{data} has one photograph for training, but two that show nothing in"
            " common are needed. Add some."
            if data is not None
            else "there is nothing to train with: name photographs (--data), captures"
            " (--captures), or both."
        )
    batches = PairBatches(
        photographs,
        read,
        extractor,
        # The confidence heads should not see the batches of the assignment again.
        seed=seed + (part == "confidence"),
        size=size,
        batch=batch,
        warm_up=(
            WARM_UP_BATCHES
            if part == "assignment" and began["init_sha256"] is None
            else 0
        ),
        sources=sources,
    )
    log = checkpoints.RunLog(out / "matcher.jsonl")
    aside = {}
    if isinstance(training, AssignmentTraining) and data is not None:
        aside = _validation(data, extractor, size=size, device=device)

    def measure() -> None:
        assert isinstance(training, AssignmentTraining)
        values = validate(training.mean_network(), aside)
        log.write(training.step, values)
        logger.info("step %d: %s", training.step, values)

    if aside and state is None:
        measure()
    run_training(
        training,
        batches.__getitem__,
        checkpoint=path,
        log=log,
        device=device,
        end=time.monotonic() + 60 * minutes,
        max_steps=steps,
        num_threads=num_threads,
        also_saved={"began": began},
        measure=measure if aside else None,
        progress=progress,
        desc=part,
    )


def export_weights(checkpoint: Path, path: Path) -> None:
    """Writes the mean weights as float16 safetensors that `LightGlue` loads.

    The confidence heads come from `confidence.pt` beside the checkpoint; without one
    of this assignment they are sure of nothing, so that no pair stops early.

    Args:
        checkpoint: `matcher.pt` of a training.
        path: The file to write.

    Raises:
        StoreError: there is no checkpoint, or it is damaged.
    """
    network, steps = _trained(checkpoint)
    heads = _read(checkpoint.with_name(_FILES["confidence"]))
    if heads is not None and heads.get("assignment_step", steps) != steps:
        logger.warning(
            "%s: its confidence was trained at step %d of the assignment, which is at"
            " step %d now; it is left out",
            path,
            heads["assignment_step"],
            steps,
        )
        heads = None
    if heads is None:
        logger.warning(
            "%s: matching will not stop early without a confidence; train it with"
            " --confidence and export again",
            path,
        )
        reset_confidence(network)
    else:
        network.token_confidence.load_state_dict(heads["weights"])
    confidence_steps = 0 if heads is None else heads["step"]
    checkpoints.export_halves(
        network.state_dict(),
        path,
        {
            "head": network.shape.head,
            "step": str(steps),
            "confidence_step": str(confidence_steps),
        },
    )
    logger.info("wrote %s", path)


def _beginning(
    path: Path, state: Mapping[str, Any], now: dict[str, Any]
) -> dict[str, Any]:
    """What a training began with; old checkpoints do not say, so `now` counts."""
    began: dict[str, Any] = state.get("began", now)
    for name in ("seed", "init_sha256"):
        if now[name] not in (began[name], None):
            raise StoreError(
                f"{path} began with {name} {began[name]} but this call has {now[name]}."
                " Go on with the same seed and init, or train into another folder."
            )
    return began


def _training(
    part: Part,
    out: Path,
    init: Path | None,
    *,
    shape: LightGlueShape,
    seed: int,
    device: str,
) -> AssignmentTraining | ConfidenceTraining:
    """Makes a training as it begins."""
    if part == "confidence":
        network, steps = _trained(out / _FILES["assignment"])
        return ConfidenceTraining(network, device=device, assignment_step=steps)
    network = build_network(shape, seed=seed)
    if init is not None:
        weights = ResolvedWeights(name=_NAME, path=init, sha256=file_sha256(init))
        tensors = load_tensors(weights)
        if named_head(weights) != shape.head:
            tensors = _with_head_of(network, tensors)
        load_strict(network, tensors, weights)
    return AssignmentTraining(network, device=device)


def _with_head_of(
    network: LightGlueNetwork, tensors: Mapping[str, Tensor]
) -> dict[str, Tensor]:
    """Tensors of another head, with the network's own for what that lacks.

    The projection, which all heads have, is kept.
    """
    last = f"log_assignment.{network.shape.num_layers - 1}."
    kept = {
        name: tensor
        for name, tensor in tensors.items()
        if not name.startswith(last) or name.startswith(f"{last}final_proj.")
    }
    own = {
        name: tensor
        for name, tensor in network.state_dict().items()
        if name.startswith(last)
    }
    return own | kept


def _trained(checkpoint: Path) -> tuple[LightGlueNetwork, int]:
    """Reads a network with the mean weights, and how many steps it was trained."""
    state = _read(checkpoint)
    if state is None:
        raise StoreError(
            f"{checkpoint} is missing; expected the checkpoint of a trained matcher."
            " Train the assignment first."
        )
    network = build_network(LightGlueShape(**state["shape"]), seed=0)
    network.load_state_dict(state["weights"] | state["mean"])
    return network, state["step"]


def _read(checkpoint: Path) -> dict[str, Any] | None:
    """Reads a checkpoint of a network of this size, or returns None without one."""
    state = checkpoints.load(checkpoint)
    if state is None:
        return None
    found = state.get("shape", {})
    expected = dataclasses.asdict(dataclasses.replace(_SHAPE, head=found.get("head")))
    if found != expected:
        raise StoreError(
            f"{checkpoint} holds a network of {state.get('shape')} but expected"
            f" {dataclasses.asdict(_SHAPE)}. Train into another folder."
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
    return {kind: on_device(batch, device) for kind, batch in made.items()}
