"""The film recipe against plain sequential matching, on the same frames in one run.

    python -m tests.bench.film                       (or: make bench-film)
    python -m tests.bench.film --scenes film-fast --tools film colmap --minutes 20

Results are added to a file, line by line, and what is in it is not run again; then
`examples/film.md` is written from it. Needs `../shared` for what is not rendered.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from tests.bench.film_scenes import FILMS
from tests.bench.scoreboard.play import Row, Settings, play, read_rows
from tests.bench.scoreboard.tools import Tool

ROOT = Path(__file__).resolve().parents[2]
_SEQUENTIAL = ("--set", "pairs={type: sequential}", "--set", "refinement={}")
TOOLS = (
    Tool("film", "`film`", options=("--recipe", "film")),
    Tool("splat", "`splat`, sequential", options=("--recipe", "splat", *_SEQUENTIAL)),
    Tool(
        *("compact", "`compact`, sequential"),
        options=("--recipe", "compact", *_SEQUENTIAL),
    ),
    Tool("colmap", "COLMAP, sequential", is_colmap=True, one_camera=True),
)
_NOTES = """
Points of the courtyard with moving things, against its true poses (40 frames, DIS, by
hand and not by this command): of those that were followed over eight frames 7.0 % are
more than 2 pixels off their epipolar line; 0.2 % with the adjustment of poses, depths
and focal length as the frames come, which ends those that do not fit. Its poses alone,
from an unknown focal length, have AUC 89.2 / 96.4 / 97.8 on film-fast and 77.3 / 90.8 /
94.2 on all 40 frames with moving things, and tell 544 pixels in both, as is true; of
`tum-fr2-desk20` they tell 522 pixels for 521, where pairs of frames tell 585. Mapping
begins with them: on film-moving-things it comes to the same as without
(`tracks.start=false`), AUC@1 96.5 against 96.6 before refinement; on `tum-fr2-desk20`
it comes to 566 pixels and 0.51 degrees of rotation in the median, and without to a
wrong model (367 pixels, 8 degrees), in 17 CPU seconds against 76.

What is lost: time, for points are verified and mapped beside the features; a cut, or a
step so large that the flow loses its way, ends all points, and features alone go on.
"""


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    scenes = [scene.name for scene in FILMS]
    tools = [tool.name for tool in TOOLS]
    parser.add_argument("--scenes", nargs="*", choices=scenes, default=scenes)
    parser.add_argument("--tools", nargs="*", choices=tools, default=tools)
    parser.add_argument("--max-size", type=int, default=640, help="longer side, pixels")
    parser.add_argument("--minutes", type=float, help="the most that it takes")
    build = ROOT / "build" / "film"
    parser.add_argument("--results", type=Path, default=build / "results.jsonl")
    parser.add_argument("--scratch", type=Path, default=build)
    parser.add_argument("--page", type=Path, default=ROOT / "examples" / "film.md")
    options = parser.parse_args()
    how = Settings(
        results=options.results,
        scratch=options.scratch,
        max_size=options.max_size,
        minutes=options.minutes,
    )
    for row in play(
        [scene for scene in FILMS if scene.name in options.scenes],
        [tool for tool in TOOLS if tool.name in options.tools],
        how,
    ):
        print(_line(row), flush=True)
    text = page(read_rows(options.results), options.max_size)
    options.page.write_text(text, "utf-8")


def page(rows: Sequence[Row], max_size: int) -> str:
    """`examples/film.md`: the rows of the code that was played last."""
    rows = [row for row in rows if row["commit"] == rows[-1]["commit"]]
    scenes = [scene.name for scene in FILMS]
    tools = [tool.name for tool in TOOLS]
    last = {(scenes.index(row["scene"]), tools.index(row["tool"])): row for row in rows}
    cores = sorted({row["cores"] for row in rows})
    lines = [
        "# Films",
        "",
        f"`make bench-film` gives the same frames, reduced to {max_size} pixels, to the"
        " recipe `film`, to",
        "`splat` and `compact` with sequential pairs and the same refinement, and to"
        " COLMAP with its",
        "defaults, sequential matching and one camera. AUC is over the relative poses"
        " of all pairs of",
        "frames, at 1, 3 and 5 degrees; where the camera turns on one spot a part of"
        " them has no",
        "direction, and nobody reaches 100; the reference of `tum-fr2-desk20` is off in"
        " time, so its",
        "directions are off by degrees. Seconds are wall-clock seconds until the poses,"
        f" on {' and '.join(map(str, cores))}",
        "cores; CPU seconds are those of the whole program, and tell more where a"
        " machine was busy.",
        "",
        "| Film | Tool | Registered | AUC@1 / 3 / 5 | Wrong pairs | Track length | s"
        " | CPU s |",
        "|---|---|---|---|---|---|---|---|",
        *(_line(last[place]) for place in sorted(last)),
    ]
    return "\n".join(lines) + "\n" + _NOTES


def _line(row: Row) -> str:
    titles = {tool.name: tool.title for tool in TOOLS}
    auc = row["auc"]
    return " | ".join(
        [
            f"| {row['scene']}",
            titles[row["tool"]],
            f"{row['registered']} of {row['images']}",
            " / ".join(f"{auc[k]:.1f}" for k in ("1", "3", "5")) if auc else "unknown",
            "unknown" if row["wrong_pairs"] is None else str(row["wrong_pairs"]),
            f"{row['track_length']:.1f}" if row["track_length"] else "none",
            f"{row['seconds']:.0f}",
            f"{row['cpu_seconds']:.0f} |",
        ]
    )


if __name__ == "__main__":
    main()
