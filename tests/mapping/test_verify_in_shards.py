"""Pairs that are verified elsewhere come back as they are verified here."""

from __future__ import annotations

import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.config import DatabaseConfig
from sfmprep.mapping.database import (
    merge_geometries,
    remove_database,
    shards_of,
)
from sfmprep.mapping.verify import verify_matches
from sfmprep.pairing.pairs import Pairs, exhaustive_pairs
from tests.support.shards_here import ShardsHere


@pytest.fixture
def database(tmp_path: Path) -> Path:
    """Nine images; matches of all pairs, and of one pair at random."""
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig = 1, 1
    options.num_frames_per_rig, options.num_points3D = 9, 300
    options.two_view_geometry_has_relative_pose = False
    path = tmp_path / "made.db"
    pycolmap.set_random_seed(0)
    with pycolmap.Database.open(path) as opened:
        pycolmap.synthesize_dataset(options, opened)
        opened.clear_two_view_geometries()
        images = sorted(opened.read_all_images(), key=lambda image: image.image_id)
        ids = images[0].image_id, images[1].image_id
        opened.delete_matches(*ids)
        rng = np.random.default_rng(0)
        rows = np.stack([rng.permutation(200)[:60] for _ in ids], axis=1)
        opened.write_matches(*ids, rows.astype(np.uint32))
    return path


def pairs_of(path: Path) -> Pairs:
    with pycolmap.Database.open(path) as opened:
        names = sorted(image.name for image in opened.read_all_images())
    return exhaustive_pairs(names)


def rows_of(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as opened:
        return opened.execute(
            "SELECT * FROM two_view_geometries ORDER BY pair_id"
        ).fetchall()


@pytest.fixture
def wanted(database: Path) -> list[tuple[object, ...]]:
    here = database.with_name("here.db")
    shutil.copy(database, here)
    verify_matches(here, pairs_of(here), DatabaseConfig())
    rows = rows_of(here)
    assert len(rows) == 36
    assert sum(row[1] == 0 for row in rows) == 1  # what is there by chance
    return rows


def test_shards_leave_the_same_bytes(
    database: Path, wanted: list[tuple[object, ...]]
) -> None:
    verify_matches(
        database, pairs_of(database), DatabaseConfig(), executor=ShardsHere()
    )
    assert rows_of(database) == wanted
    assert not shards_of(database).exists()


def test_a_stopped_run_keeps_the_shards_that_it_has(
    database: Path, wanted: list[tuple[object, ...]]
) -> None:
    pairs = pairs_of(database)
    with pytest.raises(KeyboardInterrupt):
        verify_matches(database, pairs, DatabaseConfig(), executor=ShardsHere(2))
    assert rows_of(database) == []
    merge_geometries(database)
    assert len(rows_of(database)) == 18
    verify_matches(database, pairs, DatabaseConfig(), executor=ShardsHere())
    assert rows_of(database) == wanted


def test_shards_go_with_their_database(database: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        verify_matches(
            *(database, pairs_of(database), DatabaseConfig()), executor=ShardsHere(1)
        )
    assert shards_of(database).is_dir()
    remove_database(database)
    assert not shards_of(database).exists()
