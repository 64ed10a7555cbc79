"""COLMAP with its defaults, through pycolmap: SIFT, all pairs or a sequence, mapper.

    python -m tests.bench.scoreboard.colmap_sift IMAGES OUT [--sequential]
        [--one-camera]

`OUT/database.db`, `OUT/models/N` and `OUT/seconds.json` are what it leaves.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pycolmap


def reconstruct(
    images: Path, out: Path, *, sequential: bool, one_camera: bool
) -> dict[str, float]:
    """Photographs to models; returns the seconds of each step."""
    seconds: dict[str, float] = {}

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        start = time.monotonic()
        yield
        seconds[step] = round(time.monotonic() - start, 2)

    database, models = out / "database.db", out / "models"
    models.mkdir(parents=True)
    mode = pycolmap.CameraMode.SINGLE if one_camera else pycolmap.CameraMode.AUTO
    with timed("extract"):
        pycolmap.extract_features(database, images, camera_mode=mode)
    with timed("match"):
        (pycolmap.match_sequential if sequential else pycolmap.match_exhaustive)(
            database
        )
    with timed("map"):
        pycolmap.incremental_mapping(database, images, models)
    return seconds


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("images", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--sequential", action="store_true")
    parser.add_argument("--one-camera", action="store_true")
    options = parser.parse_args()
    pycolmap.logging.minloglevel = 2
    seconds = reconstruct(
        options.images,
        options.out,
        sequential=options.sequential,
        one_camera=options.one_camera,
    )
    (options.out / "seconds.json").write_text(json.dumps(seconds), "utf-8")


if __name__ == "__main__":
    main()
