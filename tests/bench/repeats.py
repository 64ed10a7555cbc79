"""How often a scene that repeats itself gives a wrong model, and whether it is said.

    python -m tests.bench.repeats                 (or: make bench-repeats)
    python -m tests.bench.repeats --scenes facades plain --seeds 4 --minutes 20
    python -m tests.bench.repeats --minutes 0     (only the page)

Captures made of points (`tests/support/repeats.py`), and rendered ones whose pixels our
packaged features match. Each is mapped by COLMAP's incremental mapper on one database,
once plainly and once as `map_trusted` does. A model is wrong if more than 2 % of the
pairs of its images are turned against each other by more than 8 degrees; it is flagged
if pairs are told that are overlaid in it, or neighbours in time that it contradicts.

A line of JSON is added for each; what is there of the same commit is not run again. The
page `examples/repeats.md` is made of the last line of each scene and seed.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap

import sfmprep as sp
from sfmprep.evaluation.reference import CameraPose, read_reference
from sfmprep.mapping.trusted import map_trusted
from sfmprep.types import Float64
from tests.bench.measure import metadata
from tests.bench.scoreboard.play import Row, read_rows
from tests.bench.scoreboard.rendered import FOURFOLD, TWIN_FRONTS, house
from tests.bench.shared import scene_folder
from tests.support.repeats import Scene, facades, fourfold, photograph, plain
from tests.support.repeats import wrong_share as share_turned

Truth = dict[str, CameraPose]
Maker = Callable[[int, Path], Truth]
"""Writes the verified `database.db` of a seed into a folder; returns the true poses."""

ROOT = Path(__file__).resolve().parents[2]
PIXELS = (640, 480)  # of rendered photographs
_WRONG = 0.02


def points(scene: Callable[[int], Scene], seed: int, folder: Path) -> Truth:
    """Of points, with noise, misses and wrong matches."""
    return photograph(scene(seed), folder / "database.db", seed=seed)


def pixels(sides: Sequence[int], every: int, seed: int, folder: Path) -> Truth:
    """Of rendered photographs of a house, all or every so many-th of a walk."""
    house(sides, folder, seed=seed, every=every, size=PIXELS)
    images = sp.scan(folder / "images")
    features = sp.extract(images, sp.Compact(max_keypoints=2048))
    matches = sp.match(
        features, sp.exhaustive_pairs(images.names), sp.Nearest(ratio=0.9)
    )
    sp.verify(images, features, matches, folder / "database.db", num_threads=1)
    return read_reference(folder)


SCENES: dict[str, tuple[str, Maker]] = {
    "facades": ("two equal fronts, of points", partial(points, facades)),
    "fourfold": ("four equal sides, of points", partial(points, fourfold)),
    "plain": ("no side like another, of points", partial(points, plain)),
    "rendered-twin-fronts": (
        *("two equal fronts, rendered, every 10 degrees",),
        partial(pixels, TWIN_FRONTS, 1),
    ),
    "rendered-fourfold": (
        *("four equal sides, rendered, every 10 degrees",),
        partial(pixels, FOURFOLD, 1),
    ),
    "rendered-plain": (
        *("no side like another, rendered, every 10 degrees",),
        partial(pixels, (0, 1, 2, 3), 1),
    ),
    "rendered-twin-fronts-thinned": (
        *("two equal fronts, rendered, every 30 degrees",),
        partial(pixels, TWIN_FRONTS, 3),
    ),
    "rendered-fourfold-thinned": (
        *("four equal sides, rendered, every 30 degrees",),
        partial(pixels, FOURFOLD, 3),
    ),
}


def map_plainly(database: Path, folder: Path) -> list[pycolmap.Reconstruction]:
    """COLMAP's incremental mapper, largest model first."""
    folder.mkdir()
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed, options.num_threads, options.extract_colors = 0, 1, False
    # a third of the global adjustments: what is laid on what does not depend on them
    options.ba_global_frames_ratio = options.ba_global_points_ratio = 1.4
    found = pycolmap.incremental_mapping(database, folder, folder, options).values()
    return sorted(found, key=lambda model: -model.num_reg_images())


def wrong_share(models: Sequence[pycolmap.Reconstruction], truth: Truth) -> float:
    """The largest share of wrongly turned pairs of some models; 0 without any."""
    return max((share_turned(model, truth) for model in models), default=0.0)


def play(name: str, seed: int) -> Row:
    """Maps a capture both ways; returns what came out."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        truth = SCENES[name][1](seed, folder)
        found: list[list[pycolmap.Reconstruction]] = []
        mapping = 0.0

        def mapper(path: Path, place: Path) -> list[pycolmap.Reconstruction]:
            nonlocal mapping
            began = time.process_time()
            found.append(map_plainly(path, place))
            mapping += time.process_time() - began
            return found[-1]

        began = time.process_time()
        models, trust = map_trusted(folder / "database.db", folder / "models", mapper)
        checks = time.process_time() - began - mapping
    return {
        "scene": name,
        "seed": seed,
        "images": len(truth),
        "plainly_wrong": round(wrong_share(found[0], truth), 3),
        "wrong": round(wrong_share(models, truth), 3),
        "plain_models": [model.num_reg_images() for model in found[0]],
        "models": [model.num_reg_images() for model in models],
        "mappings": len(found),
        "left_out": len(trust.left_out),
        "consistency": round(trust.consistency, 3),
        "flagged": bool(trust.overlaid or trust.broken),
        "mapping_cpu_s": round(mapping, 1),
        "checks_cpu_s": round(checks, 1),
    }


# ------------------------------------------------------------------------------- page
_HEAD = """# Scenes that repeat themselves

Made by `make bench-repeats`; no number is by hand. Captures of a house with two equal
fronts and of one with four equal sides, of points and rendered, are mapped on
one database each: as COLMAP's incremental mapper does, and as sfmprep does, without the
pairs that lay one side on another. A model is wrong if more than 2 % of the pairs of
its images are turned against each other by more than 8 degrees; that is said if the
report names places that lie on each other, or neighbours in the row that stand apart.
A false alarm is a right model of which that is said. Rendered photographs have 640 x
480 pixels and packaged features.
"""
_NOTES = """
What can be known, and what not:

- What tells look-alikes apart has to be matched somewhere. Points of the ground or
  behind that one side's photographs see and the other's do not are the best evidence.
- Photographs in a row tell most: how neighbours are turned against each other, followed
  around a loop, shows which pairs join two sides (`mapping/loops.py`).
- Where steps are too wide for either, two photographs that the poses put in one place
  still have to look the same. A region full of keypoints without one match in it shows
  that they do not, but not which neighbours are the true ones.
- The order of names then decides between equals. Photographs without an order, of
  a scene that is equal on all sides, with nothing around that matches, can be told to
  be ambiguous; their true places cannot be found by anybody.
- Moving water, crowds and trees in wind at one place look like another place, too, if
  they fill much of the image.
"""


def around_deg(poses: Sequence[CameraPose]) -> Float64:
    """How far each camera [N] of a walk stands around its middle, degrees, 0..360.

    The middle is the point that all axes pass nearest to; the first camera is at 0.
    """
    ahead = np.array([pose.rotation[2] for pose in poses])
    centres = np.array([pose.centre for pose in poses])
    across = np.eye(3) - ahead[:, :, None] * ahead[:, None, :]
    middle = np.linalg.solve(
        across.sum(axis=0), np.einsum("nij,nj->i", across, centres)
    )
    up = -np.mean([pose.rotation[1] for pose in poses], axis=0)
    up /= np.linalg.norm(up)
    away = centres - middle
    x = away[0] - up * (away[0] @ up)
    angle = np.arctan2(away @ np.cross(up, x), away @ x)
    return np.asarray(np.degrees(angle) % 360, np.float64)


def of_the_can(folder: Path) -> str:
    """What the reference of `beer-video71` is worth; nothing where it is not there."""
    if not folder.is_dir():
        return ""
    poses = read_reference(folder)
    names = sorted(poses)
    angles = around_deg([poses[name] for name in names])
    steps = np.abs((np.diff(angles) + 180) % 360 - 180)
    far = int(steps.argmax())
    lines = (
        "`beer-video71` is the film of a can with the same front twice. The poses that",
        "come with it, by COLMAP, lay one half of the walk on the other: photographs",
        f"0, 28, 48 stand at 0, {angles[28]:.0f} and {angles[48]:.0f} degrees, before",
        "a railing, a door opposite it, and the railing again; and between photographs",
        f"{far} and {far + 1} they jump by {steps[far]:.0f} degrees, where"
        f" {np.median(steps):.0f} are usual. A right model",
        "loses by them.",
    )
    return "\n" + "\n".join(lines) + "\n"


def page(rows: Iterable[Row], more: str = "") -> str:
    """`examples/repeats.md`, of the last row of each scene and seed."""
    last = {(row["scene"], row["seed"]): row for row in rows}
    dates = sorted({row["date"][:10] for row in last.values()})
    lines = [
        _HEAD,
        "| Scene | Images | Seeds | Wrong, plain mapping | Wrong, sfmprep"
        " | of these unsaid | False alarms |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (title, _) in SCENES.items():
        own = [row for (scene, _), row in sorted(last.items()) if scene == name]
        if own:
            lines.append(_line(title, own))
    lines += ["", f"({', '.join(dates)})" if dates else "(nothing was run)"]
    return "\n".join(lines) + "\n" + _NOTES + more


def _line(title: str, rows: Sequence[dict[str, Any]]) -> str:
    images = sorted({row["images"] for row in rows})
    size = f"{images[0]}" if len(images) == 1 else f"{images[0]} to {images[-1]}"
    wrong = [row for row in rows if row["wrong"] > _WRONG]
    counts = (
        len(rows),
        sum(row["plainly_wrong"] > _WRONG for row in rows),
        len(wrong),
        sum(not row["flagged"] for row in wrong),
        sum(row["flagged"] and row["wrong"] <= _WRONG for row in rows),
    )
    return f"| {title} | {size} | {' | '.join(map(str, counts))} |"


def main() -> None:
    """Prints a line for each capture, and writes the page."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", nargs="*", choices=SCENES, default=list(SCENES))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--minutes", type=float, help="the most that it takes")
    parser.add_argument(
        "--results", type=Path, default=ROOT / "build" / "repeats" / "results.jsonl"
    )
    parser.add_argument("--page", type=Path, default=ROOT / "examples" / "repeats.md")
    options = parser.parse_args()
    minutes = 1e6 if options.minutes is None else options.minutes
    until = time.monotonic() + 60 * minutes
    pycolmap.logging.minloglevel = int(pycolmap.logging.FATAL)
    about = metadata("cpu")
    done = {(r["scene"], r["seed"], r["commit"]) for r in read_rows(options.results)}
    options.results.parent.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for name in options.scenes:
            if (name, seed, about["commit"]) in done or time.monotonic() >= until:
                continue
            row = play(name, seed) | about
            with options.results.open("a", encoding="utf-8") as file:
                file.write(json.dumps(row, allow_nan=False) + "\n")
            print(
                *(f"{key} {value}" for key, value in row.items()), sep=", ", flush=True
            )
    more = of_the_can(scene_folder("beer-video71"))
    options.page.write_text(page(read_rows(options.results), more), "utf-8")


if __name__ == "__main__":
    main()
