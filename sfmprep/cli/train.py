"""`sfmprep train`: make weights and measure them.

Every training stops after the minutes it was given, and goes on from there when it is
called again with the same folder.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Literal

import tyro
from tyro.conf import arg

from sfmprep.config import CompactConfig
from sfmprep.devices import pick_device
from sfmprep.errors import ConfigError
from sfmprep.terminal import show_progress, start_logging
from sfmprep.weights import resolve_weights

logger = logging.getLogger(__name__)

Data = Annotated[Path, arg(help="Folder of photographs to make views of.")]
Out = Annotated[Path, arg(help="Folder of checkpoints and log, to go on in.")]
Minutes = Annotated[float, arg(help="How long to train this time.")]
Device = Annotated[str, arg(help="Where networks run, auto, cpu, or such as cuda.")]
Init = Annotated[
    str | None,
    arg(metavar="compact|FILE", help="Weights to start from; else from nothing."),
]
Export = Annotated[
    Path | None, arg(help="Also write the weights there (.safetensors).")
]


def main(args: Sequence[str]) -> int:
    """Runs one command.

    Raises:
        SfmprepError: see the functions that it calls; `commands.py` turns it into a
            message.
    """
    tyro.extras.subcommand_cli_from_dict(
        {each.__name__: each for each in (extractor, matcher, s2ld, evaluate)},
        prog="sfmprep train",
        description="Train weights and measure them.",
        args=args,
    )
    return 0


def extractor(
    *,
    data: Data,
    out: Out,
    minutes: Minutes = 9,
    seed: int = 0,
    num_pairs: Annotated[int, arg(help="Photographs of a step, two views each.")] = 6,
    size: Annotated[int, arg(help="Side of the views, pixels.")] = 256,
    init: Init = None,
    also: Annotated[
        tuple[Literal["reliability", "repeatability"], ...],
        arg(help="Losses of R2D2 beside the others."),
    ] = (),
    device: Device = "auto",
    export: Export = None,
) -> None:
    """Train the compact features on photographs, taught by ALIKED."""
    start_logging(verbose=False)
    from sfmprep.train.extractor.train import export_extractor, train_extractor

    _check_sizes(size, "--num-pairs", num_pairs)
    steps = train_extractor(
        data=data,
        out=out,
        minutes=minutes,
        seed=seed,
        num_pairs=num_pairs,
        size=size,
        init=_init(init, "compact"),
        also=also,
        device=_device(device),
        progress=show_progress,
    )
    if steps == 0:
        logger.warning(
            "the adaptation is not finished, so nothing was trained or exported; call"
            " again to go on"
        )
    elif export:
        export_extractor(out / "extractor.pt", export)


def matcher(
    *,
    out: Out,
    captures: Annotated[
        tuple[Path, ...],
        arg(help="Folders that `sfmprep reconstruct` made: real pairs."),
    ] = (),
    data: Annotated[
        Path | None,
        arg(help="Folder of photographs to make views of; else those of the captures."),
    ] = None,
    init: Init = None,
    minutes: Minutes = 9,
    seed: int = 0,
    size: Annotated[int, arg(help="Side of the views, pixels.")] = 256,
    batch: Annotated[int, arg(help="Pairs of a step.")] = 16,
    confidence: Annotated[
        bool, arg(help="Train only the heads that let a pair stop early: do it last.")
    ] = False,
    head: Annotated[
        Literal["lightglue", "sinkhorn"],
        arg(help="What assigns at the end: its own, or SuperGlue's transport."),
    ] = "lightglue",
    threads: Annotated[
        int, arg(help="Threads that make pairs; a few where a GPU waits for them.")
    ] = 1,
    device: Device = "auto",
    export: Export = None,
) -> None:
    """Train the matcher of the compact features, also on captures of your own."""
    start_logging(verbose=False)
    from sfmprep.models.extractors.compact import Compact
    from sfmprep.train.matcher.data import MAX_COUNT
    from sfmprep.train.matcher.train import export_weights, train_matcher

    _check_sizes(size, "--batch", batch)
    if threads < 1:
        raise ConfigError(f"--threads {threads}: give 1 or more.")
    train_matcher(
        data=data,
        out=out,
        minutes=minutes,
        extractor=Compact(CompactConfig(max_keypoints=MAX_COUNT)),
        captures=captures,
        init=_init(init, "compact-lightglue"),
        seed=seed,
        size=size,
        batch=batch,
        num_threads=threads,
        device=_device(device),
        part="confidence" if confidence else "assignment",
        head=head,
        progress=show_progress,
    )
    if export:
        export_weights(out / "matcher.pt", export)


def s2ld(
    *,
    data: Data,
    out: Out,
    init: Annotated[
        Path | None, arg(help="LoFTR checkpoint to start from; else from nothing.")
    ] = None,
    minutes: Minutes = 9,
    seed: int = 0,
    size: Annotated[int, arg(help="Side of the views, pixels.")] = 320,
    batch: Annotated[int, arg(help="Pairs of a step.")] = 2,
    device: Device = "auto",
) -> None:
    """Train S2LD on photographs with an invented depth."""
    start_logging(verbose=False)
    from sfmprep.train.s2ld.train import train_s2ld

    train_s2ld(
        *(data, out),
        minutes=minutes,
        seed=seed,
        init=init,
        crop=size,
        batch=batch,
        device=_device(device),
    )


def evaluate(
    *,
    scenes: Annotated[Path, arg(help="Folder of scenes with reference.json.")],
    photographs: Annotated[Path, arg(help="The photographs, some of them held out.")],
    out: Annotated[Path, arg(help="Folder of stores and cells, to go on in.")],
    columns: Annotated[tuple[str, ...], arg(help="Which; all without it.")] = (),
    rows: Annotated[tuple[str, ...], arg(help="Which; all without it.")] = (),
    max_keypoints: Annotated[int, arg(help="The most of one image.")] = 2048,
) -> None:
    """Measure the compact models beside others and print the table."""
    start_logging(verbose=False)
    from sfmprep.train.compare.evaluate import COLUMNS, ROWS, evaluate

    table = evaluate(
        scenes=scenes,
        photographs=photographs,
        out=out,
        columns=columns or tuple(COLUMNS),
        rows=rows or ROWS,
        max_keypoints=max_keypoints,
        progress=show_progress,
    )
    sys.stdout.write(table.to_markdown())


def _init(init: str | None, packaged: str) -> Path | None:
    """The file of weights to start from."""
    if init is None:
        return None
    if init == "compact":
        return resolve_weights(packaged).path
    path = Path(init)
    if not path.is_file():
        raise ConfigError(
            f"--init {init}: expected compact, for the weights inside the package,"
            " or a .safetensors file, and there is no such file."
        )
    return path


def _check_sizes(size: int, option: str, number: int) -> None:
    if size < 64 or number < 1:
        raise ConfigError(
            f"--size {size}, {option} {number}: expected views of at least 64 pixels"
            " and at least one of them a step."
        )


def _device(device: str) -> str:
    """The one device to train on."""
    if "," in device:
        raise ConfigError(f"--device {device}: training takes one device. Name one.")
    return pick_device(device)
