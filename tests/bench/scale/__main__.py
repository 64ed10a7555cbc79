"""What each stage of a made capture takes, and how that grows with the capture.

    python -m tests.bench.scale                    (or: make bench-scale)
    python -m tests.bench.scale --images 1000 10000 --minutes 60
    python -m tests.bench.scale --images 4000 --map-up-to 4000 --keep
    python -m tests.bench.scale --table            (or: make bench-scale SCALE=--table)

Each stage runs in a process of its own, the mappers only for up to 1,000 images unless
`--map-up-to` says more; above 10,000 (`--verify-up-to`) the truth verifies pairs.
Results are added to a file, line by line; what is in it is not run again while what it
made is there (`--keep`), unless `--again` is given. A stage for which the time left
does not suffice is stopped. `--table` writes examples/scale.md and the README's table.
There are no pixels, and nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tests.bench.measure import metadata
from tests.bench.scale import table
from tests.bench.scale.stages import STAGES
from tests.bench.scoreboard.process import run_measured

ROOT = Path(__file__).resolve().parents[3]
_MAPPERS = ("map global", "map partitioned", "map incremental")


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--images", nargs="*", type=int, default=[1000, 10000])
    parser.add_argument("--stages", nargs="*", choices=STAGES, default=list(STAGES))
    parser.add_argument("--map-up-to", type=int, default=1000, help="images")
    parser.add_argument("--verify-up-to", type=int, default=10000, help="images")
    parser.add_argument("--minutes", type=float, help="the most that it takes")
    parser.add_argument("--again", action="store_true", help="also what is there")
    parser.add_argument("--keep", action="store_true", help="what each stage made")
    build = ROOT / "build" / "scale"
    parser.add_argument("--results", type=Path, default=build / "results.jsonl")
    parser.add_argument("--scratch", type=Path, default=build)
    parser.add_argument("--table", action="store_true", help="only write the page")
    options = parser.parse_args()
    if options.table:
        rows = table.read_rows(options.results)
        table.write(rows, ROOT / "examples" / "scale.md")
        table.write_short(rows, ROOT / "README.md")
        return
    until = time.monotonic() + 60 * options.minutes if options.minutes else None
    for num_images in options.images:
        play(num_images, options, until)


def play(num_images: int, options: argparse.Namespace, until: float | None) -> None:
    """Runs the stages of one size, in their order, and adds a row for each."""
    folder = options.scratch / str(num_images)
    folder.mkdir(parents=True, exist_ok=True)
    there = {row["stage"] for row in table.read_rows(options.results)
             if row["images"] == num_images and not row["failure"]}  # fmt: skip
    for stage in STAGES:
        # what is there counts only with the files that it left
        is_done = stage in there and (folder / f"{stage}.json").is_file()
        is_asked = stage in options.stages and {
            "verify": num_images <= options.verify_up_to,
            "true pairs": num_images > options.verify_up_to,
            **dict.fromkeys(_MAPPERS, num_images <= options.map_up_to),
        }.get(stage, True)
        if not is_asked or (is_done and not options.again):
            continue
        left = None if until is None else until - time.monotonic()
        if left is not None and left <= 0:
            print(f"{num_images} {stage}: no time is left", flush=True)
            continue
        row = run_stage(folder, num_images, stage, left)
        print(table.line_of(row), flush=True)
        with options.results.open("a") as file:
            file.write(json.dumps(row) + "\n")
    if not options.keep:
        shutil.rmtree(folder)


def run_stage(
    folder: Path, num_images: int, stage: str, limit_s: float | None
) -> dict[str, Any]:
    """Runs one stage; returns what it took and found."""
    result = folder / f"{stage}.json"
    result.unlink(missing_ok=True)
    size = _bytes_below(folder)
    before = _children_s()
    command = [sys.executable, "-m", "tests.bench.scale.stages", folder]
    finished = run_measured(
        [*command, str(num_images), stage], {**os.environ, "PYTHONPATH": str(ROOT)},
        limit_s,
    )  # fmt: skip
    own = json.loads(result.read_text()) if result.is_file() else {}
    described = metadata("cpu")
    return {
        "stage": stage,
        "images": num_images,
        "seconds": round(finished.seconds, 2),
        "cpu_seconds": round(_children_s() - before, 2),
        "peak_bytes": own.get("peak_bytes"),
        "began_bytes": own.get("began_bytes"),
        "tree_bytes": finished.peak_bytes,
        "disk_bytes": _bytes_below(folder) - size,
        "facts": own.get("facts", {}),
        "failure": "" if own else _why(finished.exit_code, finished.error),
        **{k: described[k] for k in ("commit", "date", "device", "cores")},
        "load": described["load_average"],
    }


def _why(exit_code: int | None, error: str) -> str:
    if exit_code is None:
        return "stopped: its time was up"
    return f"exit code {exit_code}: {error[-400:]}"


def _children_s() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _bytes_below(folder: Path) -> int:
    return sum(f.stat().st_size for f in folder.rglob("*") if f.is_file())


if __name__ == "__main__":
    main()
