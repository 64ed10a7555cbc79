"""The frames that are taken of films, against every nth of equal number, in one run.

    python -m tests.bench.keyframes                     (or: make bench-keyframes)
    python -m tests.bench.keyframes --films shaking cuts --minutes 20

Results are added to a file, line by line, and what is in it is not run again; then
`examples/keyframes.md` is written from it. Shared films need `../shared`.
"""

from __future__ import annotations

import argparse
import json
import shutil
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import cv2
import numpy as np

from sfmprep.capture.film import read_frames
from sfmprep.capture.frames import frame_name, take_frames
from sfmprep.capture.keyframes import Chooser, choose, find_blurred
from sfmprep.config import FilmConfig
from tests.bench.film_scenes import flow_of_films
from tests.bench.keyframe_films import FILMS, Film, Made, make, write_reference
from tests.bench.scoreboard.play import Row, Settings, play, read_rows
from tests.bench.scoreboard.scenes import Scene
from tests.bench.scoreboard.tools import TOOLS as SCOREBOARD_TOOLS
from tests.bench.scoreboard.tools import Tool

ROOT = Path(__file__).resolve().parents[2]
_QUALITY = 97
_NTH = "every nth"
TOOLS = (
    *(tool for tool in SCOREBOARD_TOOLS if not tool.is_colmap),
    Tool("colmap", "COLMAP, sequential", is_colmap=True, one_camera=True),
)


@dataclass(frozen=True)
class Blur:
    """How many frames of one film are blurred."""

    film: str
    frames: int  # of the film
    blurred: int
    taken: int
    taken_blurred: int
    nth_blurred: float  # of as many at equal steps, the mean over where they begin
    is_known: bool  # by how the film was made; else by `find_blurred`


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    films, tools = [f.name for f in FILMS], [tool.name for tool in TOOLS]
    parser.add_argument("--films", nargs="*", choices=films, default=films)
    parser.add_argument("--tools", nargs="*", choices=tools, default=tools)
    parser.add_argument("--max-size", type=int, help="longer side, of reduced images")
    parser.add_argument("--minutes", type=float, help="the most that it takes")
    build = ROOT / "build" / "keyframes"
    parser.add_argument("--results", type=Path, default=build / "results.jsonl")
    parser.add_argument("--scratch", type=Path, default=build)
    parser.add_argument("--page", type=Path, default=ROOT / "examples" / "keyframes.md")
    options = parser.parse_args()
    how = Settings(
        results=options.results,
        scratch=options.scratch,
        max_size=options.max_size,
        minutes=options.minutes,
    )
    scenes = []
    for film in [film for film in FILMS if film.name in options.films]:
        made = make(film, options.scratch / "films")
        scenes += _scenes(film, made, options.scratch / "scenes")
    for row in play(
        scenes, [tool for tool in TOOLS if tool.name in options.tools], how
    ):
        print(_line(row), flush=True)
    blurs = [
        Blur(**json.loads(path.read_text("utf-8")))
        for film in FILMS
        if (path := _blur_file(film, options.scratch / "scenes")).is_file()
    ]
    options.page.write_text(page(read_rows(options.results), blurs), "utf-8")


def _scenes(film: Film, made: Made, folder: Path) -> list[Scene]:
    """The frames that are taken, and as many at equal steps."""
    frames = folder / film.name / "frames"
    if not frames.is_dir():
        part = folder / film.name / "unfinished"
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        _take(film, made, part, _blur_file(film, folder))
        part.rename(frames)

    def copied(which: str, target: Path) -> None:
        shutil.copytree(frames / which, target, dirs_exist_ok=True)

    return [
        Scene(f"{film.name}, {which}", lambda target, w=which: copied(w, target), True)
        for which in ("taken", _NTH)
    ]


def _blur_file(film: Film, folder: Path) -> Path:
    return folder / film.name / "blur.json"


def _take(film: Film, made: Made, folder: Path, blur_file: Path) -> None:
    """Writes both choices as scenes, and how blurred they are."""
    taken = take_frames(
        *(made.path, film.name, folder / "taken", "images"),
        flow=flow_of_films(),
        max_overlap=FilmConfig().max_overlap,
        most=None,
    )
    chooser = Chooser(FilmConfig().max_overlap, flow_of_films())
    for _ in choose(read_frames(made.path), chooser):
        pass
    numbers = {frame_name(look.seconds): look.number for look in chooser.looks}
    names = {Path(name).name: numbers[Path(name).name] for name in taken.frames}
    write_reference(made, names, folder / "taken")
    places = np.linspace(0, taken.num_frames - 1, len(names)).round().astype(int)
    (folder / _NTH / "images").mkdir(parents=True)
    regular = dict[str, int]()
    wanted = set(places.tolist())
    for frame in read_frames(made.path):
        if frame.number in wanted:
            name = frame_name(frame.seconds)
            path = str(folder / _NTH / "images" / name)
            cv2.imwrite(path, frame.pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
            regular[name] = frame.number
    write_reference(made, regular, folder / _NTH)
    told = (
        dict(enumerate(made.is_blurred))
        if made.is_blurred
        else {
            look.number: yes
            for look, yes in zip(
                chooser.looks, find_blurred(chooser.looks), strict=True
            )
        }
    )
    blur = Blur(
        film=film.name,
        frames=taken.num_frames,
        blurred=sum(told.values()),
        taken=len(names),
        taken_blurred=sum(told[number] for number in names.values()),
        nth_blurred=round(sum(told.values()) / len(told) * len(names), 1),
        is_known=made.is_blurred is not None,
    )
    blur_file.write_text(json.dumps(asdict(blur)), "utf-8")


def page(rows: Sequence[Row], blurs: Sequence[Blur]) -> str:
    """`examples/keyframes.md`: one table of blur, one of what became of the frames."""
    cores = sorted({row["cores"] for row in rows})
    lines = [
        "# Frames of films",
        "",
        "`make bench-keyframes` takes frames of films as `sfmprep reconstruct FILM`"
        " does, and as many",
        "at equal steps, as nerfstudio's `ns-process-data video` does. Both go to"
        " `sfmprep reconstruct`,",
        "with the weights of ALIKED and without downloads, and to COLMAP with its"
        " defaults, sequential",
        "matching and one camera.",
        "",
        "| Film | What it shows |",
        "|---|---|",
        *(f"| {film.name} | {film.what} |" for film in FILMS),
        "",
        "Blurred is, in films made here, a frame that was blurred by a line of 3"
        " pixels or more; in the",
        "others, by their own measure, one with less than 0.6 of the sharpness that is"
        " usual around it.",
        "Of frames at equal steps it is the mean over where they begin.",
        "",
        "| Film | Frames | blurred | Taken | of these blurred | of as many at equal"
        " steps | |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {b.film} | {b.frames} | {b.blurred} | {b.taken} | {b.taken_blurred}"
            f" | {b.nth_blurred} | {'known' if b.is_known else 'estimated'} |"
            for b in blurs
        ),
        "",
    ]
    if rows:
        lines += [
            "AUC is over the relative poses of all pairs of frames, at 1, 3 and 5"
            " degrees; poses of the",
            "shared films are unknown. Seconds are those of the CPU, for the whole"
            f" command, on {' and '.join(map(str, cores))} cores.",
            "",
            "| Film, frames | Tool | Registered | AUC@1 / 3 / 5 | Wrong pairs |"
            " Error, px | CPU s |",
            "|---|---|---|---|---|---|---|",
            *(_line(row) for row in rows),
        ]
    return "\n".join(lines) + "\n"


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
            f"{row['error_px']:.2f}" if row["error_px"] else "none",
            f"{row['cpu_seconds']:.0f} |",
        ]
    )


if __name__ == "__main__":
    main()
