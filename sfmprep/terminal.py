"""What the command line shows: log, progress and the summary at the end.

This is the only place with log handlers and progress bars. Piped output stays plain.
"""

from __future__ import annotations

import logging
import shlex
import sys
import time
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from sfmprep.config import Recipe
from sfmprep.export.targets import FOLDERS_BELOW
from sfmprep.interrupts import take_back
from sfmprep.progress import T

if TYPE_CHECKING:
    from sfmprep.report.schema import Report

_WANTED = ("registered", "not_mapped")
_MAX_LISTED = 10


def start_logging(verbose: bool) -> None:
    """Shows sfmprep's log on stderr, and COLMAP's only if asked."""
    import pycolmap

    take_back()
    handler = _TqdmHandler()
    handler.setFormatter(_Formatter())
    root = logging.getLogger("sfmprep")
    root.handlers = [handler]
    root.setLevel(logging.INFO)
    if not verbose:
        pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)


class _TqdmHandler(logging.Handler):
    """Writes above a progress bar instead of through it."""

    def emit(self, record: logging.LogRecord) -> None:
        tqdm.write(self.format(record), file=sys.stderr)


class _Formatter(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        text = super().format(record)
        return text if record.levelno < logging.WARNING else f"warning: {text}"


def show_progress(
    items: Iterable[T], *, desc: str, total: int | None = None
) -> Iterable[T]:
    """A bar on a terminal, else one line at the end of the stage."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if total == 0:
        return items
    if sys.stderr.isatty():
        return tqdm(items, desc=f"{desc:8}", total=total, dynamic_ncols=True)
    return _plain_progress(items, desc)


def _plain_progress(items: Iterable[T], desc: str) -> Iterator[T]:
    start, count = time.monotonic(), 0
    for item in items:
        yield item
        count += 1
    seconds = time.monotonic() - start
    say(f"{desc}: {count} in {seconds:.1f} s")


def print_report(report: Report, out: Path, recipe: Recipe) -> None:
    """What a run found, where it lies and what to do with it."""
    if recipe.mapping.type != "none":
        total = len(report.images)
        registered = sum(image.model == 0 for image in report.images)
        share = registered / total
        print(f"{registered} of {total} images registered ({share:.0%})")
    print(report.verdict)
    if (result := report.result) and (residuals := report.residuals):
        seeds = result.num_dataset_points
        start = "" if seeds is None else f", {seeds} in the dataset to start from"
        print(
            f"{result.num_points} points{start}; mean track length"
            f" {result.mean_track_length:.1f}, mean reprojection error"
            f" {residuals.mean_px:.2f} px"
        )
    if graph := report.view_graph:
        print(f"{graph.num_pairs} of {graph.num_matched_pairs} pairs verified")
    print(f"features: {report.frontend}")
    for finding in report.warnings:
        say(f"warning: {finding.text} {finding.advice}")
    left_out = [i for i in report.images if i.status not in _WANTED]
    for image in left_out[:_MAX_LISTED]:
        print(f"  left out: {image.name}: {image.reason}")
    if len(left_out) > _MAX_LISTED:
        print(f"  and {len(left_out) - _MAX_LISTED} more, see the report")
    if result and len(result.model_sizes) > 1:
        print(
            f"smaller models kept in {out}/work/models: {len(result.model_sizes) - 1}"
        )
    print(" · ".join(f"{k} {v:.1f} s" for k, v in report.seconds.items()))
    print(f"report: {shlex.quote(str(out / 'report.html'))}")
    if recipe.mapping.type == "none":
        database = shlex.quote(str(out / "database.db"))
        print(f"result: {database}")
        print(f"next:   colmap mapper --database_path {database} ...")
        return
    print(f"result: {shlex.quote(str(out))}")
    print("next, one of:")
    for command in _next_commands(out, recipe):
        print(f"  {command}")


def _next_commands(out: Path, recipe: Recipe) -> Iterator[str]:
    """What opens the dataset, one line a target that has one."""
    first, *_ = targets = recipe.export.targets
    for target in targets:
        own = out / FOLDERS_BELOW / target
        folder = shlex.quote(str(own if target != first and own.is_dir() else out))
        match target:
            case "nerfstudio":
                yield f"ns-train splatfacto sfmprep-data --data {folder}"
            case "gsplat":
                yield (
                    f"python simple_trainer.py default --data_dir {folder}"
                    " --data_factor 1  # gsplat"
                )
            case "3dgs":
                yield f"python train.py -s {folder}  # 3DGS"
            case "brush":
                yield f"brush {folder}"
            case "colmap":
                yield (
                    f"colmap gui --import_path {folder}/sparse/0"
                    f" --image_path {folder}/images --database_path {folder}/new.db"
                )


def say(text: str) -> None:
    """Prints a line for people, not for pipes."""
    print(text, file=sys.stderr)
