"""examples/scale.md, and the README's row, out of the lines of a results file."""

from __future__ import annotations

import json
import math
import textwrap
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

Row = dict[str, Any]
Board = dict[str, dict[int, Row]]
"""Rows by stage, then by the number of images."""

BEGIN, END = "<!-- scale: begin -->", "<!-- scale: end -->"
_SHORTEST_S = 2.0  # beside what every process takes to begin: less tells no growth
_FAR = 100_000
_LEAST_TOLD = 4_000  # images, for anything to be told of so many

_WORDS = """\
# Large captures

Made by `make bench-scale` and `make bench-scale SCALE=--table`.

A made city, photographed on a walk that takes every street one and a half times each
way, and so closes loops. Of a photograph there are up to 400 keypoints with 0.6 pixels
of noise and 40 that show nothing, with descriptors of 32 numbers that change with the
side a point is seen from. There are no pixels: features come from the city, and a
matcher answers from the truth, with one wrong match in eight. Pairs are 20 neighbours
by retrieval. Everything else is what `sfmprep reconstruct` does with photographs. What
comes behind the mapper is measured on a model of the true poses; *true pairs* are pairs
verified by the truth, where to verify them would take hours.

{machine}

Each stage runs in a process of its own. *CPU* is the seconds of all its threads and
of all that it starts, of which {start_cpu:.0f} are imports; *peak* is VmHWM, the most
memory that the process held, of which {start_mb:.0f} MB are imports; *with all it
starts* is the proportional memory of the process and its children, looked at up to
five times a second, so it may be below the peak; *disk* is by how much the folder
grew. *Growth* is the exponent between the two largest sizes, imports taken off: 1 is
linear, 2 quadratic; a dash where there is too little to tell. *kB an image* is by how
much the peak rises with each image, between the same two; *at 100,000* is what CPU
time and peak would be by these two, on paper, where 4,000 or more were measured."""


def read_rows(path: Path) -> list[Row]:
    """The lines of a file; none where there is no file."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def line_of(row: Row) -> str:
    """One stage, for people."""
    tree = (row["tree_bytes"] or 0) / 1e6
    peak = row["peak_bytes"] or 0
    return (
        f"{row['images']} {row['stage']}: {row['seconds']:.0f} s,"
        f" {row['cpu_seconds']:.0f} CPU-s, {peak / 1e6:.0f} MB (with all it starts"
        f" {tree:.0f}), {row['disk_bytes'] / 1e6:.0f} MB of disk;"
        f" {row['facts'] or row['failure']}"
    )


def write(rows: Iterable[Row], path: Path) -> None:
    """Writes the page; of several runs of one stage and size the last counts."""
    last = _last(rows)
    board = _board(last)
    failed = [row for row in last if row["failure"]]
    parts = [_words(last)]
    stages = [stage for stage in _ORDER if stage in board]
    parts.append("## Stages\n\n" + _stages(board, stages))
    parts.append("## What came out\n\n" + _facts(board, stages))
    if mapped := [stage for stage in _MAPPERS if stage in board]:
        parts.append("## Mapping\n\n" + _mapping(board, mapped))
    if failed:
        lines = [f"- {r['images']:,} {r['stage']}: {r['failure']}" for r in failed]
        parts.append("## Not finished\n\n" + "\n".join(lines))
    path.write_text("\n\n".join(parts) + "\n", "utf-8")


def _last(rows: Iterable[Row]) -> list[Row]:
    """Of several runs of one stage and size the last, smallest sizes first."""
    last = {(row["stage"], row["images"]): row for row in rows}
    return sorted(last.values(), key=lambda row: row["images"])


def _board(last: Iterable[Row]) -> Board:
    board: Board = {}
    for row in last:
        if not row["failure"]:
            board.setdefault(row["stage"], {})[row["images"]] = row
    return board


_ORDER = (
    *("make", "sequential", "spatial", "retrieval", "match", "database", "verify"),
    *(
        "true pairs",
        "true model",
        "consistency",
        "outliers",
        "points",
        "report",
        "evaluation",
    ),
    "export",
)
_FAR_OFF = ("growth of CPU", "kB an image", "at 100,000: CPU h", "peak GB")
_MAPPERS = ("map incremental", "map partitioned", "map global")


def _words(rows: Iterable[Row]) -> str:
    rows = list(rows)
    began = [row["began_bytes"] for row in rows if row["began_bytes"]]
    sizes = sorted({row["images"] for row in rows})
    newest = max(rows, key=lambda row: row["date"])
    loads = [row["load"] for row in rows]
    return _WORDS.format(
        machine=textwrap.fill(
            f"{', '.join(f'{n:,}' for n in sizes)} images; {newest['cores']} cores"
            f" ({newest['device']}), until {newest['date'][:10]}, at a load of"
            f" {min(loads):.0f} to {max(loads):.0f}: where that is more than the cores,"
            " seconds say little, CPU seconds still something.",
            88,
        ),
        start_cpu=_start_cpu(rows),
        start_mb=(min(began) if began else 0) / 1e6,
    )


def _start_cpu(rows: Iterable[Row]) -> float:
    """CPU seconds of the cheapest stage: all but its imports is next to nothing."""
    return min(row["cpu_seconds"] for row in rows if not row["failure"])


def _stages(board: Board, stages: Iterable[str]) -> str:
    start = _start_cpu(row for found in board.values() for row in found.values())
    head = ("stage", "images", "seconds", "CPU s", "peak MB", "disk MB")
    lines = [_line((*head, *_FAR_OFF)), _line(["---"] * (len(head) + len(_FAR_OFF)))]
    for stage in stages:
        sizes = sorted(board[stage])
        for size in sizes:
            row = board[stage][size]
            cells = [
                *(stage, f"{size:,}", f"{row['seconds']:.0f}"),
                f"{row['cpu_seconds']:.0f}",
                f"{row['peak_bytes'] / 1e6:.0f}",
                f"{max(row['disk_bytes'], 0) / 1e6:.0f}",
            ]
            cells += _growth_until(board[stage], size, start)
            lines.append(_line(cells))
    return "\n".join(lines)


def _growth_until(found: Mapping[int, Row], size: int, start: float) -> list[str]:
    """How a stage grows up to its largest size; nothing of others."""
    sizes = sorted(found)
    if size != sizes[-1] or len(sizes) < 2:
        return [""] * len(_FAR_OFF)
    return _growth(found, sizes[-2], size, start)


def _growth(found: Mapping[int, Row], few: int, many: int, start: float) -> list[str]:
    """Exponent of CPU time, memory of an image, and both at a hundred thousand."""
    before, after = (max(found[n]["cpu_seconds"] - start, 1e-3) for n in (few, many))
    per_image = (found[many]["peak_bytes"] - found[few]["peak_bytes"]) / (many - few)
    peak = found[many]["peak_bytes"] + max(per_image, 0) * (_FAR - many)
    memory = [f"{max(per_image, 0) / 1e3:.1f}"]
    is_little = many < _LEAST_TOLD  # from a hundredth of it nothing follows
    far = "–" if is_little else f"{peak / 1e9:.1f}"
    if after < _SHORTEST_S or before < _SHORTEST_S / 4:
        return ["–", *memory, "–", far]
    exponent = math.log(after / before) / math.log(many / few)
    hours = after * (_FAR / many) ** max(exponent, 1) / 3600
    return [f"{exponent:.2f}", *memory, "–" if is_little else f"{hours:.1f}", far]


def _facts(board: Board, stages: Iterable[str]) -> str:
    lines = []
    for stage in stages:
        for size, row in sorted(board[stage].items()):
            found = ", ".join(f"{k} {_number(v)}" for k, v in row["facts"].items())
            if found:
                lines.append(f"- {stage}, {size:,} images: {found}")
    return "\n".join(lines)


def _number(value: Any) -> str:
    if isinstance(value, dict):
        return " / ".join(_number(v) for v in value.values())
    if isinstance(value, float):
        return f"{value:.3g}" if abs(value) < 10 else f"{value:,.1f}"
    return f"{value:,}" if isinstance(value, int) else str(value)


def _mapping(board: Board, stages: Iterable[str]) -> str:
    head = ("mapper", "images", "registered", "models", "AUC@1/3/5", "median error m")
    more = (
        "error px",
        "seconds",
        "CPU s",
        "peak MB",
        "with all it starts MB",
        *_FAR_OFF,
    )
    lines = [_line((*head, *more)), _line(["---"] * (len(head) + len(more)))]
    start = _start_cpu(row for found in board.values() for row in found.values())
    for stage in stages:
        for size, row in sorted(board[stage].items()):
            facts = row["facts"]
            auc = " / ".join(f"{facts['auc'][k]:.1f}" for k in ("1", "3", "5"))
            cells = [
                *(stage.removeprefix("map "), f"{size:,}", f"{facts['registered']:,}"),
                *(str(facts["models"]), auc, f"{facts['median_error_m']:.3f}"),
                *(f"{facts['error_px']:.2f}", f"{row['seconds']:.0f}"),
                *(f"{row['cpu_seconds']:.0f}", f"{row['peak_bytes'] / 1e6:.0f}"),
                f"{(row['tree_bytes'] or 0) / 1e6:.0f}",
                *_growth_until(board[stage], size, start),
            ]
            lines.append(_line(cells))
    return "\n".join(lines)


# ------------------------------------------------------------------------------- README
_GROUPS = {
    "pairs": ("retrieval",),
    "matches": ("match", "database"),
    "verification": ("verify",),
    "mapping": ("map partitioned",),
    "checks": ("consistency", "outliers"),
    "report, points, dataset": ("points", "report", "evaluation", "export"),
}


def short_table(rows: Iterable[Row]) -> str:
    """One line a size: CPU minutes of what belongs together, memory and disk."""
    board = _board(_last(rows))
    sizes = sorted({size for found in board.values() for size in found})
    head = ["made images", *(f"{name}, CPU min" for name in _GROUPS)]
    head += ["most memory of a process", "disk"]
    lines = [_line(head), _line(["---"] * len(head))]
    for size in sizes:
        here = {stage: found[size] for stage, found in board.items() if size in found}
        cells = [f"{size:,}"]
        for stages in _GROUPS.values():
            known = [here[stage]["cpu_seconds"] for stage in stages if stage in here]
            is_whole = len(known) == len(stages)
            cells.append(f"{sum(known) / 60:.1f}" if is_whole else "–")
        peaks = [row["peak_bytes"] for s, row in here.items() if s in _IN_A_RUN]
        disk = sum(
            max(row["disk_bytes"], 0) for s, row in here.items() if s in _IN_A_RUN
        )
        cells += [f"{max(peaks, default=0) / 1e9:.1f} GB", f"{disk / 1e9:.1f} GB"]
        lines.append(_line(cells))
    return "\n".join(lines)


_IN_A_RUN = {"make", *(stage for stages in _GROUPS.values() for stage in stages)}


def write_short(rows: Iterable[Row], readme: Path) -> None:
    """Puts the short table between the two lines of the README that are for it.

    Raises:
        ValueError: the README lacks them.
    """
    before, begin, rest = readme.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme} lacks the lines {BEGIN} and {END}")
    readme.write_text(
        f"{before}{BEGIN}\n\n{short_table(rows)}\n\n{END}{after}", "utf-8"
    )


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
