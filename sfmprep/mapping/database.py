"""From stores to a COLMAP database: cameras, keypoints, matches, verified pairs.

An existing database is filled in place: its images, names, ids and cameras stay, its
keypoints and matches are replaced, and its descriptors, which belonged to the old
keypoints, go. It is written whole or not at all: the work is done on a copy. COLMAP's
transactions would not do: one that an exception ends is committed, and one that meets a
full disk ends the process.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig
from sfmprep.errors import ConfigError, StoreError
from sfmprep.pairing.pairs import Pairs
from sfmprep.progress import Progress, batched, silent
from sfmprep.stores.tables import FeatureStore, MatchStore, Pair
from sfmprep.types import Features, Float32

logger = logging.getLogger(__name__)

_VERIFY_BATCH = 256  # pairs in memory at once
_CACHED_IMAGES = 1024
_MIN_MATCHES = 8  # fewer cannot be verified by any model
_OTHER_FOLDER = "Give the folder of images that the database was made from."


@dataclass(frozen=True, kw_only=True)
class VerifiedPairs:
    """What geometric verification left."""

    num_pairs: int  # pairs with matches
    num_verified: int  # pairs with enough inliers
    num_inliers: int
    num_rotation_only: int  # verified pairs explained by a homography
    images: frozenset[str]  # images with at least one verified pair


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
    wanted = set(pairs)
    with _rewritten(path) as copy, pycolmap.Database.open(copy) as database:
        ids = _write_images(database, images, features, config)
        database.clear_keypoints()
        database.clear_descriptors()
        database.clear_matches()
        database.clear_two_view_geometries()
        for name, keypoints in features.keypoints():
            if name in ids:
                database.write_keypoints(ids[name], _keypoint_rows(keypoints))
        for (name0, name1), index in progress(
            matches.indices(), desc="import", total=len(matches)
        ):
            known = name0 in ids and name1 in ids and (name0, name1) in wanted
            if known and len(index) >= _MIN_MATCHES:
                rows = np.ascontiguousarray(index).view(np.uint32)
                database.write_matches(ids[name0], ids[name1], rows)


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
    with _open(path) as database:
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


def verify_matches(
    path: Path,
    pairs: Pairs,
    config: DatabaseConfig,
    *,
    seed: int = 0,
    num_threads: int | None = None,
    progress: Progress = silent,
) -> None:
    """Estimates the two-view geometry of every matched pair, on all cores.

    Pairs that have one already are left as they are, so a run that was stopped goes
    on. Pairs with fewer than `min_num_inliers` inliers get an empty geometry.

    Args:
        path: A database that `write_database` filled.
        pairs: The pairs to verify; those without matches are passed over.
        config: Thresholds.
        seed: Of RANSAC.
        num_threads: None for all cores.
        progress: Wraps the loop over pairs.

    Raises:
        StoreError: `path` is not a COLMAP database, is locked or cannot be written.
    """
    options = pycolmap.TwoViewGeometryOptions()
    options.min_num_inliers = config.min_num_inliers
    options.ransac.max_error = config.max_error_px
    options.ransac.random_seed = seed

    with (
        _explained(path),
        _open(path) as database,
        ThreadPoolExecutor(num_threads) as pool,
    ):
        cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
        images = {image.name: image for image in database.read_all_images()}
        camera_ids = {image.image_id: image.camera_id for image in images.values()}

        @lru_cache(maxsize=_CACHED_IMAGES)
        def points(image_id: int) -> NDArray[np.float64]:
            return database.read_keypoints(image_id)[:, :2].astype(np.float64)

        missing = [
            (images[name0].image_id, images[name1].image_id)
            for name0, name1 in pairs
            if name0 in images and name1 in images
        ]
        missing = [
            ids
            for ids in missing
            if database.exists_matches(*ids)
            and not database.exists_two_view_geometry(*ids)
        ]

        def verified() -> Iterator[pycolmap.TwoViewGeometry]:
            # in batches, to bound what waits in memory
            for batch in batched(missing, _VERIFY_BATCH):
                jobs = [
                    pool.submit(
                        pycolmap.estimate_two_view_geometry,
                        cameras[camera_ids[id0]],
                        points(id0),
                        cameras[camera_ids[id1]],
                        points(id1),
                        database.read_matches(id0, id1),
                        options,
                    )
                    for id0, id1 in batch
                ]
                for job in jobs:
                    yield job.result()

        geometries = progress(verified(), desc="verify", total=len(missing))
        for ids, geometry in zip(missing, geometries, strict=True):
            if len(geometry.inlier_matches) < config.min_num_inliers:
                geometry = pycolmap.TwoViewGeometry()
            database.write_two_view_geometry(*ids, geometry)


def read_verified(path: Path) -> VerifiedPairs:
    """Counts what geometric verification left in a database.

    Raises:
        StoreError: `path` is not a COLMAP database, or is locked.
    """
    with _open(path) as database:
        names = {image.image_id: image.name for image in database.read_all_images()}
        pair_ids, geometries = database.read_two_view_geometries()
        num_pairs = database.num_matched_image_pairs()
    rotation_only = (
        pycolmap.TwoViewGeometryConfiguration.PANORAMIC,
        pycolmap.TwoViewGeometryConfiguration.PLANAR_OR_PANORAMIC,
    )
    verified = [
        (pycolmap.pair_id_to_image_pair(pair_id), geometry)
        for pair_id, geometry in zip(pair_ids, geometries, strict=True)
        if len(geometry.inlier_matches)
    ]
    return VerifiedPairs(
        num_pairs=num_pairs,
        num_verified=len(verified),
        num_inliers=sum(len(geometry.inlier_matches) for _, geometry in verified),
        num_rotation_only=sum(g.config in rotation_only for _, g in verified),
        images=frozenset(names[k] for ids, _ in verified for k in ids),
    )


def count_inliers(path: Path) -> dict[Pair, int]:
    """The number of inliers of every verified pair; pairs with none are left out.

    Raises:
        StoreError: `path` is not a COLMAP database, or is locked.
    """
    with _open(path) as database:
        names = {image.image_id: image.name for image in database.read_all_images()}
        pair_ids, counts = database.read_two_view_geometry_num_inliers()
    found: dict[Pair, int] = {}
    for pair_id, count in zip(pair_ids, counts, strict=True):
        first, second = pycolmap.pair_id_to_image_pair(pair_id)
        name0, name1 = sorted((names[first], names[second]))
        if count:
            found[name0, name1] = count
    return found


def _open(path: Path) -> pycolmap.Database:
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
def _rewritten(path: Path) -> Iterator[Path]:
    """A copy to work on, which replaces the database when the block has succeeded."""
    part = path.with_name(f".{path.name}.part")
    remove_database(part)
    try:
        with _explained(path):
            if path.exists():
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
def _explained(path: Path) -> Iterator[None]:
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


def infer_camera(
    images: ImageSet, name: str, config: DatabaseConfig
) -> pycolmap.Camera:
    """The camera of an image before bundle adjustment.

    Its focal length is the configured one, else that of EXIF, else COLMAP's guess of
    1.2 times the longer side.
    """
    info = images.infos[name]
    focal = config.focal_length or _exif_focal_length(info.size, images, name)
    camera = pycolmap.Camera.create_from_model_name(
        0, config.camera_model, focal or 1.2 * max(info.size), *info.size
    )
    camera.has_prior_focal_length = focal is not None
    return camera


def _exif_focal_length(
    size: tuple[int, int], images: ImageSet, name: str
) -> float | None:
    """Focal length in pixels where EXIF tells it: directly, or by COLMAP's tables."""
    info = images.infos[name]
    if info.focal_length_35mm:
        # a frame of 36 x 24 mm; the EXIF standard compares diagonals
        return info.focal_length_35mm * float(np.hypot(*size) / np.hypot(36, 24))
    if not (info.focal_length_mm and info.model):
        return None
    try:
        camera = pycolmap.infer_camera_from_image(images.path(name))
    except ValueError as error:
        logger.info("%s: COLMAP cannot read it for its focal length: %s", name, error)
        return None
    return float(camera.mean_focal_length()) if camera.has_prior_focal_length else None


def _keypoint_rows(features: Features) -> Float32:
    """[N, 2] or, with scale and angle, [N, 4] rows as COLMAP stores them."""
    if features.scale is None or features.angle is None:
        return features.xy
    return np.column_stack([features.xy, features.scale, features.angle])
