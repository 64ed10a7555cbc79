"""From stores to a COLMAP database: cameras, keypoints, matches, verified pairs.

`write_database` fills an existing database in place: its images, names, ids and cameras
stay, its keypoints and matches are replaced, and its descriptors, which belonged to the
old keypoints, go. `update_database` is for a database of our own: it becomes what it
would be if made anew, and keeps the two-view geometries that still hold.

Both write whole or not at all: the work is done on a copy. COLMAP's transactions would
not do: one that an exception ends is committed, and one that meets a full disk ends the
process.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig
from sfmprep.errors import ConfigError, StoreError
from sfmprep.mapping.cameras import infer_camera
from sfmprep.pairing.pairs import Pairs
from sfmprep.progress import Progress, silent
from sfmprep.stores.tables import FeatureStore, MatchStore, Pair
from sfmprep.types import Float32

logger = logging.getLogger(__name__)

_MIN_MATCHES = 8  # fewer cannot be verified by any model
_OTHER_FOLDER = "Give the folder of images that the database was made from."


def write_database(
    path: Path,
    images: ImageSet,
    features: FeatureStore,
    matches: MatchStore,
    pairs: Pairs,
    config: DatabaseConfig,
    *,
    progress: Progress = silent,
) -> None:
    """Writes keypoints and matches into a COLMAP database, whole or not at all.

    Args:
        path: The database; it is made if it does not exist, else filled in place.
        images: The capture; images without features here are left out.
        features: Keypoints of the images.
        matches: Matches of the pairs; a pair that is not here is left out.
        pairs: The pairs of this capture.
        config: Cameras of images that the database does not hold yet.
        progress: Wraps the loop over matches.

    Raises:
        StoreError: `path` is not a COLMAP database, is locked or cannot be written.
        ConfigError: see `check_database`; or images are to share a camera that differ
            in size.
    """
    check_database(path, images)
    with _rewritten(path, copy=True) as part, pycolmap.Database.open(part) as database:
        ids = _write_images(database, images, features, config)
        database.clear_keypoints()
        database.clear_descriptors()
        database.clear_matches()
        database.clear_two_view_geometries()
        for name, keypoints in _keypoint_rows(features, ids):
            database.write_keypoints(ids[name], keypoints)
        for (name0, name1), rows in _match_rows(matches, pairs, ids, progress):
            database.write_matches(ids[name0], ids[name1], rows)


def update_database(
    path: Path,
    images: ImageSet,
    features: FeatureStore,
    matches: MatchStore,
    pairs: Pairs,
    config: DatabaseConfig,
    *,
    progress: Progress = silent,
) -> int:
    """Brings a database that sfmprep made up to date, and keeps its verified pairs.

    The result is the one that `write_database` makes of nothing, with the same ids. A
    pair whose matches, keypoints and cameras are as they were keeps its two-view
    geometry; for all others `verify_matches` has to be called. Images and pairs that
    are no longer wanted are not in it. It is written whole or not at all.

    Args:
        path: A database of this function or `write_database`, or nothing. Its pairs
            were verified with thresholds and a seed that are still to be used: where
            those changed, call `remove_database` first.
        images: The capture; images without features here are left out.
        features: Keypoints of the images.
        matches: Matches of the pairs; a pair that is not here is left out.
        pairs: The pairs of this capture.
        config: Cameras of the images.
        progress: Wraps the loop over matches.

    Returns:
        How many pairs kept their geometry.

    Raises:
        StoreError: `path` is not a COLMAP database, is locked or cannot be written.
        ConfigError: images are to share a camera that differ in size.
    """
    kept = 0
    with _rewritten(path, copy=False) as part, ExitStack() as opened:
        database = opened.enter_context(pycolmap.Database.open(part))
        old = opened.enter_context(
            open_database(path) if path.exists() else pycolmap.Database.open(":memory:")
        )
        there = {image.name: image for image in old.read_all_images()}
        ids = _write_images(database, images, features, config)
        unchanged: dict[str, int] = {}  # ids in the old database
        for name, keypoints in _keypoint_rows(features, ids):
            database.write_keypoints(ids[name], keypoints)
            if name in there and _is_unchanged(
                (old, there[name].image_id), (database, ids[name]), keypoints
            ):
                unchanged[name] = there[name].image_id
        for (name0, name1), rows in _match_rows(matches, pairs, ids, progress):
            new_ids = ids[name0], ids[name1]
            database.write_matches(*new_ids, rows)
            if name0 not in unchanged or name1 not in unchanged:
                continue
            old_ids = unchanged[name0], unchanged[name1]
            if old.exists_two_view_geometry(*old_ids) and np.array_equal(
                old.read_matches(*old_ids), rows
            ):
                # COLMAP inverts pairs that are not in the order of ids; those that are
                # reversed in both are not turned back and forth
                if old_ids[0] > old_ids[1] and new_ids[0] > new_ids[1]:
                    old_ids, new_ids = old_ids[::-1], new_ids[::-1]
                geometry = old.read_two_view_geometry(*old_ids)
                database.write_two_view_geometry(*new_ids, geometry)
                kept += 1
    return kept


def check_database(path: Path, images: ImageSet) -> None:
    """Makes sure that a database can be filled with these images; changes nothing.

    Raises:
        StoreError: `path` is not a COLMAP database, is locked, or its folder does not
            exist.
        ConfigError: it holds images, but none of these, or one that has another size.
    """
    if not path.exists():
        if not path.parent.is_dir():
            raise StoreError(
                f"{path}: the folder {path.parent} does not exist. Make it, or correct"
                " the path."
            )
        return
    with open_database(path) as database:
        cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
        there = database.read_all_images()
    known = [image for image in there if image.name in images.infos]
    if there and not known:
        raise ConfigError(
            f"{path} holds {len(there)} images such as"
            f" {min(image.name for image in there)!r}, but"
            f" {images.root} none of them; its images are called such as"
            f" {images.names[0]!r}. {_OTHER_FOLDER}"
        )
    for image in known:
        size, camera = images.infos[image.name].size, cameras[image.camera_id]
        if size != (camera.width, camera.height):
            raise ConfigError(
                f"{images.path(image.name)} has {size[0]} x {size[1]} pixels but"
                f" {camera.width} x {camera.height} in {path}. {_OTHER_FOLDER}"
            )


def remove_database(path: Path) -> None:
    """Deletes a database and what SQLite may have left beside it."""
    # a log that outlives its database would be played into the next one of that name
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)


def open_database(path: Path) -> pycolmap.Database:
    """Opens a COLMAP database that exists, refusing what is not one.

    COLMAP ends the process on a file that is no database, so look first.
    """
    try:
        uri = f"{path.resolve().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True)) as database:
            database.execute("BEGIN IMMEDIATE")
            rows = database.execute("SELECT name FROM sqlite_master").fetchall()
    except sqlite3.Error as error:
        raise StoreError(
            f"{path} cannot be opened as a database ({error}). Close COLMAP if it"
            " has it open; give the path of a COLMAP database."
        ) from error
    tables = {name for (name,) in rows}
    if tables and not {"cameras", "images", "keypoints", "matches"} <= tables:
        raise StoreError(
            f"{path} is a database, but not one of COLMAP (its tables:"
            f" {', '.join(sorted(tables))}). Give the path of a COLMAP database."
        )
    return pycolmap.Database.open(path)


@contextmanager
def _rewritten(path: Path, *, copy: bool) -> Iterator[Path]:
    """A file to work on, which replaces the database when the block has succeeded.

    It is a copy of the database, or it does not exist yet.
    """
    part = path.with_name(f".{path.name}.part")
    remove_database(part)
    try:
        with write_errors(path):
            if copy and path.exists():
                _copy_database(path, part)
            yield part
            if part.with_name(f"{part.name}-wal").exists():
                raise RuntimeError("SQLite could not merge its log")
            if path.exists():
                _copy_database(part, path)
            else:
                remove_database(path)
                part.replace(path)
    finally:
        remove_database(part)


def _copy_database(source: Path, target: Path) -> None:
    """Gives `target` the content of `source`, in one transaction of SQLite."""
    with (
        closing(sqlite3.connect(source)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns what SQLite refuses, here or inside COLMAP, into a StoreError."""
    try:
        yield
    except (RuntimeError, sqlite3.Error, OSError) as error:
        raise StoreError(
            f"{path} cannot be written ({error}). Close COLMAP if it has it open, free"
            " some disk space, and run the same command again."
        ) from error


def _write_images(
    database: pycolmap.Database,
    images: ImageSet,
    features: FeatureStore,
    config: DatabaseConfig,
) -> dict[str, int]:
    """Adds images that are missing; returns the id of each image with features."""
    there = {image.name: image.image_id for image in database.read_all_images()}
    ids = {
        name: image_id
        for name, image_id in there.items()
        if name in images.infos and name in features
    }
    if useless := sorted(there.keys() - ids.keys()):
        logger.warning(
            "%d images of the database, such as %s, get no matches: %s has no such"
            " image, or it cannot be read",
            len(useless),
            useless[0],
            images.root,
        )
    for group in images.camera_groups(config.cameras):
        new = [name for name in group if name not in there and name in features]
        if new:
            ids |= _add_camera_group(database, images, new, config)
    return ids


def _add_camera_group(
    database: pycolmap.Database,
    images: ImageSet,
    names: Sequence[str],
    config: DatabaseConfig,
) -> dict[str, int]:
    """Adds a camera, its trivial rig, and the images that it took."""
    size = images.infos[names[0]].size
    for name in names:
        if images.infos[name].size != size:
            other = images.infos[name].size
            raise ConfigError(
                f"database.cameras: {config.cameras} lets {names[0]} ({size[0]} x"
                f" {size[1]} pixels) and {name} ({other[0]} x {other[1]}) share a"
                " camera, but one camera has one size. Use `auto`."
            )
    camera = infer_camera(images, names[0], config)
    camera.camera_id = database.write_camera(camera)
    rig = pycolmap.Rig()
    rig.add_ref_sensor(camera.sensor_id)
    rig_id = database.write_rig(rig)
    ids = {}
    for name in names:
        image = pycolmap.Image(name=name, camera_id=camera.camera_id)
        image.image_id = database.write_image(image)
        frame = pycolmap.Frame()
        frame.rig_id = rig_id
        frame.add_data_id(image.data_id)
        image.frame_id = database.write_frame(frame)
        ids[name] = image.image_id
    return ids


def _keypoint_rows(
    features: FeatureStore, names: Container[str]
) -> Iterator[tuple[str, Float32]]:
    """Yields [N, 2] or, with scale and angle, [N, 4] rows as COLMAP stores them."""
    for name, found in features.keypoints():
        if name in names:
            if found.scale is None or found.angle is None:
                yield name, found.xy
            else:
                yield name, np.column_stack([found.xy, found.scale, found.angle])


def _match_rows(
    matches: MatchStore, pairs: Pairs, names: Container[str], progress: Progress
) -> Iterator[tuple[Pair, NDArray[np.uint32]]]:
    """Yields the [M, 2] rows of wanted pairs that have enough of them."""
    wanted = set(pairs)
    for pair, index in progress(matches.indices(), desc="import", total=len(matches)):
        known = pair[0] in names and pair[1] in names and pair in wanted
        if known and len(index) >= _MIN_MATCHES:
            yield pair, np.ascontiguousarray(index).view(np.uint32)


def _is_unchanged(
    was: tuple[pycolmap.Database, int],
    now: tuple[pycolmap.Database, int],
    keypoints: Float32,
) -> bool:
    """Whether an image still has the camera and the keypoints of an older database."""
    (old, old_id), (new, new_id) = was, now
    camera = old.read_camera(old.read_image(old_id).camera_id)
    expected = new.read_camera(new.read_image(new_id).camera_id)
    camera.camera_id = expected.camera_id
    return camera == expected and np.array_equal(old.read_keypoints(old_id), keypoints)
