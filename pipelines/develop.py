"""Films, RAW files and panoramas become photographs in the output folder, first of all.

`work/developed.json` holds, of every such file, its content and what came of it; what
is there for the same content and settings is not made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sfmprep.capture.developed import Developed, Film, files_to_develop, places
from sfmprep.capture.flight import flight_file
from sfmprep.capture.folder import is_film, is_image
from sfmprep.capture.identity import FileDigest, files_sha256
from sfmprep.capture.image_file import read_info
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import mask_file, read_mask_file
from sfmprep.capture.panorama import Panorama, View, cut_panorama, views_of
from sfmprep.capture.photographs import find_photographs
from sfmprep.config import FilmConfig, PanoramaConfig, Recipe
from sfmprep.errors import ImageError
from sfmprep.files import read_table, write_text
from sfmprep.pipelines.ledger import Ledger
from sfmprep.pipelines.stage_keys import checksum
from sfmprep.pipelines.workspace import Workspace
from sfmprep.progress import Progress, silent

logger = logging.getLogger(__name__)


def find_capture(
    source: Path,
    out: Path,
    recipe: Recipe,
    *,
    develops: bool = True,
    progress: Progress = silent,
) -> ImageSet:
    """Finds the photographs of a capture, and makes those of films and the like.

    Args:
        source: A folder of photographs, films and RAW files, or one film; they are
            never changed.
        out: The output folder; only what becomes photographs writes there.
        recipe: Which frames and views are taken, and where masks lie.
        develops: Whether what is missing is made; else it is left out.
        progress: Wraps the loops.

    Raises:
        ConfigError, StoreError: results may not go to `out`, or cannot.
        ImageError: as `find_photographs`, or nothing came of the one film.
    """
    files = files_to_develop(source, recipe.masks, recipe.panorama.cut)
    developed = None
    if files:
        workspace = Workspace(out)
        workspace.check_place(source)
        if develops:
            with workspace.locked():
                _develop(files, workspace, recipe, progress)
        developed = _what_is_there(source, files, workspace)
        if source.is_file() and (reason := developed.failures.get(source.name)):
            raise ImageError(f"{source}: {reason}")
        for film in developed.films:
            logger.info("%s", film.summary())
            for remark in film.remarks():
                logger.warning("%s %s", *remark)
    return find_photographs(
        source,
        mask_root=recipe.masks,
        keep_damaged=recipe.keep_damaged,
        developed=developed,
    )


def _develop(
    files: Mapping[str, Path], workspace: Workspace, recipe: Recipe, progress: Progress
) -> None:
    """Makes the photographs of all files that are not there for these settings."""
    table = read_table(workspace.developed_table)
    known = {name: FileDigest(*entry["digest"]) for name, entry in table.items()}
    digests = files_sha256(files, known, progress=progress)
    contents = {name: digest.sha256 for name, digest in digests.items()}
    ledger = Ledger(workspace.out, recipe, {}, contents)
    if not ledger.is_done("develop"):
        ledger.begin("develop")
    taken, failures = places([name for name in files if not is_image(name)])
    for name, path in files.items():
        # what else it hangs on: the mask of a panorama, a drone's subtitles of a film
        mask = mask_file(recipe.masks, name) if is_image(name) else None
        subtitles = flight_file(path) if is_film(name) else None
        other = mask or subtitles
        of_other = other and hashlib.sha256(other.read_bytes()).hexdigest()
        key = checksum([ledger.keys.key("develop"), contents[name], of_other])
        entry = table.get(name, {})
        if not _is_whole(entry, key, workspace.developed):
            entry = {"key": key, "names": [], "failure": None}
            try:
                if name in failures:
                    raise ImageError(failures[name])
                if is_image(name):
                    entry |= _cut(path, name, mask, workspace, recipe)
                else:
                    where = name, taken[name], workspace
                    entry |= _developed(path, *where, recipe.film, subtitles, progress)
            except ImageError as error:
                entry["failure"] = str(error)
        table[name] = entry | {"digest": digests[name]}
        write_text(workspace.developed_table, json.dumps(table, ensure_ascii=False))
    ledger.finish("develop")


def _developed(
    path: Path,
    name: str,
    place: str,
    workspace: Workspace,
    config: FilmConfig,
    subtitles: Path | None,
    progress: Progress,
) -> dict[str, Any]:
    """What one film or RAW file became."""
    # here, so that a capture of photographs alone loads none of it
    from sfmprep.capture.frames import take_frames
    from sfmprep.capture.raw import develop_raw

    if not is_film(name):
        develop_raw(path, workspace.developed / place)
        return {"names": [place]}
    film = take_frames(
        *(path, name, workspace.developed, place),
        max_overlap=config.max_overlap,
        most=config.frames,
        subtitles=subtitles,
        progress=progress,
    )
    return {"names": list(film.frames), "film": film.to_json()}


def _cut(
    path: Path, name: str, mask: Path | None, workspace: Workspace, recipe: Recipe
) -> dict[str, Any]:
    """What one panorama became."""
    info = read_info(path, keep_damaged=recipe.keep_damaged)
    panorama = cut_panorama(
        *(path, name, workspace.developed, panorama_views(recipe.panorama)),
        mask=None if mask is None else read_mask_file(mask, info),
        keep_damaged=recipe.keep_damaged,
    )
    return {"names": list(panorama.views), "panorama": panorama.to_json()}


def panorama_views(config: PanoramaConfig) -> list[View]:
    """The views that panoramas are cut into."""
    return views_of(config.pitches_deg, config.per_row)


def _is_whole(entry: Mapping[str, Any], key: str, folder: Path) -> bool:
    is_done = entry.get("key") == key and entry["failure"] is None
    return is_done and all((folder / name).is_file() for name in entry["names"])


def _what_is_there(
    source: Path, files: Mapping[str, Path], workspace: Workspace
) -> Developed:
    """What was made of these files, for whatever settings."""
    table = read_table(workspace.developed_table)
    entries = {name: table[name] for name in files if name in table}
    return Developed(
        source=source,
        folder=workspace.developed,
        names=frozenset(n for entry in entries.values() for n in entry["names"]),
        checksums={name: entry["digest"][2] for name, entry in entries.items()},
        failures={
            name: entry["failure"]
            for name, entry in entries.items()
            if entry["failure"] is not None
        },
        films=tuple(
            Film.from_json(entry["film"])
            for entry in entries.values()
            if "film" in entry
        ),
        panoramas=tuple(
            Panorama.from_json(entry["panorama"])
            for entry in entries.values()
            if "panorama" in entry
        ),
    )
