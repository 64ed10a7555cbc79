"""A database of some images of another, with their ids: what a part is mapped from."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path

import pycolmap

from sfmprep.mapping.database import write_errors

# COLMAP's kMaxNumImages: the id of a pair is that times the lower id, plus the other
_PER_IMAGE = 2**31 - 1
_CAMERA = int(pycolmap.SensorType.CAMERA)

# What belongs to the images, in an order in which each finds what it hangs on
_CHOSEN = f"""
CREATE TEMP TABLE own_frames AS
  SELECT DISTINCT frame_id AS id FROM whole.frame_data
  WHERE sensor_type = {_CAMERA} AND data_id IN
    (SELECT image_id FROM whole.images WHERE name IN (SELECT name FROM wanted));
CREATE TEMP TABLE own_images (id INTEGER PRIMARY KEY);
INSERT INTO own_images
  SELECT image_id FROM whole.images WHERE name IN (SELECT name FROM wanted)
  UNION SELECT data_id FROM whole.frame_data
  WHERE sensor_type = {_CAMERA} AND frame_id IN (SELECT id FROM own_frames);
CREATE TEMP TABLE own_rigs AS
  SELECT DISTINCT rig_id AS id FROM whole.frames
  WHERE frame_id IN (SELECT id FROM own_frames);
CREATE TEMP TABLE own_cameras AS
  SELECT camera_id AS id FROM whole.images
  WHERE image_id IN (SELECT id FROM own_images)
  UNION SELECT ref_sensor_id FROM whole.rigs
  WHERE ref_sensor_type = {_CAMERA} AND rig_id IN (SELECT id FROM own_rigs)
  UNION SELECT sensor_id FROM whole.rig_sensors
  WHERE sensor_type = {_CAMERA} AND rig_id IN (SELECT id FROM own_rigs);
"""
_OF_IMAGES = "IN (SELECT id FROM own_images)"
_OF_FRAMES = "frame_id IN (SELECT id FROM own_frames)"
_OF_RIGS = "rig_id IN (SELECT id FROM own_rigs)"
_ROWS = {
    "cameras": "camera_id IN (SELECT id FROM own_cameras)",
    "rigs": _OF_RIGS,
    "rig_sensors": _OF_RIGS,
    "frames": _OF_FRAMES,
    "images": f"image_id {_OF_IMAGES}",
    "frame_data": _OF_FRAMES,
    "pose_priors": f"corr_sensor_type = {_CAMERA} AND corr_data_id {_OF_IMAGES}",
    "keypoints": f"image_id {_OF_IMAGES}",
    # by ranges of the lower id: of other pairs nothing is read
    "two_view_geometries": f"""pair_id IN (
        SELECT pairs.pair_id
        FROM own_images AS lower JOIN whole.two_view_geometries AS pairs
        ON pairs.pair_id BETWEEN lower.id * {_PER_IMAGE}
            AND (lower.id + 1) * {_PER_IMAGE} - 1
        WHERE pairs.pair_id % {_PER_IMAGE} {_OF_IMAGES}
    )""",
}


def write_excerpt(source: Path, target: Path, names: Iterable[str]) -> None:
    """Writes what a mapper reads of some images: all but descriptors and matches.

    COLMAP reads all verified pairs of a database into memory, however few images are to
    be mapped: for 550 of 10,000 made images 221 MB, and 33 MB from an excerpt. Ids are
    those of the whole; images of one frame stay together.

    Args:
        source: A database that pycolmap of this version opened before.
        target: Where nothing is yet.
        names: Of images; those that are not there are passed over.

    Raises:
        StoreError: it cannot be written.
    """
    with write_errors(target):
        with pycolmap.Database.open(target):
            pass  # it has the tables now
        with closing(sqlite3.connect(target)) as database:
            database.execute("ATTACH ? AS whole", (str(source),))
            database.execute("CREATE TEMP TABLE wanted (name TEXT PRIMARY KEY)")
            database.executemany(
                "INSERT OR IGNORE INTO wanted VALUES (?)", ((name,) for name in names)
            )
            database.executescript(_CHOSEN)
            for table, rows in _ROWS.items():
                # by name: in a database that grew older, columns are in another order
                of_table = database.execute(f"PRAGMA main.table_info({table})")
                columns = ", ".join(column for _, column, *_ in of_table)
                database.execute(
                    f"INSERT INTO main.{table} ({columns})"
                    f" SELECT {columns} FROM whole.{table} WHERE {rows}"
                )
            database.commit()
