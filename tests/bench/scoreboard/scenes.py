"""What the scoreboard is played on. A scene is one line of `SCENES`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2

from sfmprep.demo.courtyard import render_demo_scene
from tests.bench.scoreboard.rendered import (
    courtyard_ordinary_lens,
    courtyard_wide_lens,
    courtyard_with_passers_by,
    fourfold_house,
    twin_fronts,
)
from tests.bench.scoreboard.worse import (
    Change,
    make_worse,
    night,
    shaken,
    two_lights,
)
from tests.bench.shared import scene_folder

Maker = Callable[[Path], object]
"""Writes `images/` and, where poses are known, `reference.json` into a folder."""


@dataclass(frozen=True)
class Scene:
    """A capture, and what is known of it."""

    name: str
    make: Maker
    film: bool = False  # frames in order, so that COLMAP matches them in sequence
    every: int = 1  # every so many-th image counts
    only_turns: bool = False  # no depth can be had: a model of it is wrong


@dataclass(frozen=True)
class Prepared:
    """A scene as all tools get it."""

    scene: Scene
    images: Path
    names: tuple[str, ...]
    reference: dict[str, Any] | None  # the entries of reference.json, by image name


# ----------------------------------------------------------------- where they come from
def shared(name: str, *, film: bool = False, only_turns: bool = False) -> Scene:
    """A scene of `../shared/data/scenes`; of a film without frames, each frame."""

    def make(folder: Path) -> None:
        source = scene_folder(name)
        if (source / "images").is_dir():
            shutil.copytree(source / "images", folder / "images")
        else:
            write_frames(source / "video.mp4", folder / "images")
        if (source / "reference.json").is_file():
            shutil.copy(source / "reference.json", folder)

    return Scene(name, make, film=film, only_turns=only_turns)


def rendered(name: str, make: Maker, *, film: bool = False) -> Scene:
    """A scene that our own code renders, whose poses are therefore exact."""
    return Scene(name, make, film=film)


def worse(name: str, how: str, change: Change) -> Scene:
    """A shared scene in worse light, or shaken: see `worse.py`."""

    def make(folder: Path) -> None:
        shared(name).make(folder)
        make_worse(folder / "images", change)

    return Scene(f"{name}-{how}", make)


def write_frames(video: Path, folder: Path) -> None:
    """All frames of a film, as JPEG of quality 95."""
    folder.mkdir(parents=True)
    frames, number = cv2.VideoCapture(str(video)), 0
    while (read := frames.read())[0]:
        path = folder / f"{number:05d}.jpg"
        cv2.imwrite(str(path), read[1], [cv2.IMWRITE_JPEG_QUALITY, 95])
        number += 1
    if not number:
        raise OSError(f"{video} has no frame that can be decoded")


WHOLE = (
    shared("Herz-Jesus-P8"),
    shared("fountain-P11"),
    shared("rotation-kayak7", only_turns=True),
    shared("tum-fr2-desk20"),
    shared("chair21"),
    *(
        worse(name, how, change)
        for name in ("Herz-Jesus-P8", "fountain-P11")
        for how, change in (
            ("night", night),
            ("two-lights", two_lights),
            ("shaken", shaken),
        )
    ),
    rendered("courtyard", render_demo_scene),
    rendered("courtyard-lens", courtyard_ordinary_lens),
    rendered("courtyard-wide-lens", courtyard_wide_lens),
    rendered("courtyard-passers-by", courtyard_with_passers_by),
    rendered("house-twin-fronts", twin_fronts),
    rendered("house-fourfold", fourfold_house),
    shared("fox"),
    shared("buddha67"),
    shared("beer-video71", film=True),
    shared("film-stone-sign", film=True),
)
SCENES = (*WHOLE, *(replace(scene, every=3) for scene in WHOLE))


# ---------------------------------------------------------------------------- preparing
def prepare(scene: Scene, folder: Path, max_size: int | None) -> Prepared:
    """Writes the images that count, reduced if asked, once; and reads the truth.

    Args:
        scene: Which.
        folder: Of all prepared scenes.
        max_size: Longer side that larger images are reduced to; None for none.
    """
    whole, size = folder / scene.name / "whole", max_size or "full"
    thin = folder / scene.name / f"{size}-every-{scene.every}"
    if not whole.is_dir():
        unfinished = whole.with_name("unfinished")
        shutil.rmtree(unfinished, ignore_errors=True)
        unfinished.mkdir(parents=True)
        scene.make(unfinished)
        unfinished.rename(whole)
    paths = sorted((whole / "images").rglob("*.*"))[:: scene.every]
    names = [path.relative_to(whole / "images").as_posix() for path in paths]
    shutil.rmtree(thin, ignore_errors=True)
    for path, name in zip(paths, names, strict=True):
        (thin / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        _copy(path, thin / "images" / name, max_size)
    reference = None
    if (whole / "reference.json").is_file():
        content = json.loads((whole / "reference.json").read_text("utf-8"))
        known = {n: e for n, e in content["images"].items() if n in set(names)}
        reference = {name: _reduced(entry, max_size) for name, entry in known.items()}
        (thin / "reference.json").write_text(json.dumps({"images": reference}), "utf-8")
    return Prepared(scene, thin / "images", tuple(names), reference)


def _copy(source: Path, target: Path, max_size: int | None) -> None:
    """The file as it is, or, reduced, as JPEG of quality 95 under the same name."""
    pixels = cv2.imread(str(source), cv2.IMREAD_UNCHANGED) if max_size else None
    if pixels is None or max_size is None or max(pixels.shape[:2]) <= max_size:
        shutil.copy(source, target)
        return
    height, width = pixels.shape[:2]
    scale = max_size / max(width, height)
    size = round(width * scale), round(height * scale)
    reduced = cv2.resize(pixels, size, interpolation=cv2.INTER_AREA)
    cv2.imwrite(str(target), reduced, [cv2.IMWRITE_JPEG_QUALITY, 95])


def _reduced(entry: dict[str, Any], max_size: int | None) -> dict[str, Any]:
    """An entry of reference.json with `K` for the reduced image."""
    width, height = entry["width"], entry["height"]
    scale = min(1.0, (max_size or max(width, height)) / max(width, height))
    size = round(width * scale), round(height * scale)
    factors = size[0] / width, size[1] / height, 1.0
    matrix = [
        [factor * value for value in row]
        for factor, row in zip(factors, entry["K"], strict=True)
    ]
    return {**entry, "K": matrix, "width": size[0], "height": size[1]}
