"""examples/scale.md out of the lines of a results file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

Row = dict[str, Any]


def read_rows(path: Path) -> list[Row]:
    """The lines of a file; none where there is no file."""
    lines = path.read_text("utf-8").splitlines() if path.is_file() else []
    return [json.loads(line) for line in lines]


def line_of(row: Row) -> str:
    """One stage, for people."""
    peak = (row["peak_bytes"] or row["tree_bytes"] or 0) / 1e6
    tree = (row["tree_bytes"] or 0) / 1e6
    return (
        f"{row['images']} {row['stage']}: {row['seconds']:.0f} s,"
        f" {row['cpu_seconds']:.0f} CPU-s, {peak:.0f} MB (with all it starts"
        f" {tree:.0f}), {row['disk_bytes'] / 1e6:.0f} MB of disk;"
        f" {row['facts'] or row['failure']}"
    )
