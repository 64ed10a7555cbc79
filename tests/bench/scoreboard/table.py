"""The README's table and the page of examples/, out of the lines of a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.bench.scoreboard.tools import TOOLS

Row = dict[str, Any]
Board = dict[tuple[str, int], dict[str, Row]]
"""Rows by scene and thinning, then by tool."""

BEGIN, END = "<!-- scoreboard: begin -->", "<!-- scoreboard: end -->"
OURS, THEIRS = "sfmprep", "colmap"
_TITLES = {tool.name: tool.title for tool in TOOLS}

WORDS = """\
AUC is that of the larger of rotation and translation-direction error over all pairs of
images, in per cent, at 1, 3 and 5 degrees; a dash where no poses are known. Intrinsics
are unknown to every run. Seconds are those from photographs to poses."""
MORE_WORDS = """\
A verified pair is wrong if fewer than half of its inliers can be one point in the true
cameras: within 0.5 % of the longer side of the epipolar line, and in front of both. The
references of `fox`, `buddha67` and `beer-video71` are themselves estimates, by COLMAP
(`fox`, `beer-video71`) and AliceVision; that of `beer-video71`, a can with two equal
fronts, lays one half of the walk on the other (see `repeats.md`), so that a right model
loses by it; that of `tum-fr2-desk20` is off in time. In
`rotation-kayak7` the camera only turns: no image registered is right. `-night`,
`-two-lights` and `-shaken` are photographs of a scene made worse (`worse.py` says how),
without EXIF. Memory is the
largest sum over all processes of a run. Every run is the default of its tool, from
nothing, in a process of its own. COLMAP's default is a camera for each image; with one
camera it is told that all have the same. sfmprep without downloads is the same command
on a machine that has no weights. Doubts are what sfmprep's report cuts or flags: pairs
of look-alikes that were not mapped with (cut), pairs that it warns of, and photographs
with a pose that are not in the dataset; a dash where nobody was asked."""


_BUSY = """\
The machine had other work: compare seconds of the CPU, which are those of the whole
run, with the start of Python."""


def newest(rows: Iterable[Row]) -> list[Row]:
    """The rows of the code, machine and image size of the last one."""
    rows = list(rows)
    same = ("commit", "device", "cores", "max_size")
    chosen = [row for row in rows if all(row[k] == rows[-1][k] for k in same)]
    latest = {(row["scene"], row["every"], row["tool"]): row for row in chosen}
    return list(latest.values())


def board_of(rows: Iterable[Row]) -> Board:
    """Rows by scene, those with the fewest images first, whole ones before thinned."""
    ordered = sorted(rows, key=lambda r: (r["every"], r["images"], r["scene"]))
    board: Board = {}
    for row in ordered:
        board.setdefault((row["scene"], row["every"]), {})[row["tool"]] = row
    return board


# ------------------------------------------------------------------------------- README
def short_table(board: Board) -> str:
    """One line a scene: images, AUC and seconds of each tool."""
    tools = [name for name in _TITLES if any(name in row for row in board.values())]
    head = ["scene", "images", *(_TITLES[name] for name in tools)]
    lines = [_line(head), _line(["---"] * len(head))]
    for key, row in board.items():
        images = next(iter(row.values()))["images"]
        cells = [_short(row[name]) if name in row else "" for name in tools]
        lines.append(_line([_title(key), str(images), *cells]))
    return "\n".join(lines)


def _short(row: Row) -> str:
    parts = [str(row["registered"])]
    if row["auc"] is not None:
        parts.append(_auc(row))
    return "; ".join([*parts, f"{row['seconds']:.0f} s"])


def verdicts(
    board: Board, ours: str = OURS, theirs: str = THEIRS, *, is_quiet: bool = True
) -> str:
    """Where ours is better and where it loses, by name; empty where they never met.

    Seconds are those of the CPU where the machine had other work.
    """
    kind, seconds = ("", "seconds") if is_quiet else (" of the CPU", "cpu_seconds")
    both = {
        _title(key): (row[ours], row[theirs])
        for key, row in board.items()
        if ours in row and theirs in row and not row[ours]["only_turns"]
    }
    measures: dict[str, tuple[Callable[[Row], float | None], float]] = {
        "images registered": (lambda row: row["registered"], 0),
        "AUC@3, beyond half a point": (lambda row: (row["auc"] or {}).get("3"), 0.5),
        f"seconds{kind}, beyond a twentieth": (lambda row: -row[seconds], 0.05),
    }
    if not both:
        return ""
    lines = [f"{_TITLES[ours]} against {_TITLES[theirs]}, on {len(both)} captures:", ""]
    for words, (value, margin) in measures.items():
        better, worse = _compare(both, value, margin)
        lines.append(
            f"- {words}: better on {len(better)}, worse on {len(worse)}"
            + (f" ({', '.join(worse)})" if worse else "")
        )
    return "\n".join(lines)


def _compare(
    both: Mapping[str, tuple[Row, Row]],
    value: Callable[[Row], float | None],
    margin: float,
) -> tuple[list[str], list[str]]:
    """Where the first is better and worse; the margin of seconds is a share."""
    better, worse = [], []
    for name, (first, second) in both.items():
        a, b = value(first), value(second)
        if a is None or b is None:
            continue
        least = margin * -b if b < 0 else margin
        if a > b + least:
            better.append(name)
        elif a < b - least:
            worse.append(name)
    return better, worse


# --------------------------------------------------------------------------------- page
_COLUMNS = (
    *("scene", "tool", "features and matching", "registered", "models", "AUC@1/3/5"),
    *("wrong pairs", "points", "track", "error px", "seconds", "whole run s"),
    *("CPU s", "peak MB", "doubts"),
)


def long_table(board: Board) -> str:
    """One line a run, with all there is."""
    lines = [long_head()]
    for row in board.values():
        lines += [long_line(row[tool]) for tool in _TITLES if tool in row]
    return "\n".join(lines)


def long_head() -> str:
    """The two lines above the runs of a table."""
    return "\n".join([_line(_COLUMNS), _line(["---"] * len(_COLUMNS))])


def long_line(row: Row) -> str:
    """All there is of one run, as a line of a table."""
    return _line(_long(row))


def _long(row: Row) -> list[str]:
    wrong = "–" if row["wrong_pairs"] is None else f"{row['wrong_pairs']}"
    peak = row["peak_bytes"]
    return [
        _title((row["scene"], row["every"])),
        *(_TITLES[row["tool"]], row["what"]),
        f"{row['registered']} of {row['images']}",
        "+".join(map(str, row["models"])) or "none",
        "–" if row["auc"] is None else _auc(row),
        f"{wrong} of {row['pairs']}",
        str(row["points"]),
        *(_number(row[name], digits) for name, digits in _DIGITS.items()),
        f"{row['seconds']:.1f}",
        f"{row['process_seconds']:.1f}",
        f"{row['cpu_seconds']:.0f}",
        "–" if peak is None else f"{peak / 1e6:.0f}",
        _doubts(row),
    ]


def _doubts(row: Row) -> str:
    """What was cut or flagged; rows from before that was written do not say it."""
    doubts = row.get("doubts")
    if doubts is None:
        return "–"
    return ", ".join(f"{number} {what}" for what, number in doubts.items()) or "none"


def doubted(board: Board, tool: str = OURS) -> str:
    """On which captures something was cut or flagged; empty where no row says it."""
    rows = {_title(k): row[tool] for k, row in board.items() if tool in row}
    asked = {name: r for name, r in rows.items() if r.get("doubts") is not None}
    if not asked:
        return ""
    found = [f"{name} ({_doubts(row)})" for name, row in asked.items() if row["doubts"]]
    return f"{_TITLES[tool]} cut or flagged {len(found)} of {len(asked)} captures" + (
        f": {'; '.join(found)}." if found else "."
    )


_DIGITS = {"track_length": 1, "error_px": 2}


def page(board: Board, *, title: str = "Scoreboard", is_quiet: bool = True) -> str:
    """The page of examples/; not quiet is a machine that had other work."""
    row = next(iter(next(iter(board.values())).values()))
    size = "as they are" if row["max_size"] is None else f"at {row['max_size']} pixels"
    versions = ", ".join(f"{k} {v}" for k, v in row["versions"].items())
    dates = [each["date"][:10] for tools in board.values() for each in tools.values()]
    changed = ", with changes" if row["uncommitted_changes"] else ""
    by = "`make bench-table`" if is_quiet else "its option `--further`"
    parts = [
        f"# {title}",
        f"Made by `make bench-scenes` and {by}; no number is by hand."
        f" Commit\n{(row['commit'] or 'unknown')[:10]}{changed}, {max(dates)},"
        f" {row['device']}, {row['cores']} cores, no GPU,\nimages {size}."
        f"\n{versions}.",
        WORDS,
        MORE_WORDS,
        "" if is_quiet else _BUSY,
        *(
            verdicts(board, ours, theirs, is_quiet=is_quiet)
            for ours in (OURS, "sfmprep-packaged")
            for theirs in (THEIRS, "colmap-one-camera")
        ),
        *(doubted(board, tool) for tool in (OURS, "sfmprep-packaged")),
        long_table(board),
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def _newest_board(rows: Iterable[Row]) -> Board:
    rows = list(rows)
    if not rows:
        raise ValueError("there are no results yet; run `make bench-scenes` first")
    return board_of(newest(rows))


def write_further(rows: Iterable[Row], target: Path) -> None:
    """Writes a page of captures that are not in the README, of a busy machine.

    Raises:
        ValueError: there are no rows.
    """
    board = _newest_board(rows)
    target.write_text(page(board, title="Further captures", is_quiet=False), "utf-8")


def write(rows: Iterable[Row], readme: Path, target: Path) -> None:
    """Puts the table between the marks of the README, and writes the page.

    Raises:
        ValueError: there are no rows, or the README lacks the marks.
    """
    board = _newest_board(rows)
    before, begin, rest = readme.read_text("utf-8").partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"{readme} lacks the lines {BEGIN} and {END}")
    words = f"{WORDS}\n[All figures]({target.relative_to(readme.parent).as_posix()})."
    inside = "\n\n".join(["", short_table(board), verdicts(board), words, ""])
    readme.write_text(before + begin + inside + end + after, "utf-8")
    target.write_text(page(board), "utf-8")


# --------------------------------------------------------------------------------- text
def _title(key: tuple[str, int]) -> str:
    name, every = key
    return name if every == 1 else f"{name}, every {every}rd"


def _auc(row: Row) -> str:
    return " / ".join(f"{row['auc'][k]:.1f}" for k in ("1", "3", "5"))


def _number(value: float | None, digits: int) -> str:
    return "–" if value is None else f"{value:.{digits}f}"


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(cells)} |"
