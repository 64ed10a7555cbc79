"""Pairs whose matches agree with each other but not with the poses.

Two views of different but equal-looking things (facades, windows, seats) pass geometric
verification; a model that is right elsewhere contradicts them.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfmprep.mapping.view_graph import PairTable, strongest_edges

Float64 = NDArray[np.float64]

_MIN_INLIERS = 30
_FITS_PX = 8.0
_MAX_SHARE_FITTING = 0.3
_PER_IMAGE = 10  # strongest pairs of each image that are looked at
_MAX_CACHED = 512


@dataclass(frozen=True, kw_only=True)
class Contradiction:
    """A pair whose matches agree with each other but not with the poses."""

    name0: str
    name1: str
    num_inliers: int
    share_fitting: float  # 0..1 of its verified matches, rounded to 0.001


def find_contradictions(
    database: Path,
    model: pycolmap.Reconstruction,
    pairs: PairTable,
    *,
    max_pairs: int = 20,
) -> list[Contradiction]:
    """Finds verified pairs that the poses contradict, strongest first.

    A pair is contradicted if it has 30 or more verified matches of which fewer than
    30 % lie within 8 px of the model's epipolar lines. The ten strongest pairs of each
    image are looked at; none are found among images without a pose.
    """
    ids = {model.images[k].name: k for k in model.reg_image_ids()}
    index, weights = pairs.verified_edges()
    keep = strongest_edges(index, weights, _PER_IMAGE) & (weights >= _MIN_INLIERS)

    @lru_cache(_MAX_CACHED)
    def rays(name: str) -> Float64:
        image = model.images[ids[name]]
        return np.asarray(model.cameras[image.camera_id].cam_from_img(image.points2D))

    found = []
    with pycolmap.Database.open(database) as opened:
        in_database = {i.name: i.image_id for i in opened.read_all_images()}
        for (row0, row1), inliers in zip(index[keep], weights[keep], strict=True):
            name0, name1 = pairs.names[row0], pairs.names[row1]
            if name0 not in ids or name1 not in ids:
                continue
            matches = opened.read_two_view_geometry(
                in_database[name0], in_database[name1]
            ).inlier_matches
            share = float(
                np.mean(
                    _distances_px(
                        model,
                        (ids[name0], ids[name1]),
                        rays(name0)[matches[:, 0]],
                        rays(name1)[matches[:, 1]],
                    )
                    < _FITS_PX
                )
            )
            if share < _MAX_SHARE_FITTING:
                found.append(
                    Contradiction(
                        name0=name0,
                        name1=name1,
                        num_inliers=int(inliers),
                        share_fitting=round(share, 3),
                    )
                )
    found.sort(key=lambda contradiction: -contradiction.num_inliers)
    return found[:max_pairs]


def _distances_px(
    model: pycolmap.Reconstruction,
    ids: tuple[int, int],
    xy0: Float64,
    xy1: Float64,
) -> Float64:
    """How far matches [M, 2] on the planes at depth 1 are from fitting two poses.

    The distance from the epipolar line in the second image, or from the place that the
    rotation alone gives where that is nearer: without a baseline there is no line.
    """
    first, second = (model.images[k] for k in ids)
    pose = second.cam_from_world() * first.cam_from_world().inverse()
    turned = np.column_stack([xy0, np.ones(len(xy0))]) @ pose.rotation.matrix().T
    lines = np.cross(pose.translation, turned)
    to_line = np.abs((xy1 * lines[:, :2]).sum(axis=1) + lines[:, 2]) / np.maximum(
        np.linalg.norm(lines[:, :2], axis=1), 1e-12
    )
    ahead = np.where(turned[:, 2] > 1e-6, turned[:, 2], np.nan)
    to_turned = np.linalg.norm(turned[:, :2] / ahead[:, None] - xy1, axis=1)
    focal = model.cameras[second.camera_id].mean_focal_length()
    # a point far outside a fisheye's plane has no ray: nan, and does not fit
    return np.asarray(np.fmin(to_line, to_turned) * focal, np.float64)
