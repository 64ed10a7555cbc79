"""Pairs that a model can grow from: many inliers, seen at a wide angle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pycolmap

_MAX_ASKED = 40  # pairs whose angle is computed, those with the most inliers
_MIN_INLIERS = 30
_MIN_ANGLE_DEG = 4.0
_WIDE_DEG = 16.0  # COLMAP's first limit; wider is no better


def initial_pairs(
    database: Path,
    tried: Sequence[tuple[int, ...]],
    *,
    max_error_px: float,
    limit: int,
    seed: int = 0,
) -> list[tuple[int, int]]:
    """Chooses pairs of images to start from, the most promising first.

    No two of them, nor one of them and one of `tried`, share an image: a start from a
    neighbour goes the same way.

    Args:
        database: A COLMAP database whose pairs are verified and cameras calibrated.
        tried: Ids of images that were started from.
        max_error_px: The largest distance of an inlier from its epipolar line, pixels
            of the file.
        limit: How many pairs.
        seed: Of RANSAC.

    Returns:
        Ids of images; fewer than `limit` where no more pairs have 30 inliers and see
        them at 4 degrees or more.
    """
    with pycolmap.Database.open(database) as opened:
        ids, counts = opened.read_two_view_geometry_num_inliers()
        strongest = sorted(zip(counts, ids, strict=True), key=lambda c: (-c[0], c[1]))
        cameras = {camera.camera_id: camera for camera in opened.read_all_cameras()}
        owner = {image.image_id: image.camera_id for image in opened.read_all_images()}
        scored = []
        for count, pair_id in strongest[:_MAX_ASKED]:
            pair = pycolmap.pair_id_to_image_pair(pair_id)
            if count < _MIN_INLIERS:
                break
            angle = _angle_deg(opened, pair, cameras, owner, max_error_px, seed)
            if angle >= _MIN_ANGLE_DEG:
                scored.append((count * min(angle, _WIDE_DEG), pair))
    used = {image_id for pair in tried for image_id in pair}
    chosen: list[tuple[int, int]] = []
    for _, pair in sorted(scored, key=lambda s: (-s[0], s[1])):
        if len(chosen) < limit and used.isdisjoint(pair):
            chosen.append(pair)
            used.update(pair)
    return chosen


def _angle_deg(
    database: pycolmap.Database,
    pair: tuple[int, int],
    cameras: dict[int, pycolmap.Camera],
    owner: dict[int, int],
    max_error_px: float,
    seed: int,
) -> float:
    """The median angle between the rays of a pair's inliers; 0 where it only turned."""
    options = pycolmap.TwoViewGeometryOptions()
    options.compute_relative_pose = True
    options.ransac.max_error = max_error_px
    options.ransac.random_seed = seed
    views = [
        (cameras[owner[k]], database.read_keypoints(k)[:, :2].astype(np.float64))
        for k in pair
    ]
    index = database.read_two_view_geometry(*pair).inlier_matches
    geometry = pycolmap.estimate_calibrated_two_view_geometry(
        *views[0], *views[1], np.asarray(index), options
    )
    return float(np.degrees(max(geometry.tri_angle, 0.0)))
