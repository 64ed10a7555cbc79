"""One photograph that is added to a finished dataset, against all of them at once.

    python -m tests.bench.add                            (or: make bench-add)
    python -m tests.bench.add --recipe sift --max-size 720

fountain-P11 of `../shared`: all eleven from nothing; ten from nothing, and then the
eleventh by `sfmprep add`, with and without `--adjust`, or by `sfmprep reconstruct`
again. The seconds are those of the whole commands, by the clock and of the CPU, and the
page `examples/add.md` is written from them. How far results of all at once differ is
told by mapping them from several first pairs, without refinement: what else a
photograph that comes later changes is the order in which they are registered.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep import scan
from sfmprep.capture.batches import reduction_scales
from sfmprep.config.load import load_recipe, read_resolved
from sfmprep.devices import num_cores
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import CameraPose, read_reference
from sfmprep.mapping.initial_pairs import initial_pairs
from sfmprep.mapping.mapper import finished, prepared
from sfmprep.mapping.runs import map_incrementally
from sfmprep.progress import silent
from tests.bench.scoreboard.scenes import prepare, shared
from tests.bench.shared import SHARED

ROOT = Path(__file__).resolve().parents[2]
_STARTS = 6


@dataclass(frozen=True)
class Row:
    """One command, and the model that it leaves."""

    name: str
    wall: float  # seconds
    cpu: float
    stages: float  # of the wall's, without the start of Python and its libraries
    model: pycolmap.Reconstruction


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
    refinement = load_recipe(options.recipe).refinement
    if refinement is not None and refinement.is_for(10):
        parser.error("what is mapped from several first pairs would not be refined")
    scene = prepare(shared("fountain-P11"), options.scratch, options.max_size)
    name = scene.names[options.added]
    runs = options.scratch / "runs"
    shutil.rmtree(runs, ignore_errors=True)
    images, out, whole_again, adjusted_out = (
        runs / word for word in ("images", "out", "again", "adjusted")
    )
    shutil.copytree(scene.images, images)
    how = ("--recipe", options.recipe)
    whole = _run("all at once", "reconstruct", images, runs / "all", *how)
    (images / name).rename(runs / name)
    ten = _run("ten", "reconstruct", images, out, *how)
    for copy in (whole_again, adjusted_out):
        shutil.copytree(out, copy)
    (runs / name).rename(images / name)
    added = _run("and the eleventh, by `sfmprep add`", "add", images, out)
    adjusted = _run(
        *("or by `sfmprep add --adjust`", "add", images, adjusted_out, "--adjust")
    )
    redone = _run(
        *("or by `sfmprep reconstruct` again", "reconstruct", images, whole_again)
    )
    rows = (whole, ten, added, adjusted, redone)
    reference = read_reference(scene.images.parent)
    others = [
        evaluate_model(model, reference).auc[1]
        for model in _from_other_pairs(runs / "all", images)
    ]
    text = _page(options, rows, others, reference, name)
    options.page.write_text(text, "utf-8")
    print(text)


def _run(name: str, command: str, images: Path, out: Path, *how: str) -> Row:
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
    model = pycolmap.Reconstruction(out / "work" / "models" / "0")
    return Row(name, wall, cpu, sum(report["seconds"].values()), model)


def _from_other_pairs(out: Path, images: Path) -> Iterator[pycolmap.Reconstruction]:
    """Models of all at once that begin with other pairs, from the features there."""
    recipe, capture = read_resolved(out / "recipe.yaml"), scan(images)
    scales = reduction_scales(capture, recipe.features.max_size)
    with tempfile.TemporaryDirectory() as scratch:
        with prepared(
            *(out / "work" / "database.db", capture, Path(scratch), recipe.mapping),
            *(recipe.database, scales, recipe.seed, silent),
        ) as (run, lenses):
            limit_px = recipe.database.max_error_px * run.scale
            pairs = initial_pairs(
                *(run.database, []), max_error_px=limit_px, limit=_STARTS, seed=0
            )
            found = [map_incrementally(run, start=pair) for pair in pairs]
        for number, models in enumerate(found):
            folder = Path(scratch) / f"from-{number}"
            folder.mkdir()
            how = (folder, recipe.mapping, recipe.database)
            yield finished(models, lenses, capture, *how)[0]


def _page(
    options: argparse.Namespace,
    rows: tuple[Row, Row, Row, Row, Row],
    others: list[float],
    reference: Mapping[str, CameraPose],
    name: str,
) -> str:
    whole, ten, added, adjusted, redone = rows
    report = json.loads((options.scratch / "runs/adjusted/report.json").read_text())
    moved = report["added"]
    lines = "\n".join(_line(row, reference, name) for row in rows)
    return f"""# A photograph that comes later

`make bench-add`: fountain-P11 at {options.max_size} pixels, recipe
`{options.recipe}`, on {num_cores()} cores. Seconds of the whole commands, by the clock
and of the CPU; and of their stages alone, without the start of Python and its
libraries, some 4 s of the CPU in each. AUC@1 / 3 / 5 is that of pairs of the ten, and
of pairs of the eleventh with these.

| | Photographs | s | CPU s | Stages, s | AUC of the ten | of the eleventh |
|---|---|---|---|---|---|---|
{lines}

Adding it takes {added.stages / whole.stages:.2f} of the time of the stages of all at
once, the command {added.wall / whole.wall:.2f} ({added.cpu / whole.cpu:.2f} of the
CPU's). The poses of the ten change by {_moved(ten, added):.0e} at most: they and their
camera stay what ten photographs made them, so a splat that was trained with them goes
on being right.

With `--adjust` it takes {adjusted.stages / whole.stages:.2f}, the command
{adjusted.wall / whole.wall:.2f} ({adjusted.cpu / whole.cpu:.2f} of the CPU's), and the
ten are adjusted too: their poses move by {moved["median_rotation_deg"]:.2f} degrees
(median) and {100 * moved["median_share"]:.2f} % of the distance of the farthest camera
from their middle. AUC@1 of all pairs is then
{evaluate_model(adjusted.model, reference).auc[1]:.1f}. {_spread(others)}

`sfmprep reconstruct` again maps all anew, from the features and matches that are there,
in {redone.stages / whole.stages:.2f} of the time.
"""


def _spread(others: list[float]) -> str:
    """What all at once give, by AUC@1 from each first pair."""
    if not others:
        return "No pair of all eleven is a first one beside the ordinary one."
    return (
        f"All eleven at once, mapped from\n{len(others)} first pairs, give"
        f" {min(others):.1f} to {max(others):.1f},\n{np.mean(others):.1f} in the mean."
    )


def _line(row: Row, reference: Mapping[str, CameraPose], name: str) -> str:
    ten = {other: pose for other, pose in reference.items() if other != name}
    aucs = [evaluate_model(row.model, known).auc for known in (reference, ten)]
    num, of_ten = len(reference) * (len(reference) - 1), len(ten) * (len(ten) - 1)
    cells = []
    for limit in (1, 3, 5):
        every, part = (auc[limit] for auc in aucs)
        cells.append((part, (every * num - part * of_ten) / (num - of_ten)))
    old, new = (
        " / ".join(f"{auc:.1f}" for auc in column)
        for column in zip(*cells, strict=True)
    )
    there = name in {image.name for image in row.model.images.values()}
    return (
        f"| {row.name} | {row.model.num_reg_images()} | {row.wall:.0f} | {row.cpu:.0f}"
        f" | {row.stages:.0f} | {old} | {new if there else ''} |"
    )


def _moved(before: Row, after: Row) -> float:
    """By how much an element of a pose of the first model is another one at most."""
    poses = {i.name: i.cam_from_world().matrix() for i in after.model.images.values()}
    return max(
        float(np.abs(poses[image.name] - image.cam_from_world().matrix()).max())
        for image in before.model.images.values()
        if image.has_pose
    )


if __name__ == "__main__":
    main()
