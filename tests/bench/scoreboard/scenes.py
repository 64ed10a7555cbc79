"""What the scoreboard is played on. A scene is one line of `SCENES`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2

from sfmprep.capture.folder import is_image, photograph_folder
from sfmprep.demo.courtyard import render_demo_scene
from sfmprep.errors import ConfigError
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

REFERENCE = "reference.json"

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
    source: Path | None = None  # the folder that it is made of, where it is not ours
    is_own: bool = False  # a folder that may change, so it is prepared and played anew

    @property
    def is_there(self) -> bool:
        """Whether what it is made of is on this machine."""
        return self.source is None or self.source.is_dir()


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
        if (source / REFERENCE).is_file():
            shutil.copy(source / REFERENCE, folder)

    source = scene_folder(name)
    return Scene(name, make, film=film, only_turns=only_turns, source=source)


def own(folder: Path) -> Scene:
    """A folder of one's own: photographs below it, or below its `images`.

    Raises:
        ConfigError: there are no photographs.
    """
    folder = folder.resolve()
    root = photograph_folder(folder)[0]
    if (folder / "images").is_dir() and (folder / REFERENCE).is_file():
        root = folder / "images"
    truth = next((p / REFERENCE for p in (root, root.parent) if _has_truth(p)), None)
    if not any(is_image(path.name) for path in root.rglob("*")):
        raise ConfigError(f"there are no photographs below {root}")

    def make(target: Path) -> None:
        shutil.copytree(root, target / "images", ignore=_all_but_images)
        if truth is not None:
            shutil.copy(truth, target)

    name = folder.parent.name if folder.name in ("images", "input") else folder.name
    return Scene(name, make, source=folder, is_own=True)


def _has_truth(folder: Path) -> bool:
    return (folder / REFERENCE).is_file()


def _all_but_images(folder: str, names: list[str]) -> list[str]:
    return [n for n in names if (Path(folder) / n).is_file() and not is_image(n)]


def rendered(name: str, make: Maker, *, film: bool = False) -> Scene:
    """A scene that our own code renders, whose poses are therefore exact."""
    return Scene(name, make, film=film)


def worse(name: str, how: str, change: Change) -> Scene:
    """A shared scene in worse light, or shaken: see `worse.py`."""

    def make(folder: Path) -> None:
        shared(name).make(folder)
        make_worse(folder / "images", change)

    return Scene(f"{name}-{how}", make, source=scene_folder(name))


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

    Raises:
        ConfigError: its reference knows none of the images.
    """
    place = (folder / "own" if scene.is_own else folder) / scene.name
    whole, thin = place / "whole", place / f"{max_size or 'full'}-every-{scene.every}"
    if scene.is_own:
        shutil.rmtree(whole, ignore_errors=True)
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
    if (whole / REFERENCE).is_file():
        content = json.loads((whole / REFERENCE).read_text("utf-8"))
        known = {n: e for n, e in content["images"].items() if n in set(names)}
        if not known:
            raise ConfigError(
                f"the {REFERENCE} of {scene.name} knows none of the photographs, such"
                f" as {names[0]}: expected their paths relative to their folder"
            )
        reference = {name: _reduced(entry, max_size) for name, entry in known.items()}
        (thin / REFERENCE).write_text(json.dumps({"images": reference}), "utf-8")
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
    """An entry of reference.json with `K`, if it has one, for the reduced image."""
    if max_size is None or "K" not in entry:
        return entry
    width, height = entry["width"], entry["height"]
    scale = min(1.0, max_size / max(width, height))
    size = round(width * scale), round(height * scale)
    factors = size[0] / width, size[1] / height, 1.0
    matrix = [
        [factor * value for value in row]
        for factor, row in zip(factors, entry["K"], strict=True)
    ]
    return {**entry, "K": matrix, "width": size[0], "height": size[1]}
