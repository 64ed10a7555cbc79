"""Where the time from photographs to poses goes, stage by stage, against its bound.

    python -m tests.bench.stages                     (or: make bench-stages)
    python -m tests.bench.stages --scenes chair21 fox --every 1 3 --pairs 0

Needs the scenes and weights of `../shared`. Each run is from nothing and in a process
of its own, whose CPU seconds count those of its children. The bound is that of the
networks' and the nearest neighbours' products and convolutions, at the rate of a large
matrix product on as many cores; what has no such bound has a dash. Then what makes
networks and matchers faster, and what it costs (see `faster.py`): `--pairs 0` for none.
The defaults take some fifteen minutes on two cores that do nothing else.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tests.bench.measure import matmul_flops, metadata
from tests.bench.scoreboard.scenes import SCENES, prepare
from tests.bench.scoreboard.tools import TOOLS, Tool
from tests.bench.shared import use_shared_weights

ROOT = Path(__file__).resolve().parents[2]
_PAGE = ROOT / "examples" / "speed.md"
_TOOLS = ("colmap", "sfmprep", "sfmprep-packaged")

Row = dict[str, Any]


# ------------------------------------------------------------------- in the process
class _Steps(dict[str, float]):
    """Wall-clock seconds by step, as a run notes them; and CPU seconds beside them."""

    def __init__(self) -> None:
        super().__init__()
        self.cpu: dict[str, float] = {}
        self._last = _cpu_seconds()

    def __setitem__(self, step: str, seconds: float) -> None:
        now = _cpu_seconds()
        self.cpu[step], self._last = now - self._last, now
        super().__setitem__(step, seconds)


def _cpu_seconds() -> float:
    """Of this process and of its children that have ended."""
    used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(each.ru_utime + each.ru_stime for each in used)


def run_stages(images: Path, out: Path) -> Row:
    """Runs the default recipe from photographs to poses; what it took, and bounds."""
    from sfmprep.config.load import load_recipe
    from sfmprep.pipelines import stages
    from sfmprep.pipelines.apart import ready_to_map
    from sfmprep.pipelines.develop import find_capture
    from sfmprep.pipelines.matching import match_photographs
    from sfmprep.pipelines.poses import find_poses
    from sfmprep.pipelines.reporting import timed
    from sfmprep.pipelines.run import open_run

    recipe = load_recipe("splat")
    capture = find_capture(images, out, recipe)
    steps = _Steps()
    with open_run(capture, out, recipe) as run, ready_to_map(run):
        with match_photographs(run, steps) as found, timed(steps, "database"):
            verified = stages.fill_database(
                run, found.features, found.pairs, found.matches
            )
        models = find_poses(run, verified, steps)
        flops, pairs = _bounds(run), _num_pairs(run)
    import torch

    return {
        "steps": dict(steps),
        "cpu": steps.cpu,
        "flops": flops,
        "pairs": pairs,
        "images": len(capture),
        "registered": models[0].num_reg_images(),
        "threads": torch.get_num_threads(),
    }


def _bounds(run: Any) -> dict[str, float]:
    """Floating-point operations of extraction and of nearest neighbours, by step."""
    from sfmprep.capture.batches import load_batches
    from sfmprep.models.build import build_extractor
    from sfmprep.pipelines.artefacts import open_features, read_pairs

    name = run.images.names[0]
    _, batch = next(
        load_batches(run.images, [name], max_size=run.recipe.features.max_size)
    )
    config = run.recipe.features
    one_image = count_flops(lambda: build_extractor(config).extract(batch))
    with open_features(run) as features:
        counts = {name: features.num_keypoints(name) for name in features.names()}
        width = features.get(name).descriptors.shape[1]
    pairs = (pair for pair in read_pairs(run) if counts.keys() >= set(pair))
    return {
        "extract": float(one_image * len(run.images)),
        "match": float(sum(2 * width * counts[a] * counts[b] for a, b in pairs)),
    }


def _num_pairs(run: Any) -> dict[str, int]:
    """How many pairs each matcher of the first features saw, by step."""
    from sfmprep.pipelines.artefacts import pairs_as_written, read_pairs

    written = {
        "match weak pairs": run.ledger.file("weak pairs"),
        "second round": run.workspace.lost_pairs,
    }
    names = run.images.names
    again = {
        step: len(pairs_as_written(path, names)) if path.exists() else 0
        for step, path in written.items()
    }
    return {"match": len(read_pairs(run)), **again}


def count_flops(run: Any) -> int:
    """Operations of products and convolutions in a call, on one core."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    cores = torch.get_num_threads()
    torch.set_num_threads(1)  # else they are in threads that are not counted
    try:
        with FlopCounterMode(display=False) as counter:
            run()
    finally:
        torch.set_num_threads(cores)
    return int(counter.get_total_flops())


# ---------------------------------------------------------------------- around it
def measure(tool: Tool, images: Path, scratch: Path) -> Row:
    """One tool on one scene, in a process of its own."""
    out = scratch / tool.name
    module = "scoreboard.colmap_sift" if tool.is_colmap else "stages"
    command = [sys.executable, "-m", f"tests.bench.{module}"]
    command += [] if tool.is_colmap else ["--play"]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    start = time.monotonic()
    subprocess.run(
        [*command, str(images), str(out)],
        env=tool.environment(scratch),
        check=True,
        stdout=subprocess.DEVNULL,
        cwd=ROOT,
    )
    wall = time.monotonic() - start
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    whole = {"wall": round(wall, 2), "cpu_whole": round(cpu, 2)}
    if tool.is_colmap:
        steps = json.loads((out / "seconds.json").read_text("utf-8"))
        return {"steps": steps, "cpu": {}, "flops": {}, **whole}
    return {**json.loads((out / "stages.json").read_text("utf-8")), **whole}


# --------------------------------------------------------------------------- page
_WORDS = """\
Seconds are those from photographs to poses; CPU seconds are of all processes, and not
known of the stages of COLMAP. A process that is begun ahead counts in the stage that it
ends in. The bound of a stage is what its products and convolutions take at the rate of
a large matrix product on all cores; stages without them have a dash."""
_COLUMNS = ("scene", "tool", "stage", "s", "CPU s", "cores busy", "bound s", "times it")
_FASTER = """\
On one core, one photograph or pair at a time; the ratio is that of CPU seconds in this
run to those of the first line of its kind. Photographs of 640 pixels, 2048 keypoints
(the compact matcher takes 1024), {num_pairs} wide pairs of fountain-P11 and
Herz-Jesus-P8 with known cameras; features are matched by nearest neighbours, matchers
get the compact features. Found are keypoints, or matches; poses are those of eight
seeds of RANSAC."""
_FASTER_COLUMNS = ("what", "how", "CPU s", "ratio", "found", "AUC@5/10/20")


_STRONGER = """\
The learned matcher, LightGlue, sees only pairs that stay weak after nearest neighbours
and matter, and those that the second round tries for images without a pose, which need
not be among the first pairs. CPU seconds are those of the stage of weak pairs, with the
verification that finds them, and their share of all; the whole second round is in the
table above. Easy pairs never get to LightGlue{below}."""
_BELOW = "; what half the keypoints first would cost\nis below"
_STRONGER_COLUMNS = (
    *("scene", "tool", "pairs", "weak, by LightGlue"),
    *("second round, by LightGlue", "CPU s", "of all"),
)


def page(
    rows: Sequence[Row],
    about: Mapping[str, Any],
    rate: float,
    faster: Sequence[Row] = (),
) -> str:
    """The page of examples/: a line a stage, and one a run; what makes them faster."""
    lines = [_line(_COLUMNS), _line(["---"] * len(_COLUMNS))]
    for row in rows:
        for stage, seconds in row["steps"].items():
            if seconds >= 0.05:
                lines.append(_stage_line(row, stage, seconds, rate))
        seconds, cpu = sum(row["steps"].values()), sum(row["cpu"].values())
        lines.append(
            _line([*_names(row), "**together**", *_seconds(seconds, cpu), "–", "–"])
        )
    versions = ", ".join(f"{k} {v}" for k, v in about["versions"].items())
    parts = [
        "# Where the time goes",
        "Made by `make bench-stages`; no number is by hand. Commit"
        f" {(about['commit'] or 'unknown')[:10]}, {about['date'][:10]},\n"
        f"{about['device']}, {about['cores']} cores, load"
        f" {about['load_average']:.1f} when it began.\n{versions}.",
        f"{_WORDS} Here\nthat is {rate / 1e9:.0f} GFLOP/s.",
        "\n".join(lines),
    ]
    counted = [row for row in rows if row.get("pairs")]
    if counted:
        table = [_line(_STRONGER_COLUMNS), _line(["---"] * len(_STRONGER_COLUMNS))]
        told = _STRONGER.format(below=_BELOW if faster else "")
        parts += ["## What gets to the learned matcher", told]
        parts.append("\n".join([*table, *map(_stronger_line, counted)]))
    if faster:
        table = [_line(_FASTER_COLUMNS), _line(["---"] * len(_FASTER_COLUMNS))]
        parts += [
            "## What would be faster",
            _FASTER.format(num_pairs=faster[0]["pairs"]),
        ]
        parts.append("\n".join([*table, *map(_faster_line, faster)]))
    return "\n\n".join(parts) + "\n"


def _stronger_line(row: Row) -> str:
    step, cpu = "match weak pairs", row["cpu"]
    seconds, share = cpu.get(step, 0.0), cpu.get(step, 0.0) / sum(cpu.values())
    counts = [str(row["pairs"][each]) for each in ("match", step, "second round")]
    return _line([*_names(row), *counts, f"{seconds:.2f}", f"{share:.1%}"])


def _faster_line(row: Row) -> str:
    auc = "/".join(f"{share:.1f}" for share in row["auc"])
    cells = [f"{row['seconds']:.3f}", f"{row['ratio']:.2f}", f"{row['found']:.0f}", auc]
    return _line([row["what"], row["how"], *cells])


def _stage_line(row: Row, stage: str, seconds: float, rate: float) -> str:
    bound = row["flops"].get(stage, 0.0) / rate
    against = ["–", "–"]
    if bound:
        against = [f"{bound:.2f}", f"{seconds / bound:.1f}"]
    cpu = row["cpu"].get(stage, 0.0)
    return _line([*_names(row), stage, *_seconds(seconds, cpu), *against])


def _names(row: Row) -> list[str]:
    title = next(tool.title for tool in TOOLS if tool.name == row["tool"])
    return [row["scene"], title]


def _seconds(seconds: float, cpu: float) -> list[str]:
    if not cpu:
        return [f"{seconds:.2f}", "–", "–"]
    return [f"{seconds:.2f}", f"{cpu:.2f}", f"{cpu / max(seconds, 0.01):.1f}"]


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = sorted({scene.name for scene in SCENES})
    parser.add_argument(
        "--scenes", nargs="*", choices=names, default=["chair21", "fox"]
    )
    parser.add_argument("--every", nargs="*", type=int, choices=(1, 3), default=[1])
    parser.add_argument("--tools", nargs="*", choices=_TOOLS, default=_TOOLS)
    parser.add_argument("--pairs", type=int, default=60, help="of a scene; 0: none")
    parser.add_argument("--page", type=Path, default=_PAGE)
    parser.add_argument("--play", nargs=2, type=Path, metavar=("IMAGES", "OUT"))
    options = parser.parse_args()
    if options.play:
        images, out = options.play
        found = run_stages(images, out)
        (out / "stages.json").write_text(json.dumps(found), "utf-8")
        return
    about, rate, rows = metadata("cpu"), matmul_flops("cpu", _float32()), []
    with tempfile.TemporaryDirectory(prefix="stages-") as folder:
        for scene in SCENES:
            if scene.name not in options.scenes or scene.every not in options.every:
                continue
            ready = prepare(scene, Path(folder) / "scenes", None)
            title = scene.name if scene.every == 1 else f"{scene.name}, every 3rd"
            for tool in (tool for tool in TOOLS if tool.name in options.tools):
                scratch = Path(folder) / "runs" / f"{scene.name}-{scene.every}"
                row = measure(tool, ready.images, scratch)
                rows.append({"scene": title, "tool": tool.name, **row})
                print(title, tool.name, json.dumps(row), flush=True)
                options.page.write_text(page(rows, about, rate), "utf-8")
    if options.pairs:
        from tests.bench.faster import measure as measure_faster

        use_shared_weights()
        faster: list[Row] = []
        for found in measure_faster(options.pairs):
            faster.append(found)
            print(json.dumps(found), flush=True)
            options.page.write_text(page(rows, about, rate, faster), "utf-8")


def _float32() -> Any:
    import torch

    return torch.float32


if __name__ == "__main__":
    os.environ.setdefault("GLOG_minloglevel", "2")
    main()
