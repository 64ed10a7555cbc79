"""The log of a training, read back."""

from __future__ import annotations

import json
from pathlib import Path


def read_log(path: Path) -> list[dict[str, float]]:
    """The lines of a log; one that a kill has cut is left out."""
    rows = []
    for line in path.read_text().splitlines():
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows
