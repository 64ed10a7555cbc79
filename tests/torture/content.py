"""What a run left, item by item, to be compared with what another one did."""

from __future__ import annotations

import hashlib
import sqlite3
import zipfile
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np

from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore

_STORES: dict[str, Any] = {
    "features.h5": FeatureStore,
    "matches.h5": MatchStore,
    "features_beside.h5": FeatureStore,
    "matches_beside.h5": MatchStore,
    "keypoints_beside.h5": FeatureStore,
    "stronger_matches.h5": MatchStore,
    "dense.h5": DenseStore,
    "joined_features.h5": FeatureStore,
    "joined_matches.h5": MatchStore,
}
_TABLES = (
    *("cameras", "images", "keypoints", "matches", "two_view_geometries"),
    *("rigs", "frames"),
)
# the seconds that it took, and its own place
_OTHER_EACH_TIME = ("report.html", "report.json", "recipe.yaml", "dataset.json")


def content(out: Path) -> dict[str, str]:
    """A checksum of every item of every store, table, model and file, by its name."""
    work = out / "work"
    found: dict[str, str] = {}
    for name, kind in _STORES.items():
        if not (work / name).is_file():
            continue
        with kind(work / name) as store:
            for key, item in store.items():
                found[f"{name}: {key}"] = _of_arrays(vars(item))
    for database in sorted(work.glob("*.db")):
        found |= _of_database(database)
    for archive in sorted(work.glob("*.zip")):
        with zipfile.ZipFile(archive) as opened:
            for each in opened.namelist():
                found[f"{archive.name}: {each}"] = _sha256(opened.read(each))
    for path in sorted(p for p in out.rglob("*") if p.is_file()):
        name = path.relative_to(out).as_posix()
        is_opaque = name.startswith("work/") and not name.startswith("work/models/")
        if path.suffix == ".txt" or not (is_opaque or path.name in _OTHER_EACH_TIME):
            found[name] = _sha256(path.read_bytes())
    return found


def differences(
    expected: Mapping[str, str], found: Mapping[str, str], most: int = 4
) -> list[str]:
    """Names of what is missing, more or other."""
    names = sorted(
        name for name in {*expected, *found} if expected.get(name) != found.get(name)
    )
    return names[:most] + ([f"and {len(names) - most} more"] if names[most:] else [])


def _of_arrays(values: Mapping[str, Any]) -> str:
    digest = hashlib.sha256()
    for name in sorted(values):
        value = values[name]
        digest.update(name.encode())
        digest.update(
            np.ascontiguousarray(value).tobytes()
            if isinstance(value, np.ndarray)
            else repr(value).encode()
        )
    return digest.hexdigest()


def _of_database(path: Path) -> dict[str, str]:
    found = {}
    with closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as database:
        for table in _TABLES:
            for row in database.execute(f"SELECT * FROM {table}"):
                key = f"{path.name}: {table} {row[0]}"
                found[key] = _sha256(repr(row[1:]).encode())
    return found


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()
