"""From stores to a COLMAP database of our own: cameras, keypoints, matches.

It is written whole or not at all: the work is done on a copy. COLMAP's transactions
would not do: one that an exception ends is committed, and one that meets a full disk
ends the process. `project.py` fills a database that somebody else made.
"""

from __future__ import annotations

import shutil
import sqlite3
from collections.abc import Container, Iterable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig
from sfmprep.errors import ConfigError, StoreError
from sfmprep.mapping.cameras import infer_camera
from sfmprep.mapping.focal_length import is_fisheye
from sfmprep.mapping.pose_priors import write_pose_priors
from sfmprep.pairing.pairs import Pairs
from sfmprep.progress import Progress, silent
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import FeatureStore
from sfmprep.types import Float32, Pair

_MIN_MATCHES = 8  # fewer cannot be verified by any model


def update_database(
    path: Path,
    images: ImageSet,
    features: FeatureStore,
    matches: MatchReader,
    pairs: Pairs,
    config: DatabaseConfig,
    *,
    lower: Path | None = None,
    progress: Progress = silent,
) -> int:
    """Makes a database, or brings one up to date and keeps its verified pairs.

    The result is the one that is made of nothing, with the same ids. A pair whose
    matches, their keypoints and cameras are as they were keeps its two-view geometry,
    unless one of them is a fisheye lens of unknown focal length: more matches may tell
    another one to verify by. For all others `verify_matches` has to be called. Images
    and pairs that are no longer wanted are not in it. It is written whole or not at
    all.

    Args:
        path: A database that this function made, or nothing. Its pairs were verified
            with thresholds and a seed that are still to be used: where those changed,
            call `remove_database` first.
        images: The capture; images without features here are left out.
        features: Keypoints of the images.
        matches: Matches of the pairs; a pair that is not here is left out.
        pairs: The pairs of this capture.
        config: Cameras of the images.
        lower: The database of an earlier rung, if there is one: pairs that are the same
            in it were verified there, with the same thresholds and seed.
        progress: Wraps the loop over matches.

    Returns:
        How many pairs kept their geometry.

    Raises:
        StoreError: `path` is not a COLMAP database, is locked or cannot be written.
        ConfigError: images are to share a camera that differ in size.
    """
    merge_geometries(path)
    kept = 0
    with rewritten(path, copy=False) as part, ExitStack() as opened:
        database = opened.enter_context(pycolmap.Database.open(part))
        sources = [
            _Source(source, opened.enter_context(open_database(source)))
            for source in (path, lower)
            if source is not None and source.exists()
        ]
        ids: dict[str, int] = {}
        for group in images.camera_groups(config.cameras):
            if names := [name for name in group if name in features]:
                camera = write_camera(database, images, names, config)
                ids |= add_images(database, names, camera)
        write_pose_priors(database, images, ids.values())
        cameras = {c.camera_id: c for c in database.read_all_cameras()}
        camera_of = {i.name: cameras[i.camera_id] for i in database.read_all_images()}
        for name, keypoints in keypoint_rows(features, ids):
            database.write_keypoints(ids[name], keypoints)
            for source in sources:
                with _damage_of(source.path):
                    source.compare(name, camera_of[name], keypoints)
        for pair, rows in match_rows(matches, pairs, ids, progress):
            new_ids = ids[pair[0]], ids[pair[1]]
            database.write_matches(*new_ids, rows)
            for source in sources:
                with _damage_of(source.path):
                    is_kept = source.copy_geometry(pair, rows, database, new_ids)
                if is_kept:
                    kept += 1
                    break
    return kept


def remove_database(path: Path) -> None:
    """Deletes a database and what SQLite may have left beside it."""
    # a log that outlives its database would be played into the next one of that name
    for suffix in ("", "-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    shutil.rmtree(shards_of(path), ignore_errors=True)


def shards_of(path: Path) -> Path:
    """The folder of databases with pairs of a database that were verified elsewhere."""
    return path.with_name(f"{path.name}.parts")


def merge_geometries(path: Path) -> None:
    """Moves the two-view geometries of shards into their database, with its ids.

    Pairs that have one there keep it. Does nothing where there are no shards.

    Raises:
        StoreError: `path` or a shard is not a COLMAP database, is locked or cannot be
            written.
    """
    folder = shards_of(path)
    if not (path.exists() and folder.is_dir()):
        return
    with write_errors(path), open_database(path) as database:
        for shard in sorted(folder.glob("*.db")):
            with looked_into(shard) as rows:  # pycolmap leaves out empty ones
                done = rows.execute("SELECT pair_id FROM two_view_geometries")
                pair_ids = [pair_id for (pair_id,) in done]
            with open_database(shard) as part:
                found = dict(zip(*part.read_two_view_geometries(), strict=True))
            for pair_id in pair_ids:
                ids = pycolmap.pair_id_to_image_pair(pair_id)
                if not database.exists_two_view_geometry(*ids):
                    geometry = found.get(pair_id, pycolmap.TwoViewGeometry())
                    database.write_two_view_geometry(*ids, geometry)
    shutil.rmtree(folder)


@contextmanager
def open_database(path: Path) -> Iterator[pycolmap.Database]:
    """Opens a COLMAP database that exists, refusing what is not one.

    Raises:
        StoreError: `path` is not a COLMAP database, is locked or cannot be written; or
            what the block reads of it is damaged.
    """
    with looked_into(path):
        pass
    with write_errors(path):  # it writes beside the file as soon as it opens it
        database = pycolmap.Database.open(path)
    with _damage_of(path), database:
        yield database


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    """What is read of a database in the block and is damaged is told as its damage."""
    try:
        yield
    except (RuntimeError, ValueError) as error:
        # pages that SQLite cannot follow; keypoints and matches of another length
        of_damage = ("disk image is malformed", "num_bytes")
        if not any(words in str(error) for words in of_damage):
            raise
        raise StoreError(
            f"{path} is damaged ({error}). If sfmprep made it, delete it, and the next"
            " run makes it again; else put back a copy of it."
        ) from error


@contextmanager
def looked_into(path: Path) -> Iterator[sqlite3.Connection]:
    """A COLMAP database to be read as it is, checked to be one that can be written.

    COLMAP itself ends the process on a file that is no database, and brings one of an
    older version to its own as soon as it opens it.

    Raises:
        StoreError: `path` is not a COLMAP database, is locked or cannot be written.
    """
    try:
        uri = f"{path.resolve().as_uri()}?mode=rw"
        with closing(sqlite3.connect(uri, uri=True)) as database:
            database.execute("BEGIN IMMEDIATE")
            tables = {
                name for (name,) in database.execute("SELECT name FROM sqlite_master")
            }
            if not {"cameras", "images", "keypoints", "matches"} <= tables:
                found = ", ".join(sorted(tables)) or "none"
                raise StoreError(
                    f"{path} is a database, but not one of COLMAP (its tables:"
                    f" {found}). Give the path of a COLMAP database."
                )
            # which pycolmap reads as it comes, and Python then not at all; not from the
            # index of names, which pycolmap does not ask
            rows = database.execute(
                "SELECT image_id, name, camera_id FROM images NOT INDEXED"
            )
            for image_id, name, _ in rows:
                if not isinstance(name, str):
                    raise sqlite3.DataError(f"the name of image {image_id} is no text")
            yield database
    # what SQLite says may be no text
    except (sqlite3.Error, UnicodeDecodeError) as error:
        advice = "Close COLMAP if it has it open; give the path of a COLMAP database."
        code = getattr(error, "sqlite_errorcode", 0) & 0xFF  # without what it adds
        if code == sqlite3.SQLITE_CANTOPEN and path.is_file():
            # SQLite says no more where it cannot make its files beside it
            advice = "Free some disk space, or see whether its folder can be written."
        raise StoreError(
            f"{path} cannot be opened as a database ({error}). {advice}"
        ) from error


@contextmanager
def rewritten(path: Path, *, copy: bool) -> Iterator[Path]:
    """A file to work on, which replaces the database when the block has succeeded.

    It is a copy of the database, or it does not exist yet.
    """
    part = path.with_name(f".{path.name}.part")
    remove_database(part)
    try:
        with write_errors(path):
            if copy and path.exists():
                copy_database(path, part)
            yield part
            if part.with_name(f"{part.name}-wal").exists():
                raise RuntimeError("SQLite could not merge its log")
            if path.exists():
                copy_database(part, path)
            else:
                remove_database(path)
                part.replace(path)
    finally:
        remove_database(part)


def copy_database(source: Path, target: Path) -> None:
    """Gives `target` the content of `source`, in one transaction of SQLite."""
    with (
        closing(sqlite3.connect(source)) as old,
        closing(sqlite3.connect(target)) as new,
    ):
        old.backup(new)


@contextmanager
def write_errors(path: Path) -> Iterator[None]:
    """Turns what SQLite refuses, here or inside COLMAP, into a StoreError.

    So is what the system says of the file. Other errors are not of the database.
    """
    try:
        yield
    except (RuntimeError, sqlite3.Error, OSError) as error:
        of_database = ("SQLite", "database factory")  # what COLMAP says of one
        if isinstance(error, RuntimeError) and not any(
            words in str(error) for words in of_database
        ):
            raise
        if isinstance(error, OSError) and path.name not in str(error.filename):
            raise
        raise StoreError(
            f"{path} cannot be written ({error}). Close COLMAP if it has it open, free"
            " some disk space, and run the same command again."
        ) from error


def write_camera(
    database: pycolmap.Database,
    images: ImageSet,
    names: Sequence[str],
    config: DatabaseConfig,
) -> pycolmap.Camera:
    """Adds the camera that these images, one or more, share.

    Raises:
        ConfigError: they differ in size.
    """
    expect_one_size(images, names, config)
    camera = infer_camera(images, names[0], config)
    camera.camera_id = database.write_camera(camera)
    return camera


def expect_one_size(
    images: ImageSet, names: Sequence[str], config: DatabaseConfig
) -> None:
    """Refuses images, one or more, that are to share a camera but differ in size.

    Raises:
        ConfigError: they do.
    """
    size = images.infos[names[0]].size
    for name in names:
        if images.infos[name].size != size:
            other = images.infos[name].size
            raise ConfigError(
                f"database.cameras: {config.cameras} lets {names[0]} ({size[0]} x"
                f" {size[1]} pixels) and {name} ({other[0]} x {other[1]}) share a"
                " camera, but one camera has one size. Use `auto`."
            )


def add_images(
    database: pycolmap.Database, names: Iterable[str], camera: pycolmap.Camera
) -> dict[str, int]:
    """Adds images of a camera that is there, in a frame each; returns their ids."""
    ids = {}
    for name in names:
        image = pycolmap.Image(name=name, camera_id=camera.camera_id)
        image.image_id = ids[name] = database.write_image(image)
        add_frame(database, image, camera)
    return ids


def add_frame(
    database: pycolmap.Database, image: pycolmap.Image, camera: pycolmap.Camera
) -> None:
    """Gives an image a frame of its own, and its camera a rig where it is in none."""
    rig = database.read_rig_with_sensor(camera.sensor_id)
    if rig is None:
        rig = pycolmap.Rig()
        rig.add_ref_sensor(camera.sensor_id)
        rig.rig_id = database.write_rig(rig)
    frame = pycolmap.Frame()
    frame.rig_id = rig.rig_id
    frame.add_data_id(image.data_id)
    database.write_frame(frame)


def keypoint_rows(
    features: FeatureStore, names: Container[str]
) -> Iterator[tuple[str, Float32]]:
    """Yields [N, 2] or, with scale and angle, [N, 4] rows as COLMAP stores them."""
    for name, found in features.keypoints():
        if name in names:
            if found.scale is None or found.angle is None:
                yield name, found.xy
            else:
                yield name, np.column_stack([found.xy, found.scale, found.angle])


def match_rows(
    matches: MatchReader, pairs: Pairs, names: Container[str], progress: Progress
) -> Iterator[tuple[Pair, NDArray[np.uint32]]]:
    """Yields the [M, 2] rows of wanted pairs that have enough of them."""
    wanted = set(pairs)
    for pair, index in progress(matches.indices(), desc="import", total=len(matches)):
        known = pair[0] in names and pair[1] in names and pair in wanted
        if known and len(index) >= _MIN_MATCHES:
            yield pair, np.ascontiguousarray(index).view(np.uint32)


class _Source:
    """A database whose verified pairs are taken over where nothing changed."""

    def __init__(self, path: Path, database: pycolmap.Database) -> None:
        self.path, self._database = path, database
        with _damage_of(path):
            self._images = {image.name: image for image in database.read_all_images()}
        self._unchanged: set[str] = set()

    def compare(
        self, name: str, camera: pycolmap.Camera, keypoints: NDArray[np.float32]
    ) -> None:
        """Notes whether an image has the same camera and the same first keypoints.

        Those that one of both has beyond are in no match that both have. A fisheye lens
        of unknown focal length is not the same, see `update_database`.
        """
        if (image := self._images.get(name)) is None:
            return
        old_camera = self._database.read_camera(image.camera_id)
        old_camera.camera_id = camera.camera_id
        old = self._database.read_keypoints(image.image_id)
        count = min(len(old), len(keypoints))
        is_told = camera.has_prior_focal_length or not is_fisheye(camera)
        if (
            is_told
            and old_camera == camera
            and np.array_equal(old[:count, :2], keypoints[:count, :2])
        ):
            self._unchanged.add(name)

    def copy_geometry(
        self,
        pair: Pair,
        rows: NDArray[np.uint32],
        target: pycolmap.Database,
        new_ids: tuple[int, int],
    ) -> bool:
        """Copies the two-view geometry of a pair whose matches are these, if it can."""
        if not self._unchanged.issuperset(pair):
            return False
        old, old_ids = self._database, tuple(self._images[n].image_id for n in pair)
        if not old.exists_two_view_geometry(*old_ids) or not np.array_equal(
            old.read_matches(*old_ids), rows
        ):
            return False
        # COLMAP inverts pairs that are not in the order of ids; those that are reversed
        # in both are not turned back and forth
        if old_ids[0] > old_ids[1] and new_ids[0] > new_ids[1]:
            old_ids, new_ids = old_ids[::-1], new_ids[::-1]
        geometry = old.read_two_view_geometry(*old_ids)
        target.write_two_view_geometry(*new_ids, geometry)
        return True
