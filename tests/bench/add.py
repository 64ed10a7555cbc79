"""One photograph that is added to a finished dataset, against all of them at once.

    python -m tests.bench.add                            (or: make bench-add)
    python -m tests.bench.add --recipe compact --max-size 720

fountain-P11 of `../shared`: all eleven from nothing; ten from nothing, and then the
eleventh by `sfmprep add`. The seconds are those of the whole commands, by the clock and
of the CPU, and the page `examples/add.md` is written from them.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.devices import num_cores
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import read_reference
from tests.bench.scoreboard.scenes import prepare, shared
from tests.bench.shared import SHARED, auc_cell

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Took:
    """Seconds of one command."""

    wall: float
    cpu: float
    stages: float  # of the wall's, without the start of Python and its libraries


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--recipe", default="splat")
    parser.add_argument("--max-size", type=int, default=1024, help="longer side, px")
    parser.add_argument("--added", type=int, default=5, help="which photograph, from 0")
    scratch = ROOT / "build" / "add"
    parser.add_argument("--scratch", type=Path, default=scratch)
    parser.add_argument("--page", type=Path, default=ROOT / "examples" / "add.md")
    options = parser.parse_args()
    scene = prepare(shared("fountain-P11"), options.scratch, options.max_size)
    name = scene.names[options.added]
    runs = options.scratch / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    photographs = runs / "images"
    shutil.copytree(scene.images, photographs)
    how = ("--recipe", options.recipe)
    at_once = _timed("reconstruct", photographs, runs / "all", *how)
    (photographs / name).rename(runs / name)
    ten = _timed("reconstruct", photographs, runs / "out", *how)
    before = _model(runs / "out")
    (runs / name).rename(photographs / name)
    added = _timed("add", photographs, runs / "out")
    reference = read_reference(scene.images.parent)
    after, whole = _model(runs / "out"), _model(runs / "all")
    poses = {i.name: i.cam_from_world().matrix() for i in after.images.values()}
    moved = max(
        float(np.abs(poses[image.name] - image.cam_from_world().matrix()).max())
        for image in before.images.values()
        if image.has_pose
    )
    aucs = [auc_cell(evaluate_model(model, reference)) for model in (whole, after)]
    counts = [model.num_reg_images() for model in (whole, before, after)]
    text = _page(options, at_once, ten, added, aucs, counts, moved)
    options.page.write_text(text, "utf-8")
    print(text)


def _timed(command: str, images: Path, out: Path, *how: str) -> Took:
    environment = {**os.environ, "SFMPREP_OFFLINE": "1"}
    environment.setdefault("SFMPREP_WEIGHTS", str(SHARED / "weights"))
    program = [sys.executable, "-m", "sfmprep", command, str(images), str(out), *how]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    begin = time.monotonic()
    subprocess.run(program, env=environment, check=True, stdout=subprocess.DEVNULL)
    wall = time.monotonic() - begin
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    report = json.loads((out / "report.json").read_text("utf-8"))
    return Took(wall, cpu, sum(report["seconds"].values()))


def _model(out: Path) -> pycolmap.Reconstruction:
    return pycolmap.Reconstruction(out / "work" / "models" / "0")


def _cells(took: Took) -> str:
    return f"{took.wall:.0f} | {took.cpu:.0f} | {took.stages:.0f}"


def _page(
    options: argparse.Namespace,
    at_once: Took,
    ten: Took,
    added: Took,
    aucs: list[str],
    counts: list[int],
    moved: float,
) -> str:
    return "\n".join(
        [
            "# A photograph that comes later",
            "",
            f"`make bench-add`: fountain-P11 at {options.max_size} pixels, recipe"
            f" `{options.recipe}`, on {num_cores()} cores.",
            "Seconds of the whole commands, by the clock and of the CPU; and of their"
            " stages alone, without the",
            "start of Python and its libraries, some 4 s of the CPU in each.",
            "",
            "| | Photographs | s | CPU s | Stages, s | AUC@1 / 3 / 5 |",
            "|---|---|---|---|---|---|",
            f"| all at once | {counts[0]} | {_cells(at_once)} | {aucs[0]} |",
            f"| ten | {counts[1]} | {_cells(ten)} | |",
            f"| and the eleventh, by `sfmprep add` | {counts[2]} | {_cells(added)}"
            f" | {aucs[1]} |",
            "",
            f"Adding it takes {added.stages / at_once.stages:.2f} of the time of the"
            " stages of all at once, the command",
            f"{added.wall / at_once.wall:.2f} ({added.cpu / at_once.cpu:.2f} of the"
            f" CPU's). The poses of the ten change by {moved:.0e} at most.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
