"""A tiny slice of `make torture`; the whole of it takes an hour."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.torture.bad_input import cases, read_snapshot
from tests.torture.page import Row, write

ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.slow
def test_some_faults_of_each_kind(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- counts: begin -->\n<!-- counts: end -->\n")
    command = ("-m", "tests.torture", "--share", "0.02", "--page", str(page), "--only")
    ended = subprocess.run(
        [sys.executable, *command, "kills", "full", "damage", "messages"],
        cwd=ROOT,
        env={**os.environ, "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ended.returncode == 0, ended.stdout + ended.stderr
    rows = [line for line in page.read_text().splitlines() if line.startswith("| ")]
    tried = {row.split(" | ")[0][2:] for row in rows[1:]}
    assert tried == {"SIGKILL at a write", "full disk", "damaged files", "bad input"}


def test_sixty_kinds_of_bad_input_have_a_message() -> None:
    names = [case.name for case in cases()]
    assert len({*names}) == len(names) >= 60
    told = read_snapshot()
    assert [*told] == names
    for name, (code, message) in told.items():
        assert code in (1, 2) and message, name
        assert "Traceback" not in message and "Errno" not in message, name


def test_counts_of_some_kinds_replace_only_theirs(tmp_path: Path) -> None:
    path = tmp_path / "page.md"
    path.write_text("# Page\n<!-- counts: begin -->\n<!-- counts: end -->\nend\n")

    def row(kind: str, count: int) -> Row:
        faults = ["a fault"] * (count == 3)
        return Row(kind=kind, what="how", count=count, expected="e", faults=faults)

    write(path, [row("b", 1), row("a", 2)])
    write(path, [row("b", 3)])
    assert path.read_text() == (
        "# Page\n<!-- counts: begin -->\n\n"
        "| fault | how | tried | expected | wrong |\n|---|---|---|---|---|\n"
        "| a | how | 2 | e | 0 |\n| b | how | 3 | e | 1 |\n\n"
        "<!-- counts: end -->\nend\n"
    )
