"""Files of weights on this machine: where they lie, and whether they are intact."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from sfmprep.errors import WeightsError
from sfmprep.weights.registry import Weights


@dataclass(frozen=True, kw_only=True)
class ResolvedWeights:
    """A file on disk and its checksum."""

    name: str
    path: Path
    sha256: str


def cache_folder() -> Path:
    """Where downloaded weights lie: `$XDG_CACHE_HOME/sfmprep/weights`."""
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(base) / "sfmprep" / "weights"


def cache_path(entry: Weights) -> Path:
    """`<sha256>-<file>`, so that a changed upstream file never shadows this one."""
    return cache_folder() / f"{entry.sha256}-{entry.file_name}"


def file_sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checked(entry: Weights, path: Path, expected: str | None) -> ResolvedWeights:
    """The weights in a file, which must have the checksum where one is known.

    Raises:
        WeightsError: it has another one.
    """
    sha256 = file_sha256(path)
    if expected and sha256 != expected:
        raise WeightsError(
            f"weights of {entry.name}: {path} has sha256 {sha256} but expected"
            f" {expected}. Delete it, or, if it is a file of your own, name it in the"
            " recipe (`weights: PATH`)."
        )
    return ResolvedWeights(name=entry.name, path=path, sha256=sha256)
