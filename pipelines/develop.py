"""Films, RAW files and panoramas become photographs in the output folder, first of all.

`work/developed.json` holds, of every such file, its content and what came of it; what
is there for the same content and settings is not made again.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

from sfmprep.capture.developed import Developed, Film, files_to_develop, places
from sfmprep.capture.flight import flight_file
from sfmprep.capture.folder import is_film, is_image, is_raw
from sfmprep.capture.identity import FileDigest, files_sha256
from sfmprep.capture.image_file import read_info
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import mask_file, read_mask_file
from sfmprep.capture.panorama import Layout, Panorama, View, cut_panorama, views_of
from sfmprep.capture.photographs import find_photographs
from sfmprep.capture.raw import develop_raw
from sfmprep.config import PanoramaConfig, Recipe
from sfmprep.errors import ImageError
from sfmprep.files import as_written, read_table, write_text
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
    device: str = "cpu",
    progress: Progress = silent,
) -> ImageSet:
    """Finds the photographs of a capture, and makes those of films and the like.

    Args:
        source: A folder of photographs, films and RAW files, or one film; they are
            never changed.
        out: The output folder; only what becomes photographs writes there.
        recipe: Which frames and views are taken, and where masks lie.
        develops: Whether what is missing is made; else it is left out.
        device: Where a network for the flow of films runs.
        progress: Wraps the loops.

    Raises:
        ConfigError, StoreError: results may not go to `out`, or cannot.
        ImageError: as `find_photographs`, or nothing came of the one film.
        WeightsError, DeviceError: see `build_flow_estimator` and `FlowEstimator.flow`.
    """
    files = files_to_develop(source, recipe.masks, recipe.panorama.cut)
    developed = None
    if files:
        workspace = Workspace(out)
        workspace.check_place(source)
        if develops:
            with workspace.locked():
                _develop(files, workspace, recipe, device, progress)
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
    files: Mapping[str, Path],
    workspace: Workspace,
    recipe: Recipe,
    device: str,
    progress: Progress,
) -> None:
    """Makes the photographs of all files that are not there for these settings."""
    table = read_table(workspace.developed_table)
    with as_written(workspace.developed_table):
        known = {
            name: FileDigest.from_json(entry["digest"]) for name, entry in table.items()
        }
    digests = files_sha256(files, known, progress=progress)
    contents = {name: digest.sha256 for name, digest in digests.items()}
    ledger = Ledger(workspace.out, recipe, {}, contents)
    if not ledger.is_done("develop"):
        ledger.begin("develop")
    taken, failures = places([name for name in files if not is_image(name)])
    for name, path in files.items():
        beside = _beside(path, name, recipe)
        others = [
            other and hashlib.sha256(other.read_bytes()).hexdigest() for other in beside
        ]
        key = checksum([ledger.keys.key("develop"), contents[name], *others])
        entry = table.get(name, {})
        if not _is_whole(entry, key, workspace.developed):
            entry = {"key": key, "names": [], "failure": None}
            try:
                if name in failures:
                    raise ImageError(failures[name])
                if is_image(name):
                    panorama = _cut(path, name, beside.mask, workspace, recipe)
                    entry["names"] = list(panorama.views)
                    entry["panoramas"] = [panorama.to_json()]
                elif is_film(name):
                    what = path, name, taken[name], beside
                    entry |= _film(*what, workspace, recipe, device, progress)
                else:
                    develop_raw(path, workspace.developed / taken[name])
                    entry["names"] = [taken[name]]
            except ImageError as error:
                entry["failure"] = str(error)
        table[name] = entry | {"digest": digests[name]}
        write_text(workspace.developed_table, json.dumps(table, ensure_ascii=False))
    ledger.finish("develop")


class _Beside(NamedTuple):
    """What a file is developed with, besides settings."""

    mask: Path | None  # of a panorama, also as a film
    subtitles: Path | None  # of a drone's film


def _beside(path: Path, name: str, recipe: Recipe) -> _Beside:
    mask = None if is_raw(name) else mask_file(recipe.masks, name)
    return _Beside(mask, flight_file(path) if is_film(name) else None)


def _film(
    path: Path,
    name: str,
    place: str,
    beside: _Beside,
    workspace: Workspace,
    recipe: Recipe,
    device: str,
    progress: Progress,
) -> dict[str, Any]:
    """What one film became: frames, or the views of frames that are spheres."""
    # here, so that a capture of photographs alone loads none of it
    from sfmprep.capture.frames import take_frames
    from sfmprep.capture.spherical import sphere_of_film
    from sfmprep.models.build import build_flow_estimator
    from sfmprep.models.flow.pictures import FlowOfPictures

    estimator = build_flow_estimator(recipe.film.flow, device=device.partition(",")[0])
    layout = sphere_of_film(path, recipe.panorama.cut)
    film = take_frames(
        *(path, name, workspace.developed, place),
        flow=FlowOfPictures(estimator),
        max_overlap=recipe.film.max_overlap,
        most=recipe.film.frames,
        subtitles=beside.subtitles,
        progress=progress,
    )
    if layout is None:
        return {"names": list(film.frames), "film": film.to_json()}
    spheres = workspace.developed / place
    panoramas = [
        _cut(workspace.developed / frame, frame, beside.mask, workspace, recipe, layout)
        for frame in progress(film.frames, desc=f"views of {name}")
    ]
    shutil.rmtree(spheres, ignore_errors=True)
    names = [view for panorama in panoramas for view in panorama.views]
    suffix = PurePosixPath(names[0]).suffix
    frames = [str(PurePosixPath(frame).with_suffix(suffix)) for frame in film.frames]
    views = [view.removesuffix(frames[0]) for view in panoramas[0].views]
    film = replace(film, frames=tuple(frames), views=tuple(views))
    found = [replace(panorama, film=name).to_json() for panorama in panoramas]
    return {"names": names, "film": film.to_json(), "panoramas": found}


def _cut(
    path: Path,
    name: str,
    mask: Path | None,
    workspace: Workspace,
    recipe: Recipe,
    layout: Layout | None = None,
) -> Panorama:
    info = read_info(path, keep_damaged=recipe.keep_damaged)
    return cut_panorama(
        *(path, name, workspace.developed, panorama_views(recipe.panorama)),
        layout=layout,
        mask=None if mask is None else read_mask_file(mask, info),
        keep_damaged=recipe.keep_damaged,
    )


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
        checksums={name: entry["digest"][-1] for name, entry in entries.items()},
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
            Panorama.from_json(panorama)
            for entry in entries.values()
            for panorama in entry.get("panoramas", ())
        ),
    )
