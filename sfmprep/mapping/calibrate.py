"""Focal lengths in a database: searched in its pairs, written to its cameras."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from functools import lru_cache
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
from sfmprep.progress import Progress, batched, silent
from sfmprep.threads import thread_pool
from sfmprep.types import Float64

logger = logging.getLogger(__name__)

_CONTRADICTED = 1.5
# Pairs of one camera that are read, those with the most matches: of one of many cameras
# fewer, so that a capture with one an image reads ten pairs an image and not all.
_POOL = 120
_MIN_POOL = 10
_BATCH = 256  # pairs in memory at once
_CACHED_IMAGES = 1024
_MAX_TRIALS = 1000  # of RANSAC among inliers

Scales = Mapping[str, float]
"""How many pixels of its file a pixel of what the features saw is, by image name."""


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
        reader = _Reader(database, max_error_px, scales)
        views = reader.read_telling(
            dict(zip(map(pycolmap.pair_id_to_image_pair, ids), counts, strict=True)),
            asked,
            inliers=True,
        )
        found = find_focal_lengths(
            cameras, views, known=known, seed=seed, progress=progress
        )
        for key in sorted(asked):
            camera = cameras[key]
            if key in found:
                _log(reader.name_of(key), camera, found[key])
                changed = with_focal_length(camera, found[key].pixels)
                changed.has_prior_focal_length = found[key].is_known or is_fisheye(
                    camera
                )
                database.update_camera(changed)


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
    reader = _Reader(database, max_error_px, scales)
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
        reader = _Reader(database, max_error_px, scales)
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
    options.ransac.max_num_trials = _MAX_TRIALS
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


class _Reader:
    """Reads the matches of pairs, with what is known of their images."""

    def __init__(
        self,
        database: pycolmap.Database,
        max_error_px: float,
        scales: Scales | None,
    ) -> None:
        self._database = database
        self._max_error_px = max_error_px
        self._scales = scales
        self._images = {image.image_id: image for image in database.read_all_images()}
        self._points = lru_cache(maxsize=_CACHED_IMAGES)(self._read_points)

    def _read_points(self, image_id: int) -> Float64:
        return self._database.read_keypoints(image_id)[:, :2].astype(np.float64)

    def cameras_of(self, pair: tuple[int, int]) -> tuple[int, int]:
        """Ids of the cameras that took two images."""
        first, second = (self._images[k].camera_id for k in pair)
        return first, second

    def name_of(self, camera_id: int) -> str:
        """What a camera took, in words: its first image by name, and how many more."""
        first, *others = sorted(
            image.name
            for image in self._images.values()
            if image.camera_id == camera_id
        )
        if not others:
            return first
        more = f"{len(others)} other images" if len(others) > 1 else "another image"
        return f"{first} and {more} of its camera"

    def read_telling(
        self,
        counts: Mapping[tuple[int, int], int],
        asked: Collection[int],
        *,
        inliers: bool,
    ) -> list[MatchedViews]:
        """The pairs of some cameras, those that tell most first."""
        limit = max(_POOL // max(len(asked), 1), _MIN_POOL)
        taken: Counter[tuple[int, bool]] = Counter()  # by camera, its own and shared
        chosen = []
        for pair in sorted(counts, key=lambda pair: (-counts[pair], pair)):
            cameras = set(self.cameras_of(pair))
            kinds = [(key, len(cameras) == 1) for key in cameras.intersection(asked)]
            if counts[pair] and any(taken[kind] < limit for kind in kinds):
                taken.update(kinds)
                chosen.append(pair)
        views = (self.read(pair, inliers=inliers) for pair in chosen)
        return sorted(views, key=_telling, reverse=True)

    def read(self, pair: tuple[int, int], *, inliers: bool) -> MatchedViews:
        """The inliers of a pair, or all its matches."""
        if inliers:
            index = self._database.read_two_view_geometry(*pair).inlier_matches
        else:
            index = self._database.read_matches(*pair)
        images = [self._images[k] for k in pair]
        xy = [
            self._points(image.image_id)[column]
            for image, column in zip(images, np.asarray(index).T, strict=True)
        ]
        scale = max((self._scales or {}).get(image.name, 1.0) for image in images)
        return MatchedViews(
            camera_ids=self.cameras_of(pair),
            xy=(xy[0], xy[1]),
            max_error_px=self._max_error_px * scale,
        )


def _telling(views: MatchedViews) -> float:
    """Rises with the matches and, more slowly, with how far they moved together.

    The longest motions with few matches are often those of wrong pairs: ranked by the
    product, 17 images of `fox` tell 860 px for 576, and by the matches alone 20 of
    `tum-fr2-desk20` 620 for 521.
    """
    if not len(views.xy[0]):
        return 0.0
    moved = np.linalg.norm(views.xy[0] - views.xy[1], axis=1)
    return float(len(moved) * np.sqrt(np.median(moved)))


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
            "%s: the verified pairs do not tell the focal length, so it stays a guess"
            " (%.0f px); poses may be wrong. If it is known: --set"
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
