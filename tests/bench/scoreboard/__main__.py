"""sfmprep and COLMAP on the same files, in one run on one machine.

    python -m tests.bench.scoreboard                     (or: make bench-scenes)
    python -m tests.bench.scoreboard --scenes fox chair21 --every 3 --minutes 20
    python -m tests.bench.scoreboard --folder DIR        (photographs of one's own)
    python -m tests.bench.scoreboard --table             (or: make bench-table)

Scenes and weights are those of `../shared` (SFMPREP_SHARED and SFMPREP_WEIGHTS name
other places); scenes that are not there are skipped, rendered ones always are there.
Results are added to a file, line by line, and what is in it is not run
again; `--table` writes them into the README and examples/scoreboard.md.

A folder of one's own is judged against a `reference.json` in it or beside it, where
there is one: `images`: name -> world-to-camera `R` and `t`, and `K`, `width`, `height`
if wrong pairs are to be counted. Its results go into a file of their own; it is
played anew each time, as it may have changed.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path

from tests.bench.scoreboard import table
from tests.bench.scoreboard.play import Settings, play, read_rows
from tests.bench.scoreboard.scenes import SCENES, own
from tests.bench.scoreboard.tools import DEFAULT_TOOLS, TOOLS
from tests.bench.shared import SCENE_FOLDER

ROOT = Path(__file__).resolve().parents[3]


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    names = sorted({scene.name for scene in SCENES})
    parser.add_argument("--scenes", nargs="*", choices=names, default=names)
    parser.add_argument(
        *("--folder",), type=Path, help="photographs of one's own, instead of scenes"
    )
    parser.add_argument("--every", nargs="*", type=int, choices=(1, 3))
    parser.add_argument(
        *("--tools",), nargs="*", choices=[t.name for t in TOOLS], default=DEFAULT_TOOLS
    )
    parser.add_argument(
        "--max-size", type=int, help="longer side of the images, pixels"
    )
    parser.add_argument("--minutes", type=float, help="the most that it takes")
    parser.add_argument("--keep", action="store_true", help="what each run wrote")
    build = ROOT / "build" / "scoreboard"
    parser.add_argument("--results", type=Path)
    parser.add_argument("--scratch", type=Path, default=build)
    parser.add_argument("--table", action="store_true", help="only write the tables")
    parser.add_argument(
        *("--further",), type=Path, help="only write a page of captures beyond these"
    )
    options = parser.parse_args()
    name = "own.jsonl" if options.folder else "results.jsonl"
    results = options.results or build / name
    if options.table and options.folder:
        parser.error("--table is of the scenes, not of a --folder")
    if options.table:
        rows = read_rows(results)
        table.write(rows, ROOT / "README.md", ROOT / "examples" / "scoreboard.md")
        return
    if options.further:
        table.write_further(read_rows(results), options.further)
        return
    how = Settings(
        results=results,
        scratch=options.scratch,
        max_size=options.max_size,
        minutes=options.minutes,
        keep=options.keep,
    )
    if options.folder:
        thinned = options.every or (1,)
        scenes = [replace(own(options.folder), every=every) for every in thinned]
    else:
        thinned = options.every or (1, 3)
        asked = [s for s in SCENES if s.name in options.scenes and s.every in thinned]
        scenes = [scene for scene in asked if scene.is_there]
        if missing := sorted({scene.name for scene in asked if not scene.is_there}):
            print(f"not in {SCENE_FOLDER}, so skipped: {', '.join(missing)}")
    tools = [tool for tool in TOOLS if tool.name in options.tools]
    print(table.long_head())
    count = 0
    for row in play(scenes, tools, how):
        count += 1
        print(table.long_line(row), flush=True)
    print(f"{count} runs more in {results}")


if __name__ == "__main__":
    main()
