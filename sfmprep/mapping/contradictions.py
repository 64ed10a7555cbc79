"""Pairs whose matches agree with each other but not with the poses.

Two views of different but equal-looking things (facades, windows, seats) pass geometric
verification; a model that is right elsewhere contradicts them.
"""

from __future__ import annotations

from collections.abc import Container, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.geometry.epipolar import errors_by_poses_px
from sfmprep.geometry.views import Views, keypoints_xy
from sfmprep.mapping.database import open_database
from sfmprep.mapping.view_graph import PairTable, strongest_edges
from sfmprep.types import Float64

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
    scales: Mapping[str, float] | None = None,
    explained: Container[tuple[str, str]] = (),
    max_pairs: int = 20,
) -> list[Contradiction]:
    """Finds verified pairs that the poses contradict, strongest first.

    A pair is contradicted if it has 30 or more verified matches of which fewer than
    30 % lie within 8 px, of what the features saw, of the model's epipolar lines. The
    ten strongest pairs of each image are looked at; none are found among images without
    a pose.

    Args:
        database: Where the verified matches are.
        model: The poses.
        pairs: The pairs of the database.
        scales: Pixels of a file for one of what its features saw, by image name; of two
            images the larger counts. None for 1.
        explained: Pairs, names in their order, of which it is no news.
        max_pairs: The most that are returned.
    """
    scales = scales or {}
    views = Views.of(model)
    view_of = {name: view for view, name in enumerate(views.names)}
    index, weights = pairs.verified_edges()
    keep = strongest_edges(index, weights, _PER_IMAGE) & (weights >= _MIN_INLIERS)

    @lru_cache(_MAX_CACHED)
    def rays(view: int) -> Float64:
        points = model.images[int(views.ids[view])].points2D
        return views.rays(view, keypoints_xy(points))

    found = []
    with open_database(database) as opened:
        in_database = {i.name: i.image_id for i in opened.read_all_images()}
        for (row0, row1), inliers in zip(index[keep], weights[keep], strict=True):
            name0, name1 = pairs.names[row0], pairs.names[row1]
            if name0 not in view_of or name1 not in view_of:
                continue
            if (min(name0, name1), max(name0, name1)) in explained:
                continue
            matches = opened.read_two_view_geometry(
                in_database[name0], in_database[name1]
            ).inlier_matches
            view0, view1 = view_of[name0], view_of[name1]
            share = share_fitting(
                *(views, view0, view1),
                *(rays(view0)[matches[:, 0]], rays(view1)[matches[:, 1]]),
                scale=max(scales.get(name0, 1.0), scales.get(name1, 1.0)),
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


def share_fitting(
    views: Views,
    view0: int,
    view1: int,
    ray0: Float64,
    ray1: Float64,
    *,
    scale: float = 1.0,
) -> float:
    """Share, 0..1, of matches [M], 1 or more, within 8 px of what two poses allow.

    The pixels are those of the file divided by `scale`.
    """
    errors = errors_by_poses_px(views, view0, view1, ray0, ray1)
    return float(np.mean(errors < _FITS_PX * scale))
