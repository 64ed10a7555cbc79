"""Focal lengths in a database: searched in its pairs, written to its cameras."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.mapping.focal_length import (
    FocalLength,
    MatchedViews,
    find_focal_lengths,
    is_fisheye,
    with_focal_length,
)
from sfmprep.mapping.joint_focal_lengths import find_joint_focal_lengths
from sfmprep.mapping.view_reader import Scales, ViewReader
from sfmprep.progress import Progress, batched, silent
from sfmprep.threads import thread_pool

logger = logging.getLogger(__name__)

_CONTRADICTED = 1.5
_MAX_NAMED = 3  # cameras of which the same is said, each in a line of its own
_BATCH = 256  # pairs in memory at once
_TRIALS = (30, 1000)  # of RANSAC among inliers


def calibrate_database(
    path: Path,
    *,
    known: Collection[int] = (),
    max_error_px: float,
    scales: Scales | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> None:
    """Gives cameras the focal length that the inliers of their verified pairs tell.

    A camera is marked as having a prior where its pairs tell one, where they do not
    contradict the one it has, and, since COLMAP takes no other, where it is a fisheye
    lens. Cameras without verified pairs stay as they are. Two-view geometries stay.

    Args:
        path: A COLMAP database whose pairs are verified; it is changed.
        known: Ids of cameras that are left alone.
        max_error_px: The largest distance of an inlier from its epipolar line, pixels
            of what the features saw.
        scales: See `Scales`; None for 1.
        seed: Of RANSAC.
        progress: Wraps the loop over pairs.
    """
    with pycolmap.Database.open(path) as database:
        cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
        ids, counts = database.read_two_view_geometry_num_inliers()
        asked = cameras.keys() - set(known)
        reader = ViewReader(database, max_error_px, scales)
        inliers = dict(
            zip(map(pycolmap.pair_id_to_image_pair, ids), counts, strict=True)
        )
        found = _search(cameras, reader, inliers, asked, seed, progress)
        _log_all(cameras, found, reader)
        for key in sorted(asked):
            camera = cameras[key]
            if key in found:
                changed = with_focal_length(camera, found[key].pixels)
                changed.has_prior_focal_length = found[key].is_known or is_fisheye(
                    camera
                )
                database.update_camera(changed)


def _log_all(
    cameras: Mapping[int, pycolmap.Camera],
    found: Mapping[int, FocalLength],
    reader: ViewReader,
) -> None:
    """A line a camera, or one for all of which the same is to be said."""
    alike = defaultdict(list)
    for key in sorted(found):
        focal, is_prior = found[key], cameras[key].has_prior_focal_length
        alike[focal.refused, focal.is_known, is_prior].append(key)
    for (refused, is_known, is_prior), keys in alike.items():
        if len(keys) <= _MAX_NAMED:
            for key in keys:
                _log(reader.name_of(key), cameras[key], found[key])
            continue
        pixels = [found[key].pixels for key in keys]
        if refused:
            said = (
                "the focal lengths that EXIF tells are contradicted by the matches;"
                " %.0f to %.0f px, which fit them better, are used"
            )
        elif not is_known:
            said = (
                "the verified pairs do not tell the focal lengths for sure; guesses of"
                " %.0f to %.0f px are used, and poses may be wrong. If they are known:"
                " --set database.focal_length=PIXELS"
            )
        elif is_prior:
            said = (
                "the matches do not contradict the focal lengths of %.0f to %.0f px"
                " that EXIF tells"
            )
        else:
            said = "the matches tell focal lengths of %.0f to %.0f px"
        logger.log(
            logging.INFO if is_known and not refused else logging.WARNING,
            f"%d cameras, such as that of %s: {said}",
            *(len(keys), reader.name_of(keys[0]), min(pixels), max(pixels)),
        )


def _search(
    cameras: Mapping[int, pycolmap.Camera],
    reader: ViewReader,
    inliers: Mapping[tuple[int, int], int],
    asked: Collection[int],
    seed: int,
    progress: Progress,
) -> dict[int, FocalLength]:
    """Asks the pairs of one camera, and of those that need it, pairs of two."""
    fisheye = {key for key in asked if is_fisheye(cameras[key])}
    alone = fisheye | reader.with_own_pairs(inliers).intersection(asked)
    found = find_focal_lengths(
        cameras,
        reader.read_telling(inliers, alone, inliers=True),
        known=cameras.keys() - alone,
        seed=seed,
        progress=progress,
    )
    unsure = {key for key in found.keys() - fisheye if not found[key].is_known}
    mixed = (set(asked) - alone) | unsure
    pairs = reader.choose(
        {
            pair: count
            for pair, count in inliers.items()
            if len(ends := set(reader.cameras_of(pair))) == 2 or not unsure & ends
        },
        mixed,
    )
    jointly = find_joint_focal_lengths(
        {**cameras, **_with_found(cameras, found)},
        _read_all(reader, pairs, progress),
        mixed,
    )
    for key, focal in jointly.items():
        if key not in found:
            found[key] = focal
        elif focal.is_known:
            found[key] = replace(focal, refused=found[key].refused)
    left = set(asked) - found.keys()  # such as those with pairs of fisheye lenses alone
    if not left:
        return found
    told = {**cameras, **_with_found(cameras, found)}
    return found | find_focal_lengths(
        told,
        reader.read_telling(inliers, left, inliers=True),
        known=told.keys() - left,
        seed=seed,
        progress=progress,
    )


def _with_found(
    cameras: Mapping[int, pycolmap.Camera], found: Mapping[int, FocalLength]
) -> dict[int, pycolmap.Camera]:
    """The cameras whose focal lengths were found; priors where they are known."""
    changed = {}
    for key, focal in found.items():
        changed[key] = with_focal_length(cameras[key], focal.pixels)
        changed[key].has_prior_focal_length = focal.is_known
    return changed


def _read_all(
    reader: ViewReader, pairs: Sequence[tuple[int, int]], progress: Progress
) -> Iterator[MatchedViews]:
    """The inliers of pairs, one pair in memory at a time."""
    if pairs:
        views = (reader.read(pair, inliers=True) for pair in pairs)
        yield from progress(views, desc="calibrate", total=len(pairs))


def assume_fisheye_focal_lengths(
    database: pycolmap.Database,
    pairs: Iterable[tuple[int, int]],
    *,
    max_error_px: float,
    scales: Scales | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[int, pycolmap.Camera]:
    """The cameras of a database, fisheye lenses with a focal length to verify by.

    COLMAP verifies pairs of fisheye lenses with rays, and so only where it is told the
    focal length. Where it is not, it is searched in the matches of some pairs.

    Args:
        database: It is not changed.
        pairs: Ids of images whose matches may be asked.
        max_error_px: As for `calibrate_database`.
        scales: See `Scales`; None for 1.
        seed: Of RANSAC.
        progress: Wraps the loop over pairs.

    Returns:
        By id; other cameras as they are.
    """
    cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
    asked = {
        key
        for key, camera in cameras.items()
        if is_fisheye(camera) and not camera.has_prior_focal_length
    }
    if not asked:
        return cameras
    reader = ViewReader(database, max_error_px, scales)
    ids, counts = database.read_num_matches()
    matched = dict(zip(map(pycolmap.pair_id_to_image_pair, ids), counts, strict=True))
    wanted = {tuple(sorted(pair)) for pair in pairs}
    found = find_focal_lengths(
        cameras,
        reader.read_telling(
            {pair: n for pair, n in matched.items() if tuple(sorted(pair)) in wanted},
            asked,
            inliers=False,
        ),
        known=cameras.keys() - asked,
        seed=seed,
        progress=progress,
    )
    for key in asked:
        pixels = found[key].pixels if key in found else cameras[key].mean_focal_length()
        cameras[key] = with_focal_length(cameras[key], pixels)
    return cameras


def calibrate_pairs(
    path: Path,
    *,
    max_error_px: float,
    scales: Scales | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> None:
    """Gives verified pairs the relative pose that their cameras' focal lengths tell.

    COLMAP's global mapper takes no others. Only inliers are asked, and pairs where
    they do not agree on a pose, or whose focal lengths are not known, stay as they are.

    Args:
        path: A COLMAP database whose pairs are verified; it is changed.
        max_error_px: As for `calibrate_database`.
        scales: See `Scales`; None for 1.
        seed: Of RANSAC.
        progress: Wraps the loop over pairs.
    """
    with (
        pycolmap.Database.open(path) as database,
        thread_pool() as pool,
    ):
        cameras = {camera.camera_id: camera for camera in database.read_all_cameras()}
        reader = ViewReader(database, max_error_px, scales)
        ids, counts = database.read_two_view_geometry_num_inliers()
        verified = [
            pair
            for pair, count in zip(
                map(pycolmap.pair_id_to_image_pair, ids), counts, strict=True
            )
            if count
            and all(cameras[k].has_prior_focal_length for k in reader.cameras_of(pair))
        ]

        def calibrated() -> Iterator[pycolmap.TwoViewGeometry]:
            # in batches, to bound what waits in memory
            for batch in batched(verified, _BATCH):
                jobs = [
                    pool.submit(
                        _relative_pose, cameras, reader.read(pair, inliers=True), seed
                    )
                    for pair in batch
                ]
                for job in jobs:
                    yield job.result()

        geometries = progress(calibrated(), desc="calibrate pairs", total=len(verified))
        for pair, found in zip(verified, geometries, strict=True):
            if found.config == pycolmap.TwoViewGeometryConfiguration.CALIBRATED:
                old = database.read_two_view_geometry(*pair)
                chosen = np.asarray(found.inlier_matches)[:, 0]
                found.inlier_matches = np.asarray(old.inlier_matches)[chosen]
                database.update_two_view_geometry(*pair, found)


def _relative_pose(
    cameras: Mapping[int, pycolmap.Camera], views: MatchedViews, seed: int
) -> pycolmap.TwoViewGeometry:
    """The calibrated geometry of inliers; its matches are rows of them, twice."""
    options = pycolmap.TwoViewGeometryOptions()
    options.compute_relative_pose = True
    options.ransac.random_seed = seed
    options.ransac.min_num_trials, options.ransac.max_num_trials = _TRIALS
    options.ransac.max_error = views.max_error_px
    first, second = (cameras[key] for key in views.camera_ids)
    rows = np.arange(len(views.xy[0]), dtype=np.uint32)
    return pycolmap.estimate_calibrated_two_view_geometry(
        *(first, views.xy[0], second, views.xy[1]),
        np.stack([rows, rows], axis=1),
        options,
    )


def set_contradicted(
    path: Path, model: pycolmap.Reconstruction, *, known: Collection[int] = ()
) -> bool:
    """Gives cameras the focal length of a model where that is far from their own.

    Far is half as long again, or as short. They are then marked as having a prior.

    Args:
        path: A COLMAP database that the model is from; its cameras are changed.
        model: One whose adjustments moved focal lengths.
        known: Ids of cameras that are left alone.

    Returns:
        Whether there was one.
    """
    found = False
    with pycolmap.Database.open(path) as database:
        for camera in database.read_all_cameras():
            key = camera.camera_id
            if key in known or key not in model.cameras:
                continue
            was, now = (
                each.mean_focal_length() for each in (camera, model.cameras[key])
            )
            if not 1 / _CONTRADICTED < now / was < _CONTRADICTED:
                logger.info(
                    "camera %d: the model's focal length of %.0f px contradicts the"
                    " %.0f px that it was mapped with; mapping again",
                    *(key, now, was),
                )
                database.update_camera(with_focal_length(camera, now))
                found = True
    return found


def restore_pairs(path: Path, source: Path) -> None:
    """Gives pairs back the two-view geometries that `calibrate_pairs` changed.

    Args:
        path: A COLMAP database; it is changed.
        source: The one that it is a copy of.
    """
    with (
        pycolmap.Database.open(path) as database,
        pycolmap.Database.open(source) as original,
    ):
        ids, _ = original.read_two_view_geometry_num_inliers()
        for pair in map(pycolmap.pair_id_to_image_pair, ids):
            database.update_two_view_geometry(
                *pair, original.read_two_view_geometry(*pair)
            )


def _log(whose: str, camera: pycolmap.Camera, found: FocalLength) -> None:
    told = camera.mean_focal_length()
    if found.refused:
        logger.warning(
            "%s: the focal length of %.0f px that EXIF tells is contradicted by the"
            " matches; %.0f px, which fit them, are used%s",
            *(whose, told, found.pixels),
            "" if found.is_known else " as a guess, since they hardly tell it",
        )
    elif not found.is_known:
        logger.warning(
            "%s: the verified pairs do not tell the focal length for sure; a guess of"
            " %.0f px is used, and poses may be wrong. If it is known: --set"
            " database.focal_length=PIXELS",
            *(whose, found.pixels),
        )
    elif camera.has_prior_focal_length:
        logger.info(
            "%s: the matches do not contradict the focal length of %.0f px that EXIF"
            " tells",
            *(whose, told),
        )
    else:
        logger.info(
            "%s: the matches tell a focal length of %.0f px", whose, found.pixels
        )
