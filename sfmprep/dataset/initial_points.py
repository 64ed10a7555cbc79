"""The points that training starts from; poses and cameras never change with them.

`sparse` takes the mapper's points that are well supported. `semi` adds every match that
fits the poses and has no point yet: most are seen in two images only, which COLMAP's
mapper does not triangulate. What is left is thinned evenly where it is too much.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import SeedConfig
from sfmprep.dataset.colours import point_colours
from sfmprep.dataset.deep_points import DeepPoints, deep_points
from sfmprep.dataset.new_points import (
    among_neighbours,
    join_keypoints,
    new_points,
    owners,
)
from sfmprep.dataset.support import Points, measured, nothing, refused_by
from sfmprep.geometry.pointmaps import Depths
from sfmprep.geometry.tracks import Keypoints, consistent_links
from sfmprep.geometry.uncertainty import noise_px
from sfmprep.geometry.views import ModelArrays, Observations, Views
from sfmprep.progress import Progress, silent
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import FeatureStore
from sfmprep.types import Bytes, Float64, Ids, Index, Mask

logger = logging.getLogger(__name__)

_MIN_POINTS = 100
_MIN_SHARE = 0.1
_MIN_VOXELS_SHARE = 0.99  # of the cap, when points are thinned
_MAX_BISECTIONS = 40


def seed_points(
    model: pycolmap.Reconstruction,
    arrays: ModelArrays,
    images: ImageSet,
    features: FeatureStore,
    matches: MatchReader,
    config: SeedConfig,
    *,
    scales: Mapping[str, float] | None = None,
    depths: Mapping[str, Depths] = MappingProxyType({}),
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
        scales: Pixels of a file for one of what its features saw, by image name, which
            thresholds follow; None for 1.
        depths: Of pixels of the images, by name, which give points that one image sees.
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
    by_view = np.array([(scales or {}).get(name, 1.0) for name in views.names])
    old = measured(views, by_view, arrays.observations, arrays.xyz)
    kept = _well_supported(views, old, noise, config)
    old, ids = old.select(kept), arrays.point_ids[kept]
    joined = np.empty(0, np.int64)
    new = nothing()
    keypoints = None
    if config.level == "semi":
        keypoints = Keypoints.read(model, arrays, features)
        links = consistent_links(
            *(views, keypoints, matches),
            max_error_px=config.max_error_px,
            scales=by_view,
            progress=progress,
        )
        owner = owners(keypoints, old)
        joined = join_keypoints(
            *(views, by_view, keypoints, links, owner, old.xyz), config.max_error_px
        )
        free = np.all(owner[links.ends] < 0, axis=1)
        new = new_points(
            *(views, by_view, keypoints, links.select(free), noise, config)
        )
        new = new.select(among_neighbours(views, old, new))
    deep = deep_points(views, depths)
    stays = _thinned(
        np.concatenate((old.xyz, new.xyz, deep.xyz)),
        np.concatenate(
            (
                *(old.observations.counts(), new.observations.counts()),
                np.zeros(len(deep.xyz), np.int64),
            )
        ),
        np.concatenate((old.errors, new.errors, np.zeros(len(deep.xyz)))),
        config.max_points,
    )
    stays_old, stays_new, stays_deep = np.split(stays, [len(old), len(old) + len(new)])
    new, deep = new.select(stays_new), deep.select(stays_deep)
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
    _add_deep(seed, views, deep, _colours_of(views, images, deep))
    seed.update_point_3d_errors()
    logger.info(
        "seed cloud: %d of the mapper's %d points, and %d new ones, %d by depths",
        *(stays_old.sum(), len(kept), len(new) + len(deep.xyz), len(deep.xyz)),
    )
    return seed


def _add_deep(
    model: pycolmap.Reconstruction, views: Views, deep: DeepPoints, colours: Bytes
) -> None:
    """Adds points, and to the image that tells it a keypoint for each."""
    for view in np.unique(deep.view).tolist():
        image = model.images[int(views.ids[view])]
        rows = np.flatnonzero(deep.view == view)
        for row in rows.tolist():
            element = pycolmap.TrackElement(image.image_id, len(image.points2D))
            image.points2D.append(pycolmap.Point2D(deep.xy[row]))
            model.add_point3D(deep.xyz[row], pycolmap.Track([element]), colours[row])


def _colours_of(views: Views, images: ImageSet, deep: DeepPoints) -> Bytes:
    """The colours of points by the one view each that tells them."""
    count = len(deep.xyz)
    if not count:
        return np.empty((0, 3), np.uint8)
    seen = Observations(
        point=np.arange(count),
        view=deep.view,
        keypoint=np.full(count, -1),
        xy=deep.xy,
        ray=np.empty((count, 3)),
    )
    return point_colours(views, images, seen)


# ---------------------------------------------------------------------------- filter
def _well_supported(
    views: Views, points: Points, noise: float, config: SeedConfig
) -> Mask:
    """Which points meet all thresholds; all of them where next to none would."""
    refused = refused_by(views, points, noise, config)
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
    points: Points,
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
