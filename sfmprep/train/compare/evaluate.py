"""One table that compares features: photographs, verification and mapper are the same.

    out/
        table.json table.md            the table that was asked for last
        cells/ROW[/SCENE]/COLUMN.json  figures, with all that they depend on
        stores/SCENE/                  features, matches and the pairs of two-view rows

A cell that is there with the same settings, data and weights is not measured again, so
a run that was stopped goes on, and rows and columns can be added one by one.
"""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import Any

from sfmprep.errors import ConfigError
from sfmprep.files import write_text
from sfmprep.progress import Progress, silent
from sfmprep.train.compare.columns import COLUMNS, Column, build_column
from sfmprep.train.compare.homographies import (
    NUM_KEYPOINTS,
    homography_settings,
    measure_homographies,
)
from sfmprep.train.compare.pairs import measure_two_views, two_view_settings
from sfmprep.train.compare.scenes import (
    THINNED_STEP,
    Scene,
    read_scene,
    reconstruct_scene,
    scene_settings,
)
from sfmprep.train.compare.speed import measure_speed, speed_settings
from sfmprep.train.compare.table import Table
from sfmprep.train.pairs.photographs import Photographs

__all__ = ["COLUMNS", "ROWS", "SCENES", "Table", "evaluate"]

logger = logging.getLogger(__name__)

ROWS = ("homographies", "two-view", "scenes", "thinned", "seconds")
SCENES = ("fountain-P11", "Herz-Jesus-P8", "fox", "beer-video71")

_PER_SCENE = ("two-view", "scenes", "thinned")
_TIMED_SCENE = "fountain-P11"

Measure = Callable[[Column], dict[str, Any]]


@dataclass(frozen=True, kw_only=True, eq=False)
class _Row:
    """How the cells of one row are measured."""

    name: str
    settings: dict[str, Any]
    measure: Measure
    columns: dict[str, Column]


def evaluate(
    *,
    scenes: Path,
    photographs: Path,
    out: Path,
    columns: Sequence[str] = tuple(COLUMNS),
    rows: Sequence[str] = ROWS,
    max_keypoints: int = 2048,
    progress: Progress = silent,
) -> Table:
    """Measures cells of the table that are missing and returns what was asked for.

    Args:
        scenes: A folder of posed scenes; see `read_scene`.
        photographs: The training photographs, of which those held out are used.
        out: Where figures and stores are kept; made if it does not exist.
        columns: Names of `COLUMNS`, in the order of the table.
        rows: Names of `ROWS`; those of scenes stand for all of `SCENES`, and
            `two-view/NAME`, `scenes/NAME` and `thinned/NAME` for one folder of
            `scenes`; `seconds/NAME` times the photographs of another scene than
            fountain-P11.
        max_keypoints: The most keypoints of one image; homographies have their own.
        progress: Wraps the loops of the cells.

    Raises:
        ConfigError: there is no such row, column or scene, or none was asked for.
        ImageError: a scene or the photographs cannot be read.
        WeightsError: the weights of a column are not here.
        StoreError: `out` is in use by another process, or cannot be written. Of these
            only this one can come after something was measured, which is kept.
    """
    if not columns or not rows:
        raise ConfigError(
            "no row or no column was asked for; expected some of"
            f" {', '.join(ROWS)} and of {', '.join(COLUMNS)}"
        )
    names = list(dict.fromkeys(name for row in rows for name in _expand(row)))
    built = {c: build_column(c, max_keypoints=max_keypoints) for c in columns}
    stores = out / "stores"
    stores.mkdir(parents=True, exist_ok=True)
    # all of them first, so that a wrong name is found before hours of work
    prepared = list(
        _rows(names, built, scenes, photographs, stores, max_keypoints, progress)
    )
    cells = {
        row.name: {
            column.name: _cell(row, column, out / "cells" / row.name)
            for column in row.columns.values()
        }
        for row in prepared
    }
    table = Table(
        columns=tuple(built),
        cells=cells,
        max_keypoints=max_keypoints,
        weights_sha256={name: _weights(column) for name, column in built.items()},
    )
    write_text(out / "table.json", table.to_json())
    write_text(out / "table.md", table.to_markdown())
    return table


def _expand(row: str) -> Iterator[str]:
    """The rows of single scenes that a name stands for.

    Raises:
        ConfigError: there is no such row.
    """
    kind, _, scene = row.partition("/")
    if kind not in ROWS or (scene and kind == "homographies"):
        raise ConfigError(
            f"there is no row {row!r}; expected some of {', '.join(ROWS)}, where"
            f" {', '.join(_PER_SCENE)} may be followed by a slash and a scene"
        )
    if scene or kind == "homographies":
        yield row
    elif kind == "seconds":
        yield f"{kind}/{_TIMED_SCENE}"
    else:
        yield from (f"{kind}/{name}" for name in SCENES)


def _rows(
    names: Sequence[str],
    columns: dict[str, Column],
    scenes: Path,
    photographs: Path,
    stores: Path,
    max_keypoints: int,
    progress: Progress,
) -> Iterator[_Row]:
    """Reads the data of the rows; nothing is measured yet."""
    sift = columns.get("sift") or build_column("sift", max_keypoints=max_keypoints)
    read = cache(lambda name: read_scene(scenes / name))
    for row in names:
        kind, _, name = row.partition("/")
        if kind == "homographies":
            yield _homography_row(row, columns, photographs, progress)
            continue
        scene: Scene = read(name)
        settings: dict[str, Any]
        measure: Measure
        if kind == "two-view":
            settings = two_view_settings(scene) | {"sift": sift.provenance}
            measure = partial(
                measure_two_views, scene, sift=sift, folder=stores, progress=progress
            )
        elif kind == "seconds":
            settings = speed_settings(scene) | {"sift": sift.provenance}
            measure = partial(measure_speed, scene, sift=sift, progress=progress)
        else:
            step = THINNED_STEP if kind == "thinned" else 1
            settings = scene_settings(scene) | {"step": step}
            measure = partial(
                reconstruct_scene, scene, folder=stores, step=step, progress=progress
            )
        yield _Row(name=row, settings=settings, measure=measure, columns=columns)


def _homography_row(
    row: str, columns: dict[str, Column], folder: Path, progress: Progress
) -> _Row:
    photographs = Photographs(folder, held_out=True)
    digest = hashlib.sha256()
    for pixels in photographs:
        digest.update(pixels.tobytes())
    return _Row(
        name=row,
        settings=homography_settings()
        | {"names": photographs.names, "pixels_sha256": digest.hexdigest()},
        measure=partial(
            measure_homographies, photographs.names, photographs, progress=progress
        ),
        columns={
            name: build_column(name, max_keypoints=NUM_KEYPOINTS, with_ratio_test=False)
            for name in columns
        },
    )


def _cell(row: _Row, column: Column, folder: Path) -> dict[str, Any]:
    """The figures of one cell, measured unless they are there."""
    path = folder / f"{column.name}.json"
    depends = json.loads(json.dumps({"row": row.settings, "column": column.provenance}))
    if path.is_file():
        earlier = json.loads(path.read_text("utf-8"))
        if earlier["depends"] == depends:
            return dict(earlier["figures"])
    start = time.monotonic()
    figures = json.loads(json.dumps(row.measure(column)))
    seconds = round(time.monotonic() - start, 1)
    logger.info("%s, %s: measured in %.0f s", row.name, column.name, seconds)
    folder.mkdir(parents=True, exist_ok=True)
    cell = {"figures": figures, "measured_in_s": seconds, "depends": depends}
    write_text(path, json.dumps(cell, indent=1))
    return dict(figures)


def _weights(column: Column) -> tuple[str, ...]:
    found = (
        model.identity["weights_sha256"] for model in (column.extractor, column.matcher)
    )
    return tuple(str(sha256) for sha256 in found if sha256)
