"""Films of 4K as long as one likes: the time and the memory that taking frames needs.

    python -m tests.bench.long_film --minutes 1 10      (or: make bench-long-film)

Ten seconds are painted and encoded once; longer films name the same frames again and
again, so a decoder does all its work for each. Each line is measured in a process of
its own: decoding alone, then decoding, choosing and writing. The codec (MPEG-4 Part 2,
which OpenCV can write) is among the cheapest to decode, so the ratio is a hard one.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sfmprep.capture.film import read_frames
from sfmprep.capture.frames import take_frames
from sfmprep.config import FilmConfig
from sfmprep.types import Bytes
from tests.bench.film_scenes import flow_of_films
from tests.support.films import repeat_film, texture, write_film

ROOT = Path(__file__).resolve().parents[2]
_SIZE = (3840, 2160)
_SECONDS, _RATE = 10, 30


class _Pan(Sequence[Bytes]):
    """A camera that turns around a loop over a painted wall, so that it can go on.

    Args:
        way_px: How far to each side, up to 550: with that a step takes some 8 frames.
    """

    def __init__(self, way_px: int) -> None:
        self._way_px = way_px
        painted = texture(1700, 1300)
        self._wall = cv2.resize(painted, None, fx=3, fy=3)

    def __len__(self) -> int:
        return _SECONDS * _RATE

    def __getitem__(self, number: Any) -> Any:
        if number >= len(self):
            raise IndexError(number)
        way = 2 * np.pi * number / len(self)
        x, y = 600 + self._way_px * np.array([np.sin(way), np.sin(2 * way)])
        width, height = _SIZE
        return np.ascontiguousarray(
            self._wall[int(y) : int(y) + height, int(x) : int(x) + width]
        )

    def __iter__(self) -> Iterator[Any]:
        return (self[number] for number in range(len(self)))


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--minutes", nargs="*", type=float, default=[1.0, 10.0])
    parser.add_argument("--ways", nargs="*", type=int, default=[550, 180])
    scratch = ROOT / "build" / "long-film"
    parser.add_argument("--scratch", type=Path, default=scratch)
    parser.add_argument("--page", type=Path, default=ROOT / "examples" / "long_film.md")
    parser.add_argument("--one", choices=("decode", "take"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    film = options.scratch / "film.mp4"
    if options.one:
        print(json.dumps(_measure(film, options.one == "take")))
        return
    lines = []
    for way, minutes in itertools.product(options.ways, options.minutes):
        first = options.scratch / f"first-{way}.mp4"
        if not first.is_file():
            part = options.scratch / "part.mp4"
            write_film(part, _Pan(way), rate=_RATE).rename(first)
        shutil.copyfile(first, film)
        repeat_film(film, max(round(60 * minutes / _SECONDS), 1))
        rows = []
        for what in ("decode", "take"):
            command = [sys.executable, "-m", "tests.bench.long_film", "--one", what]
            command += ["--scratch", str(options.scratch)]
            found = subprocess.run(command, check=True, capture_output=True, text=True)
            rows.append(json.loads(found.stdout))
        lines.append(_line(way, minutes, *rows))
        print(lines[-1], flush=True)
    options.page.write_text(_page(lines), "utf-8")


def _measure(film: Path, takes: bool) -> dict[str, float]:
    """One of both, in this process."""
    folder = film.parent / "taken"
    begin, begin_cpu, kept = time.monotonic(), time.process_time(), 0
    if takes:
        taken = take_frames(
            *(film, film.name, folder, "images"),
            flow=flow_of_films(),
            max_overlap=FilmConfig().max_overlap,
            most=FilmConfig().frames,
        )
        count, kept = taken.num_frames, len(taken.frames)
    else:
        count = sum(1 for _ in read_frames(film))
    seconds, cpu = time.monotonic() - begin, time.process_time() - begin_cpu
    shutil.rmtree(folder, ignore_errors=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    found = {"seconds": seconds, "cpu": cpu, "frames": count}
    return {**found, "kept": kept, "peak_mib": peak}


def _line(
    way: int, minutes: float, decode: dict[str, float], take: dict[str, float]
) -> str:
    return " | ".join(
        [
            f"| {100 * way / _SIZE[0]:.0f} %",
            f"{minutes:g}",
            f"{decode['frames']:,.0f}",
            f"{take['kept']:.0f}",
            f"{decode['seconds']:.0f} ({decode['cpu']:.0f})",
            f"{take['seconds']:.0f} ({take['cpu']:.0f})",
            f"{take['seconds'] / decode['seconds']:.2f}"
            f" ({take['cpu'] / decode['cpu']:.2f})",
            f"{decode['peak_mib']:.0f} | {take['peak_mib']:.0f} |",
        ]
    )


def _page(lines: Sequence[str]) -> str:
    return "\n".join(
        [
            "# Long films",
            "",
            "`make bench-long-film`: films of 3840 x 2160 at 30 frames a second, in"
            " MPEG-4 Part 2. Decoding",
            "alone, and all that `sfmprep reconstruct` does to have the frames as"
            " photographs. Seconds by",
            "the clock, in brackets those of the CPU; peak memory of the process in"
            " MiB. The camera turns",
            "around a loop in ten seconds, so far to each side, in shares of the"
            " picture.",
            "",
            "| Way | Minutes | Frames | Taken | Decoding, s | Taking frames, s | Ratio"
            " | Peak, decoding | Peak, taking |",
            "|---|---|---|---|---|---|---|---|---|",
            *lines,
            "",
        ]
    )


if __name__ == "__main__":
    main()
