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
from sfmprep.progress import T

if TYPE_CHECKING:
    from sfmprep.pipelines.reconstruct import Summary


def start_logging(verbose: bool) -> None:
    """Shows sfmprep's log on stderr, and COLMAP's only if asked."""
    import pycolmap

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


def print_summary(summary: Summary, out: Path, recipe: Recipe) -> None:
    """What a run found, where it lies and what to do with it."""
    total = summary.num_images
    if recipe.mapping.type != "none":
        print(
            f"{summary.num_registered} of {total} images registered"
            f" ({summary.num_registered / total:.0%})"
        )
        print(
            f"{summary.num_points} points, mean track length"
            f" {summary.mean_track_length:.1f}, mean reprojection error"
            f" {summary.mean_reprojection_error_px:.2f} px"
        )
    print(f"{summary.num_verified} of {summary.num_pairs} pairs verified")
    print(f"features: {summary.frontend}")
    for name, reason in list(summary.left_out.items())[:10]:
        print(f"  left out: {name}: {reason}")
    if len(summary.left_out) > 10:
        print(f"  and {len(summary.left_out) - 10} more, see {out}/work/summary.json")
    if summary.num_models > 1:
        print(f"smaller models kept in {out}/work/models: {summary.num_models - 1}")
    print(" · ".join(f"{k} {v:.1f} s" for k, v in summary.seconds.items()))
    if recipe.mapping.type == "none":
        database = shlex.quote(str(out / "database.db"))
        print(f"result: {database}")
        print(f"next:   colmap mapper --database_path {database} ...")
        return
    folder = shlex.quote(str(out))
    print(f"result: {folder}")
    print("next, one of:")
    print(f"  ns-train splatfacto --data {folder}")
    print(
        f"  python simple_trainer.py default --data_dir {folder} --data_factor 1"
        "  # gsplat"
    )
    print(f"  python train.py -s {folder}  # 3DGS")


def say(text: str) -> None:
    """Prints a line for people, not for pipes."""
    print(text, file=sys.stderr)
