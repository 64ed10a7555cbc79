"""Putting a finished dataset in the place of an earlier one, safely.

Datasets are built in `.partial-export` and then moved into place. While that goes on
dataset.json names no image; transforms.json and sparse/ are taken away first and come
back last. So a killed export never looks like a dataset, and the next one cleans up
after it.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import get_args

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import Target
from sfmprep.errors import ConfigError, StoreError
from sfmprep.export.listing import (
    GENERATOR,
    LISTING,
    is_begun,
    is_export,
    write_json,
)
from sfmprep.export.place import GEOREFERENCE
from sfmprep.export.targets import FOLDERS_BELOW
from sfmprep.export.tracks import TRACKS

WORLD = "world_from_sfm.json"
_REDUCED = ("_2", "_4", "_8")
_FORMER = ("names.json",)  # of earlier versions; only taken away
INIT = "init.ply"
SUBMODELS = "submodels"
_ENTRIES = (
    *("transforms.json", "sparse", INIT, "images", *(f"images{r}" for r in _REDUCED)),
    *("masks", *(f"masks{r}" for r in _REDUCED), "colmap_masks"),
    *(WORLD, GEOREFERENCE, TRACKS),
)
_FOLDERS = ("", *(f"{FOLDERS_BELOW}/{target}" for target in get_args(Target)))
# gsplat fills these from images/ and never renews them: stale once images/ changes.
_CACHES = tuple(f"images{r}_png" for r in _REDUCED)


def expect_replaceable(out: Path, folders: Iterable[str], images: ImageSet) -> None:
    """Raises ConfigError unless all that would be replaced came from an export.

    Args:
        out: The output folder.
        folders: Those of the datasets, relative to it.
        images: Which, with their masks, must not be replaced.
    """
    sources = [images.root, *([images.mask_root] if images.mask_root else [])]
    for folder in (out / name for name in folders):
        found = [n for n in (LISTING, *_ENTRIES) if (folder / n).exists()]
        if found and not is_export(folder):
            raise ConfigError(
                f"{folder} has {', '.join(found)} that sfmprep did not write and would "
                "replace; choose another folder for the dataset"
            )
        entries = [(folder / name).resolve() for name in (*_ENTRIES, *_CACHES)]
        for source in sources:
            root = source.resolve()
            if any(entry == root or entry in root.parents for entry in entries):
                raise ConfigError(
                    f"{source} is used for the export to {folder}, which would replace "
                    "it; choose another folder for the dataset"
                )


@contextmanager
def partial_export(out: Path) -> Iterator[Path]:
    """An empty folder in `out` to build in; it is gone afterwards.

    Raises:
        StoreError: `out` cannot be written, now or by what is done meanwhile.
    """
    partial = out / ".partial-export"
    try:
        if partial.exists():
            shutil.rmtree(partial)
        partial.mkdir(parents=True)
        try:
            yield partial
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise StoreError(
            f"{out}: the dataset cannot be written ({error}); free some disk space or "
            "choose a folder that can be written, and run the export again"
        ) from error


def install(built: Path, out: Path, folders: Sequence[str], old: Path) -> None:
    """Replaces the old datasets in `out` by those in `built`.

    Datasets of targets that are no longer among `folders` are taken away. Whatever no
    export wrote stays where it is.

    Args:
        built: Holds the new datasets.
        out: The output folder.
        folders: Those of the new datasets, relative to both.
        old: A folder on the same file system for what is replaced; made here.
    """
    stale = [
        name
        for name in _FOLDERS
        if name and name not in folders and is_export(out / name)
    ]
    for number, name in enumerate((*folders, *stale)):
        folder, away = out / name, old / str(number)
        away.mkdir(parents=True)
        folder.mkdir(parents=True, exist_ok=True)
        write_json(away / "begun", {"generator": GENERATOR, "images": {}})
        (away / "begun").replace(folder / LISTING)
        for entry in (*_ENTRIES, *_CACHES, *_FORMER):
            if (folder / entry).exists():
                (folder / entry).rename(away / entry)
    for name in folders:
        for entry in (*reversed(_ENTRIES), LISTING):
            if (built / name / entry).exists():
                (built / name / entry).replace(out / name / entry)
    for name in stale:
        (out / name / LISTING).unlink()
        _remove_if_empty(out / name)
    _remove_if_empty(out / FOLDERS_BELOW)


def set_dataset_aside(out: Path, away: Path) -> None:
    """Moves the datasets that an export wrote in `out` to `away`, if there are any.

    One that lies there already is replaced, but not by one that was never completed,
    which is deleted. Whatever no export wrote stays.

    Raises:
        StoreError: they cannot be moved.
    """
    below = sorted(p.relative_to(out).as_posix() for p in out.glob(f"{SUBMODELS}/*"))
    roots = ["", *(f"{folder}/" for folder in below)]
    names = [f"{root}{name}" for root in roots for name in _FOLDERS]
    folders = [name for name in names if is_export(out / name)]
    if not folders:
        return
    is_kept = away.exists() and all(is_begun(out / name) for name in folders)
    try:
        for name in folders:
            (away / name).mkdir(parents=True, exist_ok=True)
            # the listing last: until then the rest is known to be of an export
            for entry in (*_ENTRIES, *_CACHES, *_FORMER, LISTING):
                if not (out / name / entry).exists():
                    continue
                if is_kept:
                    _remove(out / name / entry)
                else:
                    _remove(away / name / entry)
                    (out / name / entry).rename(away / name / entry)
        empty = [*folders, *(f"{root}{FOLDERS_BELOW}" for root in roots), *below]
        for name in [*empty, SUBMODELS]:
            if name:
                _remove_if_empty(out / name)
    except OSError as error:
        raise StoreError(
            f"{out}: the dataset of the earlier run cannot be moved to {away}"
            f" ({error.strerror}). Close what has it open and run again."
        ) from error


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _remove_if_empty(folder: Path) -> None:
    if folder.is_dir() and not any(folder.iterdir()):
        folder.rmdir()
