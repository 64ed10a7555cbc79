"""An existing COLMAP project: other keypoints and matches in its database.

Its images, names, ids and cameras stay, and images that it lacks are added. Keypoints,
matches and two-view geometries are replaced, and its descriptors, which belonged to the
old keypoints, go. A copy of what it was can be kept.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import DatabaseConfig
from sfmprep.errors import ConfigError, StoreError
from sfmprep.mapping.database import (
    add_frame,
    add_images,
    copy_database,
    expect_one_size,
    keypoint_rows,
    looked_into,
    match_rows,
    remove_database,
    rewritten,
    write_camera,
)
from sfmprep.mapping.pose_priors import write_pose_priors
from sfmprep.pairing.pairs import Pairs
from sfmprep.progress import Progress, silent
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import FeatureStore

logger = logging.getLogger(__name__)

_OTHER_FOLDER = "Give the folder of images that the database was made from."


@dataclass(frozen=True, kw_only=True)
class Content:
    """How much of what is replaced a database holds."""

    num_keypoints: int
    num_descriptors: int
    num_matched: int  # pairs
    num_verified: int  # pairs

    @classmethod
    def of(cls, database: pycolmap.Database) -> Content:
        """Counts."""
        _, num_inliers = database.read_two_view_geometry_num_inliers()
        return cls(
            num_keypoints=database.num_keypoints(),
            num_descriptors=database.num_descriptors(),
            num_matched=database.num_matched_image_pairs(),
            num_verified=sum(count > 0 for count in num_inliers),
        )


@dataclass(frozen=True, kw_only=True)
class Filled:
    """What became of a database that was filled in place."""

    kept: Mapping[str, int]  # images with new keypoints -> the id of their camera
    idle: tuple[str, ...]  # images that are in the database alone: no keypoints now
    added: Mapping[str, int]  # images that are new -> the id of their camera
    cameras: Mapping[int, pycolmap.Camera]  # all of the database
    new_cameras: frozenset[int]
    before: Content
    after: Content  # before verification
    backup: Path | None  # what it was; None where no copy was made

    def lines(self) -> Iterator[str]:
        """Says it, one line a subject."""
        if self.kept:
            yield f"kept:     {len(self.kept)} images, with their ids and cameras"
        if self.idle:
            yield (
                f"idle:     {len(self.idle)} images such as {self.idle[0]}, without"
                " keypoints now"
            )
        before, after = self.before, self.after
        if before.num_keypoints:
            yield f"replaced: {before.num_keypoints} keypoints by {after.num_keypoints}"
        if before.num_descriptors or before.num_matched or before.num_verified:
            yield (
                f"dropped:  {before.num_descriptors} descriptors, matches of"
                f" {before.num_matched} pairs, two-view geometries of"
                f" {before.num_verified}"
            )
        for camera_id, count in Counter(self.added.values()).items():
            yield f"added:    {count} images with {self._described(camera_id)}"
        if self.backup is not None:
            yield f"backup:   {self.backup}"

    def _described(self, camera_id: int) -> str:
        camera = self.cameras[camera_id]
        origin = "as known" if camera.has_prior_focal_length else "a guess"
        return (
            f"{'the new ' if camera_id in self.new_cameras else ''}camera {camera_id}"
            f" ({camera.model.name}, {camera.width} x {camera.height}, focal length"
            f" {camera.mean_focal_length():.1f}, {origin})"
        )


def fill_project(
    path: Path,
    images: ImageSet,
    features: FeatureStore,
    matches: MatchReader,
    pairs: Pairs,
    config: DatabaseConfig,
    *,
    backup: bool = True,
    progress: Progress = silent,
) -> Filled:
    """Fills a database in place, whole or not at all.

    An image that is added gets the camera of its group (`ImageSet.camera_groups`) if
    the database has one such, else a new one. Each image is in a frame afterwards, as
    COLMAP's mappers since 3.12 expect it, also where the database is from before.

    Args:
        path: A COLMAP database; it is made if it does not exist.
        images: The capture; images without features here are left out.
        features: Keypoints of the images.
        matches: Matches of the pairs; a pair that is not here is left out.
        pairs: The pairs of this capture.
        config: How images share cameras, and new cameras.
        backup: Whether a copy of what it was is kept beside it, as `NAME.backup` or,
            where there are such already, `NAME.backup2`, ...
        progress: Wraps the loop over matches.

    Raises:
        StoreError: `path` is not a COLMAP database, is locked or cannot be written.
        ConfigError: see `check_images`; or images are to share a camera that differ in
            size.
    """
    check_images(path, images)
    with rewritten(path, copy=True) as part:
        with pycolmap.Database.open(part) as database:
            before = Content.of(database)
            cameras_before = {c.camera_id for c in database.read_all_cameras()}
            there = {image.name: image for image in database.read_all_images()}
            kept = {
                name: image.camera_id
                for name, image in there.items()
                if name in images.infos and name in features
            }
            added = _add_missing(database, there, images, features, config)
            cameras = {c.camera_id: c for c in database.read_all_cameras()}
            for image in there.values():
                if not image.has_frame_id():
                    add_frame(database, image, cameras[image.camera_id])
            database.clear_keypoints()
            database.clear_descriptors()
            database.clear_matches()
            database.clear_two_view_geometries()
            now = {image.name: image for image in database.read_all_images()}
            ids = {name: now[name].image_id for name in (*kept, *added)}
            for name, keypoints in keypoint_rows(features, ids):
                database.write_keypoints(ids[name], keypoints)
            for (name0, name1), rows in match_rows(matches, pairs, ids, progress):
                database.write_matches(ids[name0], ids[name1], rows)
            after = Content.of(database)
        copy = _back_up(path) if backup and path.exists() else None
    filled = Filled(
        kept=kept,
        idle=tuple(sorted(there.keys() - kept.keys())),
        added=added,
        cameras=cameras,
        new_cameras=frozenset(cameras.keys() - cameras_before),
        before=before,
        after=after,
        backup=copy,
    )
    if filled.idle:
        logger.warning(
            "%d images of the database, such as %s, get no matches: %s has no such"
            " image, or it cannot be read",
            len(filled.idle),
            filled.idle[0],
            images.root,
        )
    return filled


def check_path(path: Path, *, create: bool) -> None:
    """Makes sure that a database is there and can be filled; changes nothing.

    Args:
        path: The database.
        create: Whether it may be missing, to be made.

    Raises:
        ConfigError: it does not exist.
        StoreError: its folder does not exist, it or its folder cannot be written, or
            see `looked_into`.
    """
    if not path.parent.is_dir():
        raise StoreError(
            f"{path}: the folder {path.parent} does not exist. Make it, or correct the"
            " path."
        )
    if not path.exists() and not create:
        raise ConfigError(
            f"{path} does not exist. Correct the path, or add --create to make a new"
            " database there."
        )
    if not os.access(path.parent, os.W_OK):
        raise StoreError(
            f"{path}: you may not write to the folder {path.parent}, but the database"
            " and a copy of what it was go there. Change its permissions, or copy the"
            " database to another folder."
        )
    if path.exists():
        if not os.access(path, os.W_OK):
            raise StoreError(
                f"{path} is read-only. Change its permissions, or copy it to another"
                " place."
            )
        with looked_into(path):
            pass


def check_images(path: Path, images: ImageSet) -> None:
    """Makes sure that a database, if there is one, is of these images.

    Raises:
        StoreError: see `looked_into`.
        ConfigError: it holds images, but none of these, or one that has another size.
    """
    if not path.exists():
        return
    with looked_into(path) as database:
        there = {
            name: (width, height)
            for name, width, height in database.execute(
                "SELECT name, width, height FROM images JOIN cameras USING (camera_id)"
            )
        }
    known = [name for name in there if name in images.infos]
    if there and not known:
        raise ConfigError(
            f"{path} holds {len(there)} images such as {min(there)!r}, but"
            f" {images.root} none of them; its images are called such as"
            f" {images.names[0]!r}. {_OTHER_FOLDER}"
        )
    for name in known:
        size, expected = images.infos[name].size, there[name]
        if size != expected:
            raise ConfigError(
                f"{images.path(name)} has {size[0]} x {size[1]} pixels but"
                f" {expected[0]} x {expected[1]} in {path}. {_OTHER_FOLDER}"
            )


def _add_missing(
    database: pycolmap.Database,
    there: Mapping[str, pycolmap.Image],
    images: ImageSet,
    features: FeatureStore,
    config: DatabaseConfig,
) -> dict[str, int]:
    """Adds images that have features; returns the id of the camera of each."""
    added: dict[str, int] = {}
    for group in images.camera_groups(config.cameras):
        names = [name for name in group if name not in there and name in features]
        if not names:
            continue
        known = [name for name in group if name in there]
        of_group = {there[name].camera_id for name in known}
        if len(of_group) == 1:
            expect_one_size(images, [*known, *names], config)
            camera = database.read_camera(of_group.pop())
        else:
            camera = write_camera(database, images, names, config)
        ids = add_images(database, names, camera)
        write_pose_priors(database, images, ids.values())
        added |= dict.fromkeys(names, camera.camera_id)
    return added


def _back_up(path: Path) -> Path:
    """Copies a database to a name beside it that is free."""
    names = itertools.chain(
        [f"{path.name}.backup"], (f"{path.name}.backup{k}" for k in itertools.count(2))
    )
    backup = next(b for name in names if not (b := path.with_name(name)).exists())
    try:
        copy_database(path, backup)
    except BaseException:
        remove_database(backup)
        raise
    return backup
