"""The points that training starts from; poses and cameras never change with them.

`sparse` takes the mapper's points that are well supported. `semi` adds every match that
fits the poses and has no point yet: most are seen in two images only, which COLMAP's
mapper does not triangulate. What is left is thinned evenly where it is too much.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass

import numpy as np
import pycolmap
from scipy.spatial import cKDTree

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import SeedConfig
from sfmprep.dataset.colours import point_colours
from sfmprep.geometry.tracks import Keypoints, Links, consistent_links, link_tracks
from sfmprep.geometry.triangulate import (
    largest_angles_deg,
    relative_stddev,
    reprojection_errors,
    triangulate,
)
from sfmprep.geometry.uncertainty import noise_px
from sfmprep.geometry.views import ModelArrays, Observations, Views
from sfmprep.progress import Progress, silent
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import Bytes, Float64, Ids, Index, Mask

logger = logging.getLogger(__name__)

_MIN_POINTS = 100
_MIN_SHARE = 0.1
_BLOCK_OBSERVATIONS = 1 << 18
_MAX_REFITS = 4  # observations that a track may lose before it is given up
_MAX_EXTENSIONS = 3  # links from a point to a keypoint that joins it
_MIN_VOXELS_SHARE = 0.99  # of the cap, when points are thinned
_MAX_BISECTIONS = 40
_NUM_BESIDE = 8
_BEYOND = 1.1  # times the range of distances


@dataclass(frozen=True, kw_only=True, eq=False)
class _Points:
    """Points, their observations, and how good they are."""

    xyz: Float64  # [N, 3]
    observations: Observations
    errors: Float64  # [N] mean reprojection error, pixels

    def __len__(self) -> int:
        return len(self.xyz)

    def select(self, kept: Mask) -> _Points:
        """Some of them."""
        return _Points(
            xyz=self.xyz[kept],
            observations=self.observations.select(kept[self.observations.point]),
            errors=self.errors[kept],
        )


def seed_points(
    model: pycolmap.Reconstruction,
    arrays: ModelArrays,
    images: ImageSet,
    features: FeatureStore,
    matches: MatchStore,
    config: SeedConfig,
    *,
    progress: Progress = silent,
) -> pycolmap.Reconstruction:
    """Returns a copy of a model whose points are those to start training from.

    Thresholds that would leave less than a tenth of the mapper's points, or fewer than
    100 and less than half, do not fit the capture: all of these points then stay, with
    a warning in the log.

    Args:
        model: Poses and points; not changed.
        arrays: Of this model.
        images: The photographs, read for the colours of new points (level semi only).
        features: What the model was made from (level semi only).
        matches: Likewise, of all pairs, verified or not.
        config: Level, thresholds and the cap.
        progress: Wraps the loop over pairs and that over photographs.

    Returns:
        The same cameras, images and poses. Points of the model keep their ids and
        positions, but may be seen by more images; new ones have higher ids.

    Raises:
        StoreError: The model's keypoints are not those of `features`.
        ImageError: A photograph cannot be read.
    """
    views = arrays.views
    noise = noise_px(arrays)
    old = _measured(views, arrays.observations, arrays.xyz)
    kept = _well_supported(views, old, noise, config)
    old, ids = old.select(kept), arrays.point_ids[kept]
    joined = np.empty(0, np.int64)
    new = _nothing()
    keypoints = None
    if config.level == "semi":
        keypoints = Keypoints.read(model, arrays, features)
        links = consistent_links(
            *(views, keypoints, matches),
            max_error_px=config.max_error_px,
            progress=progress,
        )
        owner = _owners(keypoints, old)
        joined = _join(views, keypoints, links, owner, old.xyz, config.max_error_px)
        free = np.all(owner[links.ends] < 0, axis=1)
        new = _new_points(views, keypoints, links.select(free), noise, config)
        new = new.select(_among_neighbours(views, old, new))
    stays = _thinned(
        np.concatenate((old.xyz, new.xyz)),
        np.concatenate((old.observations.counts(), new.observations.counts())),
        np.concatenate((old.errors, new.errors)),
        config.max_points,
    )
    stays_old, new = stays[: len(old)], new.select(stays[len(old) :])
    seed = pycolmap.Reconstruction(model)
    for point_id in set(seed.point3D_ids()).difference(ids[stays_old].tolist()):
        seed.delete_point3D(point_id)
    if keypoints is not None:
        joined = joined[stays_old[owner[joined]]]
        _add_observations(
            seed, views, keypoints.observations(joined, owner[joined]), ids
        )
        colours = point_colours(views, images, new.observations, progress=progress)
        _add_points(seed, views, new, colours)
    seed.update_point_3d_errors()
    logger.info(
        "seed cloud: %d of the mapper's %d points, and %d new ones",
        *(stays_old.sum(), len(kept), len(new)),
    )
    return seed


# ---------------------------------------------------------------------------- filter
def _measured(views: Views, observations: Observations, xyz: Float64) -> _Points:
    errors = reprojection_errors(views, observations, xyz)
    means = np.empty(0)
    if len(errors):
        means = np.add.reduceat(errors, observations.starts) / observations.counts()
    return _Points(xyz=xyz, observations=observations, errors=means)


def _well_supported(
    views: Views, points: _Points, noise: float, config: SeedConfig
) -> Mask:
    """Which points meet all thresholds; all of them where next to none would."""
    refused = _refused(views, points, noise, config)
    kept: Mask = ~np.any(list(refused.values()), axis=0)
    left = int(kept.sum())
    if left < max(min(_MIN_POINTS, len(points) / 2), _MIN_SHARE * len(points)):
        worst = max(refused, key=lambda name: int(refused[name].sum()))
        logger.warning(
            "export.seed would leave %d of %d points, too few to start training from;"
            " %s alone takes %d. None is filtered; choose other thresholds.",
            *(left, len(points), worst, int(refused[worst].sum())),
        )
        return np.ones(len(points), bool)
    return kept


def _refused(
    views: Views, points: _Points, noise: float, config: SeedConfig
) -> dict[str, Mask]:
    """Which points every threshold takes, by its name."""
    observations, xyz = points.observations, points.xyz
    angles = largest_angles_deg(views, observations, xyz)
    refused = {
        "min_track_length": observations.counts() < config.min_track_length,
        "max_error_px": ~(points.errors <= config.max_error_px),
        "min_angle_deg": angles < config.min_angle_deg,
    }
    if config.max_uncertainty is not None:
        stddev = relative_stddev(views, observations, xyz, noise)
        refused["max_uncertainty"] = ~(stddev <= config.max_uncertainty)
    return refused


def _thinned(xyz: Float64, counts: Index, errors: Float64, most: int) -> Mask:
    """Which points [N] stay: the best one of every voxel, so that `most` stay.

    The best has the longest track, then the smallest error, then comes first.
    """
    kept = np.ones(len(xyz), bool)
    if len(xyz) <= most:
        return kept
    offsets = xyz - np.median(xyz, axis=0)
    high = float(np.median(np.abs(offsets))) or 1.0
    while len(np.unique(_voxels(offsets, high))) > most:
        high *= 2
    low = high * 1e-6
    for _ in range(_MAX_BISECTIONS):
        middle = (low * high) ** 0.5
        size = len(np.unique(_voxels(offsets, middle)))
        low, high = (middle, high) if size > most else (low, middle)
        if _MIN_VOXELS_SHARE * most <= size <= most:
            break
    voxels = _voxels(offsets, high)
    order = np.lexsort((errors, -counts, voxels))
    kept[order[1:]] = np.diff(voxels[order]) != 0
    return kept


def _voxels(offsets: Float64, size: float) -> Index:
    """A number [N] for the voxel of every point: three coordinates of 21 bits."""
    half = 1 << 20
    # To the nearest and not down: a voxel large enough then holds all points.
    steps = np.clip(np.rint(offsets / size), -half, half - 1).astype(np.int64) + half
    numbers: Index = (steps[:, 0] << 42) | (steps[:, 1] << 21) | steps[:, 2]
    return numbers


# ------------------------------------------------------------------------------ semi
def _owners(keypoints: Keypoints, points: _Points) -> Index:
    """The point [K] that every keypoint sees, -1 for none."""
    owner = np.full(len(keypoints), -1, np.int64)
    observations = points.observations
    owner[keypoints.offsets[observations.view] + observations.keypoint] = (
        observations.point
    )
    return owner


def _join(
    views: Views,
    keypoints: Keypoints,
    links: Links,
    owner: Index,
    xyz: Float64,
    max_error_px: float,
) -> Index:
    """Gives keypoints that are linked to a point and fit it to that point.

    Of several keypoints of one image the closest joins; `owner` is updated.

    Returns:
        The keypoints that joined.
    """
    joined = [np.empty(0, np.int64)]
    for _ in range(_MAX_EXTENSIONS):
        first, second = links.ends.astype(np.int64).T
        one = (owner[first] >= 0) != (owner[second] >= 0)
        first, second = first[one], second[one]
        keypoint = np.where(owner[first] < 0, first, second)
        point = np.maximum(owner[first], owner[second])
        candidates = keypoints.observations(keypoint, point)
        errors = reprojection_errors(views, candidates, xyz)
        order = np.argsort(errors, kind="stable")
        order = order[errors[order] <= max_error_px]
        place = point * len(views) + candidates.view
        has = np.flatnonzero(owner >= 0)
        order = order[
            ~np.isin(place[order], owner[has] * len(views) + keypoints.view(has))
        ]
        for value in (keypoint, place):
            _, best = np.unique(value[order], return_index=True)
            order = order[np.sort(best)]
        if not len(order):
            break
        owner[keypoint[order]] = point[order]
        joined.append(keypoint[order])
    return np.concatenate(joined)


def _new_points(
    views: Views, keypoints: Keypoints, links: Links, noise: float, config: SeedConfig
) -> _Points:
    """Triangulates what the links join, and keeps what meets the thresholds."""
    keypoint, track = link_tracks(links, keypoints)
    found = [_nothing()]
    start = 0
    while start < len(track):
        last = track[min(start + _BLOCK_OBSERVATIONS, len(track)) - 1]
        stop = int(np.searchsorted(track, last, side="right"))
        observations = keypoints.observations(
            keypoint[start:stop], track[start:stop] - track[start]
        )
        points = _fitted(views, observations, config.max_error_px)
        refused = _refused(views, points, noise, config)
        found.append(points.select(~np.any(list(refused.values()), axis=0)))
        start = stop
    return _joined_points(found)


def _fitted(views: Views, observations: Observations, max_error_px: float) -> _Points:
    """Points from tracks, without the observations that do not fit, worst first."""
    observations = observations.select(np.all(np.isfinite(observations.ray), axis=1))
    found = []
    for _ in range(_MAX_REFITS + 1):
        alone = observations.counts() < 2
        observations = observations.select(~alone[observations.point])
        if not len(observations):
            break
        xyz = triangulate(views, observations)
        errors = reprojection_errors(views, observations, xyz)
        largest = np.maximum.reduceat(errors, observations.starts)
        fits = largest <= max_error_px
        found.append(_measured(views, observations, xyz).select(fits))
        worst = errors == largest[observations.point]
        observations = observations.select(~(fits[observations.point] | worst))
    return _joined_points([_nothing(), *found])


def _among_neighbours(views: Views, old: _Points, new: _Points) -> Mask:
    """Which new points are no nearer and no further than what is beside them.

    A wrong match on the epipolar line gives a point at any depth, and nothing
    contradicts it where only two images see it. So in every image its distance must be
    within the range of those of the nearest points that the mapper found in three or
    more. Images with too few of these are not asked.
    """
    kept = np.ones(len(new), bool)
    long = old.observations.counts()[old.observations.point] > 2
    sure, doubtful = old.observations.select(long), new.observations
    sure_xyz = old.xyz[old.observations.counts() > 2]
    sure_rows, doubtful_rows = sure.by_view(len(views)), doubtful.by_view(len(views))
    for view, (own, asked) in enumerate(zip(sure_rows, doubtful_rows, strict=True)):
        if len(own) < _NUM_BESIDE or not len(asked):
            continue
        centre = views.centres[view]
        known = np.linalg.norm(sure_xyz[sure.point[own]] - centre, axis=1)
        distances = np.linalg.norm(new.xyz[doubtful.point[asked]] - centre, axis=1)
        _, beside = cKDTree(sure.xy[own]).query(doubtful.xy[asked], _NUM_BESIDE)
        nearest, furthest = known[beside].min(axis=1), known[beside].max(axis=1)
        kept[doubtful.point[asked]] &= (distances >= nearest / _BEYOND) & (
            distances <= furthest * _BEYOND
        )
    return kept


def _nothing() -> _Points:
    number, row = np.empty(0, np.int64), np.empty((0, 3))
    return _Points(
        xyz=row,
        errors=np.empty(0),
        observations=Observations(
            point=number, view=number, keypoint=number, xy=row[:, :2], ray=row
        ),
    )


def _joined_points(blocks: list[_Points]) -> _Points:
    shifts = np.cumsum([0, *(len(block) for block in blocks)])
    parts = [block.observations for block in blocks]
    return _Points(
        xyz=np.concatenate([block.xyz for block in blocks]),
        errors=np.concatenate([block.errors for block in blocks]),
        observations=Observations(
            point=np.concatenate(
                [p.point + shift for p, shift in zip(parts, shifts, strict=False)]
            ),
            view=np.concatenate([p.view for p in parts]),
            keypoint=np.concatenate([p.keypoint for p in parts]),
            xy=np.concatenate([p.xy for p in parts]),
            ray=np.concatenate([p.ray for p in parts]),
        ),
    )


# ----------------------------------------------------------------------------- model
def _add_observations(
    model: pycolmap.Reconstruction,
    views: Views,
    observations: Observations,
    ids: Ids,
) -> None:
    image_ids = views.ids[observations.view].tolist()
    point_ids = ids[observations.point].tolist()
    rows = observations.keypoint.tolist()
    for point_id, image_id, row in zip(point_ids, image_ids, rows, strict=True):
        model.add_observation(point_id, pycolmap.TrackElement(image_id, row))


def _add_points(
    model: pycolmap.Reconstruction,
    views: Views,
    points: _Points,
    colours: Bytes,
) -> None:
    observations = points.observations
    elements = [
        pycolmap.TrackElement(image_id, row)
        for image_id, row in zip(
            views.ids[observations.view].tolist(),
            observations.keypoint.tolist(),
            strict=True,
        )
    ]
    ends = np.cumsum(observations.counts()).tolist()
    start = 0
    for xyz, colour, end in zip(points.xyz, colours, ends, strict=True):
        model.add_point3D(xyz, pycolmap.Track(elements[start:end]), colour)
        start = end
