"""sfmprep and COLMAP on the same files, in one run on one machine.

    python -m tests.bench.scoreboard                     (or: make bench-scenes)
    python -m tests.bench.scoreboard --scenes fox chair21 --every 3 --minutes 20
    python -m tests.bench.scoreboard --table             (or: make bench-table)

Needs the scenes and weights of `../shared` (SFMPREP_SHARED and SFMPREP_WEIGHTS name
other places). Results are added to a file, line by line, and what is in it is not run
again; `--table` writes them into the README and examples/scoreboard.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from tests.bench.scoreboard import table
from tests.bench.scoreboard.play import Settings, play, read_rows
from tests.bench.scoreboard.scenes import SCENES
from tests.bench.scoreboard.tools import DEFAULT_TOOLS, TOOLS

ROOT = Path(__file__).resolve().parents[3]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = sorted({scene.name for scene in SCENES})
    parser.add_argument("--scenes", nargs="*", choices=names, default=names)
    parser.add_argument("--every", nargs="*", type=int, choices=(1, 3), default=(1, 3))
    parser.add_argument(
        *("--tools",), nargs="*", choices=[t.name for t in TOOLS], default=DEFAULT_TOOLS
    )
    parser.add_argument(
        "--max-size", type=int, help="longer side of the images, pixels"
    )
    parser.add_argument("--minutes", type=float, help="the most that it takes")
    parser.add_argument("--keep", action="store_true", help="what each run wrote")
    build = ROOT / "build" / "scoreboard"
    parser.add_argument("--results", type=Path, default=build / "results.jsonl")
    parser.add_argument("--scratch", type=Path, default=build)
    parser.add_argument("--table", action="store_true", help="only write the tables")
    options = parser.parse_args()
    if options.table:
        rows = read_rows(options.results)
        table.write(rows, ROOT / "README.md", ROOT / "examples" / "scoreboard.md")
        return
    how = Settings(
        results=options.results,
        scratch=options.scratch,
        max_size=options.max_size,
        minutes=options.minutes,
        keep=options.keep,
    )
    scenes = [
        s for s in SCENES if s.name in options.scenes and s.every in options.every
    ]
    tools = [tool for tool in TOOLS if tool.name in options.tools]
    count = 0
    for row in play(scenes, tools, how):
        count += 1
        print(table.long_line(row), flush=True)
    print(f"{count} runs more in {options.results}")


if __name__ == "__main__":
    main()
