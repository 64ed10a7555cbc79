"""The contestants: how each is called, and where its result lies."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from tests.bench.scoreboard.scenes import Scene
from tests.bench.shared import SHARED

_LARGE = 150  # images from which COLMAP is given a sequence, not all pairs


@dataclass(frozen=True)
class Result:
    """Where a contestant put what it found."""

    database: Path
    models: Path  # a folder of COLMAP models, numbered
    seconds: dict[str, float]  # of its steps; empty where it failed before the end
    what: str  # features and matching
    doubts: dict[str, int] | None = None  # how often what was flagged; None: not asked


@dataclass(frozen=True)
class Tool:
    """A contestant."""

    name: str
    title: str
    is_colmap: bool = False
    one_camera: bool = False
    has_weights: bool = True
    options: tuple[str, ...] = ()  # of `sfmprep reconstruct`

    def command(self, scene: Scene, images: Path, out: Path) -> list[str | Path]:
        """The program to run."""
        if not self.is_colmap:
            ours = [sys.executable, "-m", "sfmprep", "reconstruct", images, out]
            return [*ours, *self.options]
        program = [sys.executable, "-m", "tests.bench.scoreboard.colmap_sift"]
        options = {
            "--sequential": _is_sequence(scene, images),
            "--one-camera": self.one_camera,
        }
        return [*program, images, out, *(name for name, on in options.items() if on)]

    def environment(self, scratch: Path) -> dict[str, str]:
        """Those of the caller; without weights, a place where none are."""
        found = {**os.environ, "SFMPREP_OFFLINE": "1"}
        if not self.has_weights:
            found.pop("SFMPREP_WEIGHTS", None)
            return {**found, "XDG_CACHE_HOME": str(scratch / "no-cache")}
        if (SHARED / "weights").is_dir():
            found.setdefault("SFMPREP_WEIGHTS", str(SHARED / "weights"))
        return found

    def result(self, scene: Scene, images: Path, out: Path) -> Result:
        """What lies in `out`, also after a failure."""
        if self.is_colmap:
            order = "sequential" if _is_sequence(scene, images) else "exhaustive"
            seconds = _read(out / "seconds.json")
            return Result(
                out / "database.db", out / "models", seconds, f"SIFT, {order}"
            )
        # what comes after poses is not what COLMAP does
        report, work = _read(out / "report.json"), out / "work"
        seconds = {
            step: value
            for step, value in report.get("seconds", {}).items()
            if step != "export"
        }
        return Result(
            *(work / "database.db", work / "models", seconds, _front_end(out)),
            doubts_of(report),
        )


TOOLS = (
    Tool("colmap", "COLMAP SIFT", is_colmap=True),
    Tool("colmap-one-camera", "COLMAP SIFT, one camera", True, one_camera=True),
    Tool("sfmprep", "sfmprep"),
    Tool("sfmprep-packaged", "sfmprep without downloads", has_weights=False),
)
DEFAULT_TOOLS = ("colmap", "colmap-one-camera", "sfmprep", "sfmprep-packaged")


def doubts_of(report: Mapping[str, Any]) -> dict[str, int] | None:
    """What report.json doubts, by what a reader calls it; None without a model.

    Pairs cut are those that were left out of the mapping as look-alikes; pairs
    overlaid, broken and contradicted remain and are warned of; photographs left out
    have a pose and are not in the dataset. What there is none of is not listed.
    """
    verdict, result = report.get("consistency"), report.get("result")
    if verdict is None or result is None:
        return None
    named = {
        "pairs cut": verdict["num_left_out"],
        "pairs overlaid": verdict["num_overlaid"],
        "pairs broken": len(verdict["broken"]),
        "pairs contradicted": verdict["num_contradicted"],
        "photographs left out": result["num_registered"] - result["num_dataset"],
    }
    return {what: number for what, number in named.items() if number}


def _is_sequence(scene: Scene, images: Path) -> bool:
    return scene.film or sum(p.is_file() for p in images.rglob("*")) > _LARGE


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8")) if path.is_file() else {}


def _front_end(out: Path) -> str:
    """Features and matcher as the resolved recipe says."""
    path = out / "recipe.yaml"
    if not path.is_file():
        return ""
    recipe = yaml.safe_load(path.read_text("utf-8"))
    rungs = {"beside": "features", "stronger": "matcher", "dense": "matcher"}
    later = [recipe[rung][what] for rung, what in rungs.items() if recipe.get(rung)]
    parts = [recipe["features"], recipe["matcher"], *later]
    return " + ".join(part.get("model", part["type"]) for part in parts)
