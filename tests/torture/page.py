"""The counts, as a table in `examples/torture.md`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

BEGIN, END = "<!-- counts: begin -->", "<!-- counts: end -->"
_HEAD = "| fault | how | tried | expected | wrong |\n|---|---|---|---|---|"


@dataclass(frozen=True, kw_only=True)
class Row:
    """A kind of fault, and how often the result was not what is expected."""

    kind: str
    what: str
    count: int
    expected: str
    faults: Sequence[str] = field(default=())

    @staticmethod
    def skipped(kind: str, what: str, why: str) -> Row:
        """One that cannot be tried on this machine."""
        return Row(kind=kind, what=what, count=0, expected=f"not tried: {why}")

    @property
    def wrong(self) -> int:
        """How many tries were."""
        return len(self.faults)

    @property
    def text(self) -> str:
        """A line of the table."""
        cells = (self.kind, self.what, self.count, self.expected, self.wrong)
        return f"| {' | '.join(map(str, cells))} |"


def write(path: Path, rows: Sequence[Row]) -> None:
    """Puts rows in the place of those of the same fault, and of those alone."""
    text = path.read_text("utf-8")
    before, _, rest = text.partition(BEGIN)
    table, _, after = rest.partition(END)
    there = [line for line in table.splitlines() if line.startswith("| ")][1:]
    kinds = {row.kind for row in rows}
    kept = [line for line in there if line.split(" | ")[0][2:] not in kinds]
    lines = sorted([*kept, *(row.text for row in rows)])
    path.write_text(
        f"{before}{BEGIN}\n\n{_HEAD}\n" + "\n".join(lines) + f"\n\n{END}{after}",
        "utf-8",
    )
