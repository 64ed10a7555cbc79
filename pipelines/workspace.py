"""The output folder: what lies where, and whether a run may begin or go on in it.

out/
    recipe.yaml                the recipe; from the first feature on one choice is made
    report.html report.json    what was found (see `report`)
    images/ sparse/0/ ...      the dataset (see `export.dataset`)
    database.db                only with `mapping.type: none`
    work/                      what is needed to go on; may be deleted afterwards
        images.json    size, time and checksum of the photographs and masks
        features.h5 rows.h5 pairs.txt matches.h5 database.db
        pairs.json     how many of the pairs each way has proposed
        verified.db pairs_beside.txt features_beside.h5     other features beside (see
        matches_beside.h5 keypoints_beside.h5               `ladder`)
        verified_beside.db weak_pairs.txt stronger_matches.h5    a stronger matcher
        verified_again.db pairs_left.txt dense.h5           semi-dense
        joined_features.h5 joined_matches.h5      features and semi-dense matches
        tracks.h5 track_matches.h5 keypoints_tracked.h5     points followed by flow
        film_poses.csv     the poses that follow from these alone
        film_focals.json   the focal lengths of the cameras, likewise
        mapped.zip     the mapper's models; a tool that scans a folder finds none in it
        pose_changes.json  with `refine`: how given poses compare with these
        second_pairs.txt second.db mapped_on.zip        the second round
        lost_pairs.txt     of its pairs those of images without a pose
        foresee.txt foreseen.jsonl foreseen_matches.h5  pointmaps of images without a
                           pose, and matches where they say (see `foreseen`)
        closer_pairs.txt features_closer.h5 matches_closer.h5    a closer look at images
        keypoints_closer.h5 closer.db mapped_closer.zip          that no model holds
        mapped_consistency.json ...    beside each archive of models: how far pairs and
                           the largest model agree, and pairs left out
        refined.zip    models with refined keypoints
        rigs.json held.zip     rigs, if there are any, and models that keep to them
        depths/        of images by pointmaps, where these give initial points
        models/0 ...   those without what is not supported
        poses.json     uncertainties of the poses, images set aside, and how sharp each
                       is
        left_out.json  pairs that the budget had no time for, by stage
        stages.json    which stages are done, with their keys (see `stage_table`)
        earlier/       what was made with other settings, until they come back
        adding/        models and world of the dataset that photographs join, until
                       it is complete again
        developed/     photographs that films and the like became; developed.json
        motion_masks/  masks of what moves; motion_masks.json; unmasked/ while they are
                       made
        features.h5.parts/ ...     shards that are not merged yet (see `in_shards`)
        lock           held by the run that is going on
"""

from __future__ import annotations

import contextlib
import errno
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from sfmprep.errors import ConfigError, StoreError
from sfmprep.files import not_written

logger = logging.getLogger(__name__)

_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
_EARLY = {
    *("lock", "developed", "developed.json", "stages.json", "images.json"),
    *("unmasked", "motion_masks", "motion_masks.json"),
}


class Workspace:
    """The paths of one output folder, as the module says."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.work = work = out / "work"
        self.recipe = out / "recipe.yaml"
        self.manifest = work / "images.json"
        self.earlier = work / "earlier"
        self.earlier_dataset = self.earlier / "dataset"
        self.adding = work / "adding"
        self.developed = work / "developed"
        self.developed_table = work / "developed.json"
        self.motion_masks = work / "motion_masks"
        self.motion_masks_table = work / "motion_masks.json"
        self.unmasked = work / "unmasked"
        self.features = work / "features.h5"
        self.rows = work / "rows.h5"
        self.pairs = work / "pairs.txt"
        self.pair_ways = work / "pairs.json"
        self.matches = work / "matches.h5"
        self.features_beside = work / "features_beside.h5"
        self.matches_beside = work / "matches_beside.h5"
        self.keypoints_beside = work / "keypoints_beside.h5"
        self.dense = work / "dense.h5"
        self.stronger_matches = work / "stronger_matches.h5"
        self.pairs_left = work / "pairs_left.txt"
        self.joined_features = work / "joined_features.h5"
        self.joined_matches = work / "joined_matches.h5"
        self.tracks = work / "tracks.h5"
        self.track_matches = work / "track_matches.h5"
        self.keypoints_tracked = work / "keypoints_tracked.h5"
        self.film_poses = work / "film_poses.csv"
        self.film_focals = work / "film_focals.json"
        self.left_out = work / "left_out.json"
        self.mapped = work / "mapped.zip"
        self.second_pairs = work / "second_pairs.txt"
        self.lost_pairs = work / "lost_pairs.txt"
        self.foreseen = work / "foreseen.jsonl"
        self.foreseen_matches = work / "foreseen_matches.h5"
        self.second_database = work / "second.db"
        self.mapped_on = work / "mapped_on.zip"
        self.closer_pairs = work / "closer_pairs.txt"
        self.features_closer = work / "features_closer.h5"
        self.matches_closer = work / "matches_closer.h5"
        self.keypoints_closer = work / "keypoints_closer.h5"
        self.closer_database = work / "closer.db"
        self.mapped_closer = work / "mapped_closer.zip"
        self.pose_changes = work / "pose_changes.json"
        self.refined = work / "refined.zip"
        self.rigs = work / "rigs.json"
        self.held = work / "held.zip"
        self.depths = work / "depths"
        self.models = work / "models"
        self.poses = work / "poses.json"
        self.report = out / "report.json"
        self.report_page = out / "report.html"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Makes the folder and holds its lock.

        Raises:
            StoreError: another process holds it, or the folder cannot be written.
        """
        lock = FileLock(self.work / "lock")
        try:
            self.work.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
        except Timeout:
            raise StoreError(
                f"{self.out} is in use by another sfmprep. Wait for it, or stop it."
            ) from None
        except OSError as error:
            if error.errno in _NO_LOCKS and self.work.is_dir():
                raise StoreError(
                    f"{self.out} lies on a disk that has no file locks"
                    f" ({error.strerror}), by which two runs in one folder are kept"
                    " apart. Give an output folder on another disk, such as one of this"
                    " machine."
                ) from error
            raise not_written(self.out, error) from error
        try:
            yield
        finally:
            lock.release()

    def put_aside(self, path: Path, key: str, wanted: str) -> None:
        """Makes room for a file with another key, and takes that back if it is there.

        Args:
            path: A file in `work`; nothing is moved where it is missing.
            key: The key that it was made with.
            wanted: The key that a file is wanted of.
        """
        if path.exists():
            self.earlier.mkdir(exist_ok=True)
            path.replace(self._earlier(path, key))
        with contextlib.suppress(FileNotFoundError):
            self._earlier(path, wanted).replace(path)

    def _earlier(self, path: Path, key: str) -> Path:
        return self.earlier / f"{path.stem}-{key[:16]}{path.suffix}"

    def check_place(self, images: Path) -> None:
        """Makes sure that results may go here; changes nothing.

        Raises:
            ConfigError: `out` is a file, lies in or around the folder of images, or
                holds something else.
        """
        if self.out.exists() and not self.out.is_dir():
            raise ConfigError(f"{self.out} is a file. Give a folder for the output.")
        if _is_inside(self.out, images):
            raise ConfigError(
                f"{self.out} lies inside the folder of images {images}: the results"
                " would be taken for photographs. Give a folder beside it."
            )
        for folder in (self.out / "images", self.work):
            if _is_inside(images, folder):
                raise ConfigError(
                    f"the folder of images {images} lies inside the results in"
                    f" {self.out}, which are written anew. Give another output folder."
                )
        if self.recipe.is_file() or not self.out.is_dir():
            return
        found = sorted(e.name for e in self.out.iterdir() if not _is_left(e))
        there = self.work.iterdir() if self.work.is_dir() else ()
        if found in ([], ["work"]) and all(map(_is_early, there)):
            return  # a run that was stopped before there was a recipe, or shares
        if found:
            raise ConfigError(
                f"{self.out} is not empty and not an output of sfmprep (it holds"
                f" {', '.join(found[:3])}). Give a new or empty folder."
            )


def _is_left(path: Path) -> bool:
    """Whether a killed `write_text` left this."""
    return path.name.startswith(".") and path.suffix == ".part"


def _is_inside(path: Path, folder: Path) -> bool:
    return path.resolve().is_relative_to(folder.resolve())


def _is_early(path: Path) -> bool:
    """Whether this may lie in `work` before there is a recipe."""
    return path.name in _EARLY or path.suffix == ".parts" or _is_left(path)
