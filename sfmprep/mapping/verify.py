"""Geometric verification of the matched pairs of a database."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, ClassVar, TypeAlias, overload

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfmprep.config import DatabaseConfig
from sfmprep.executors.protocol import Executor, Link, Outcome
from sfmprep.files import as_written
from sfmprep.mapping.calibrate import assume_fisheye_focal_lengths
from sfmprep.mapping.chance import least_inliers, share_of_band
from sfmprep.mapping.database import (
    looked_into,
    merge_geometries,
    open_database,
    shards_of,
    write_errors,
)
from sfmprep.mapping.view_reader import Scales
from sfmprep.pairing.pairs import Pairs
from sfmprep.progress import Progress, batched, silent
from sfmprep.threads import thread_pool
from sfmprep.types import Float64, Pair

_Call: TypeAlias = tuple[  # what `_estimate` takes
    pycolmap.Camera,
    Float64,
    pycolmap.Camera,
    Float64,
    NDArray[np.uint32],
    pycolmap.TwoViewGeometryOptions,
]

_CACHED_IMAGES = 1024

_VERIFY_BATCH = 256  # pairs in memory at once

# RANSAC finds what is there where a third of the matches is right. Ten times as many
# trials would cost ten times as much, for every pair in which nothing is right.
_MAX_TRIALS = 1000
# As many as find one sample without a wrong match with a probability of 0.999; COLMAP
# takes three times as many, and 100 at least. Of `fox`, every 3rd, that verifies the
# same pairs (inliers 0.998 to 1.001 times as many) in 0.7 of the time.
_MIN_TRIALS = 50
_TRIALS_FACTOR = 1.0

# matches that make a fundamental and an essential matrix
_SAMPLES = {
    int(pycolmap.TwoViewGeometryConfiguration.UNCALIBRATED): 7,
    int(pycolmap.TwoViewGeometryConfiguration.CALIBRATED): 5,
}

_ROTATION_ONLY = (
    int(pycolmap.TwoViewGeometryConfiguration.PANORAMIC),
    int(pycolmap.TwoViewGeometryConfiguration.PLANAR_OR_PANORAMIC),
)


@dataclass(frozen=True, kw_only=True)
class VerifiedPairs:
    """What geometric verification left."""

    num_pairs: int  # pairs with matches
    num_verified: int  # pairs with enough inliers
    num_inliers: int
    num_rotation_only: int  # verified pairs explained by a homography
    images: frozenset[str]  # images with at least one verified pair


def verify_matches(
    path: Path,
    pairs: Pairs,
    config: DatabaseConfig,
    *,
    scales: Scales | None = None,
    seed: int = 0,
    num_threads: int | None = None,
    executor: Executor | None = None,
    progress: Progress = silent,
) -> None:
    """Estimates the two-view geometry of every matched pair, on all cores.

    Pairs that have one already are left as they are, so a run that was stopped goes
    on. Pairs with fewer than `min_num_inliers` inliers get an empty geometry, and so do
    those with no more than random matches can have (see `chance`). Pairs of fisheye
    lenses whose focal length is not known are verified with one that is searched in the
    matches; the cameras in the database stay as they are.

    Args:
        path: A database that `update_database` filled.
        pairs: The pairs to verify; those without matches are passed over.
        config: Thresholds.
        scales: See `Scales`; None for 1. Of two images the larger counts.
        seed: Of RANSAC.
        num_threads: None for all cores.
        executor: Has it done instead of threads; what it has done when it is stopped
            is merged by `update_database`.
        progress: Wraps the loop over pairs.

    Raises:
        StoreError: `path` is not a COLMAP database, is locked or cannot be written.
        SfmprepError: see `Outcome.expect_whole`.
    """
    scales = scales or {}

    def options(*names: str) -> pycolmap.TwoViewGeometryOptions:
        options = pycolmap.TwoViewGeometryOptions()
        options.min_num_inliers = config.min_num_inliers
        scale = max(scales.get(name, 1.0) for name in names)
        options.ransac.max_error = config.max_error_px * scale
        options.ransac.min_num_trials = _MIN_TRIALS
        options.ransac.max_num_trials = _MAX_TRIALS
        options.ransac.dyn_num_trials_multiplier = _TRIALS_FACTOR
        options.ransac.random_seed = seed
        return options

    with (
        write_errors(path),
        open_database(path) as database,
        thread_pool(num_threads) as pool,
    ):
        images = {image.name: image for image in database.read_all_images()}
        by_id = {image.image_id: image for image in images.values()}

        @lru_cache(maxsize=_CACHED_IMAGES)
        def points(image_id: int) -> Float64:
            return database.read_keypoints(image_id)[:, :2].astype(np.float64)

        asked = [
            (images[name0].image_id, images[name1].image_id)
            for name0, name1 in pairs
            if name0 in images and name1 in images
        ]
        missing = [
            ids
            for ids in asked
            if database.exists_matches(*ids)
            and not database.exists_two_view_geometry(*ids)
        ]

        cameras = assume_fisheye_focal_lengths(
            database,
            asked if missing else (),
            max_error_px=config.max_error_px,
            scales=scales,
            seed=seed,
            progress=progress,
        )

        def call(ids: tuple[int, int]) -> _Call:
            first, second = (by_id[image_id] for image_id in ids)
            return (
                *(cameras[first.camera_id], points(first.image_id)),
                *(cameras[second.camera_id], points(second.image_id)),
                database.read_matches(*ids),
                options(first.name, second.name),
            )

        if executor is not None and missing:
            shards = shards_of(path)
            shards.mkdir(exist_ok=True)
            calls = _Calls(missing, call)
            outcome = executor.run(
                *(_Verification(), lambda _: calls, len(missing), shards),
                desc="verify",
                progress=progress,
            )
        else:
            outcome = Outcome()

            def verified() -> Iterator[pycolmap.TwoViewGeometry]:
                # in batches, to bound what waits in memory
                for batch in batched(missing, _VERIFY_BATCH):
                    jobs = [pool.submit(_estimate, *call(ids)) for ids in batch]
                    for job in jobs:
                        yield job.result()

            geometries = progress(verified(), desc="verify", total=len(missing))
            for ids, geometry in zip(missing, geometries, strict=True):
                database.write_two_view_geometry(*ids, geometry)
    merge_geometries(path)
    outcome.expect_whole(path)


class _Calls(Sequence[tuple[tuple[int, int], _Call]]):
    """Pairs of ids with the arguments of `_estimate`, read when they are asked for."""

    def __init__(
        self, pairs: Sequence[tuple[int, int]], read: Callable[[tuple[int, int]], _Call]
    ) -> None:
        self._pairs, self._read = pairs, read

    def __len__(self) -> int:
        return len(self._pairs)

    @overload
    def __getitem__(self, at: int) -> tuple[tuple[int, int], _Call]: ...
    @overload
    def __getitem__(self, at: slice) -> list[tuple[tuple[int, int], _Call]]: ...
    def __getitem__(self, at: int | slice) -> Any:
        if isinstance(at, slice):
            return [(ids, self._read(ids)) for ids in self._pairs[at]]
        return self._pairs[at], self._read(self._pairs[at])


@dataclass(frozen=True)
class _Verification:
    """Estimates pairs that come with all that is needed, into a database of its own.

    It reads no database: SQLite on a network disk loses its locks.
    """

    chunks_a_device: ClassVar[int] = 16
    suffix: ClassVar[str] = ".db"
    has_network: ClassVar[bool] = False

    def run(self, device: str, part: Path, link: Link) -> None:
        with pycolmap.Database.open(part) as shard:
            for calls in link.chunks(0):
                for (id0, id1), call in link.progress(calls):
                    shard.write_two_view_geometry(id0, id1, _estimate(*call))

    def files(self, items: Sequence[object]) -> tuple[Path, ...]:
        return ()

    def below(self, folder: Path) -> _Verification:
        return self


def _estimate(
    camera0: pycolmap.Camera,
    points0: Float64,
    camera1: pycolmap.Camera,
    points1: Float64,
    matches: NDArray[np.uint32],
    options: pycolmap.TwoViewGeometryOptions,
) -> pycolmap.TwoViewGeometry:
    """The geometry of a pair; an empty one where random matches could have it."""
    found = pycolmap.estimate_two_view_geometry(
        camera0, points0, camera1, points1, matches, options
    )
    needed = options.min_num_inliers
    if sample := _SAMPLES.get(int(found.config)):
        share = max(
            share_of_band((camera.width, camera.height), options.ransac.max_error)
            for camera in (camera0, camera1)
        )
        needed = max(needed, least_inliers(len(matches), share, sample))
    is_proved = len(found.inlier_matches) >= needed
    return found if is_proved else pycolmap.TwoViewGeometry()


def read_verified(path: Path) -> VerifiedPairs:
    """Counts what geometric verification left in a database.

    Raises:
        StoreError: `path` is not a COLMAP database, or is locked.
    """
    # pycolmap gives the kind of a geometry only together with all of its inliers
    with looked_into(path) as database:
        names = dict(database.execute("SELECT image_id, name FROM images"))
        [[num_pairs]] = database.execute("SELECT COUNT(*) FROM matches WHERE rows > 0")
        # counted by SQLite: a list of all pairs would be the largest thing in memory
        [counts] = database.execute(
            "SELECT COUNT(*), COALESCE(SUM(rows), 0),"
            " COALESCE(SUM(config IN (?, ?)), 0)"
            " FROM two_view_geometries WHERE rows > 0",
            _ROTATION_ONLY,
        )
        images: set[int] = set()
        for (pair_id,) in database.execute(
            "SELECT pair_id FROM two_view_geometries WHERE rows > 0"
        ):
            images.update(pycolmap.pair_id_to_image_pair(pair_id))
    num_verified, num_inliers, num_rotation_only = counts
    return VerifiedPairs(
        num_pairs=num_pairs,
        num_verified=num_verified,
        num_inliers=num_inliers,
        num_rotation_only=num_rotation_only,
        images=frozenset(names[image_id] for image_id in images),
    )


def count_inliers(path: Path) -> dict[Pair, int]:
    """The number of inliers of every verified pair; pairs with none are left out.

    Raises:
        StoreError: `path` is not a COLMAP database, is damaged or locked.
    """
    found: dict[Pair, int] = {}
    with as_written(path), looked_into(path) as database:
        names = dict(database.execute("SELECT image_id, name FROM images"))
        for pair_id, count in database.execute(
            "SELECT pair_id, rows FROM two_view_geometries WHERE rows > 0"
        ):
            first, second = pycolmap.pair_id_to_image_pair(pair_id)
            name0, name1 = sorted((names[first], names[second]))
            found[name0, name1] = count
    return found
