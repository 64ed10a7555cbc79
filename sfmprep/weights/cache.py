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
    """`<checksum>-<file>`, so that a changed upstream file never shadows this one."""
    return cache_folder() / f"{entry.sha256 or entry.git_blob}-{entry.file_name}"


def file_sha256(path: Path) -> str:
    """The checksum of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def git_blob(path: Path) -> str:
    """The checksum that git has of a file, SHA-1 of its size and content."""
    content = path.read_bytes()
    header = f"blob {len(content)}\0".encode()
    return hashlib.sha1(header + content, usedforsecurity=False).hexdigest()


def checked(entry: Weights, path: Path, expected: str | None) -> ResolvedWeights:
    """The weights in a file, which must have the checksum where one is known.

    Raises:
        WeightsError: it has another one.
    """
    sha256 = file_sha256(path)
    kind, found = "sha256", sha256
    if expected is None and entry.git_blob and path.suffix == ".pth":
        kind, expected, found = "git blob", entry.git_blob, git_blob(path)
    if expected and found != expected:
        raise WeightsError(
            f"weights of {entry.name}: {path} has {kind} {found} but expected"
            f" {expected}. Delete it, or, if it is a file of your own, name it in the"
            " recipe (`weights: PATH`)."
        )
    return ResolvedWeights(name=entry.name, path=path, sha256=sha256)
