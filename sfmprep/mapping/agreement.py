"""How well verified pairs agree with the poses of a model: evidence that it left out.

A model is adjusted to the matches that became points. Of those that did not, nothing
made it fit: where most of them fit nevertheless, poses are right; where a view hangs on
a few wrong points, most of them do not.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from functools import lru_cache

import numpy as np
import pycolmap

from sfmprep.geometry.epipolar import errors_by_poses_px
from sfmprep.geometry.views import Views, keypoints_xy
from sfmprep.types import Float64, Index

_CACHED_IMAGES = 1024
_ENOUGH_OF_ONE = 30  # inliers; as many as COLMAP asks of a pose


class VerifiedMatches:
    """The inliers of the verified pairs of a database, by ids of images."""

    def __init__(self, cache: pycolmap.DatabaseCache) -> None:
        """Keeps the cache, which `open_cache` made."""
        self._cache = cache
        self._graph = cache.correspondence_graph
        self.partners: dict[int, list[tuple[int, int]]] = {}
        for pair_id in sorted(self._graph.image_pairs()):
            id0, id1 = pycolmap.pair_id_to_image_pair(pair_id)
            count = self._graph.num_matches_between_images(id0, id1)
            self.partners.setdefault(id0, []).append((id1, count))
            self.partners.setdefault(id1, []).append((id0, count))
        self.xy = lru_cache(_CACHED_IMAGES)(self._xy)

    def _xy(self, image_id: int) -> Float64:
        return keypoints_xy(self._cache.image(image_id).points2D)

    def xy_of(self, image_id: int, rows: Iterable[int]) -> Float64:
        """Some keypoints [N, 2] of an image; of a few, sooner than `xy` of all."""
        image = self._cache.image(image_id)
        xy = [image.point2D(row).xy for row in rows]
        return np.array(xy, np.float64).reshape(-1, 2)

    def between(self, id0: int, id1: int) -> Index:
        """The inliers [M, 2] of a pair, rows of keypoints; none if not verified."""
        found = self._graph.extract_matches_between_images(id0, id1)
        return np.asarray(found, np.int64).reshape(-1, 2)

    def pairs(self) -> list[tuple[int, int]]:
        """All pairs, the lower id first."""
        return sorted(
            (id0, id1)
            for id0, found in self.partners.items()
            for id1, _ in found
            if id0 < id1
        )


def matched_points(
    model: pycolmap.Reconstruction,
    matches: VerifiedMatches,
    image_id: int,
    *,
    enough: int,
) -> tuple[Float64, Float64]:
    """Keypoints [N, 2] of an image and points [N, 3] that verified pairs join to them.

    Args:
        model: All images of the database are in it (see `carry_over`).
        matches: Of the database.
        image_id: With or without a pose. Points that only one other image and it see
            do not count.
        enough: Once there are so many, weaker pairs are not asked.
    """
    rows: dict[tuple[int, int], None] = {}
    partners = matches.partners.get(image_id, ())
    for other, _ in sorted(partners, key=lambda partner: -partner[1]):
        if len(rows) >= enough:
            break
        keypoints = model.images[other].points2D
        for own, theirs in matches.between(image_id, other).tolist():
            if keypoints[theirs].has_point3D():
                rows[own, keypoints[theirs].point3D_id] = None
    told = [
        (own, point)
        for own, point in rows
        if sum(e.image_id != image_id for e in model.points3D[point].track.elements) > 1
    ]
    xy = matches.xy_of(image_id, [own for own, _ in told])
    points = np.array([model.points3D[point].xyz for _, point in told]).reshape(-1, 3)
    return xy, points


def count_fitting(
    model: pycolmap.Reconstruction,
    matches: VerifiedMatches,
    pairs: Iterable[tuple[int, int]],
    *,
    max_error_px: float,
) -> Index:
    """For pairs, how many of their inliers fit the poses, and how many there are.

    An inlier fits that lies near its epipolar line, or where the rotation alone puts
    it: without a baseline there is no line.

    Args:
        model: Its ids are those of the database.
        matches: Of that database.
        pairs: Ids of images; those with an image without a pose have none that fit,
            of none.
        max_error_px: The largest distance from the line, pixels of the file.

    Returns:
        [P, 2] fitting, all.
    """
    posed = set(model.reg_image_ids())
    counts = []
    for pair in pairs:
        if not posed.issuperset(pair):
            counts.append((0, 0))
            continue
        errors = _errors_px(model, matches, pair)
        counts.append((int((errors <= max_error_px).sum()), len(errors)))
    return np.array(counts, np.int64).reshape(-1, 2)


def hold_together(links: Sequence[tuple[int, int, int]], *, single: bool) -> bool:
    """Whether pairs between two sets of images hold them together.

    One pair does of which 30 inliers fit, or two that share no image. What hangs on a
    single weak pair may as well hang on the other side of a thing that looks the same
    from there.

    Args:
        links: Ids of both images of a pair, and how many of its inliers fit.
        single: Whether one of the sets is one image, which pairs may share then.
    """
    if max((fitting for *_, fitting in links), default=0) >= _ENOUGH_OF_ONE:
        return True
    if single:
        return len(links) > 1
    return any(
        {*first[:2]}.isdisjoint(second[:2])
        for first, second in itertools.combinations(links, 2)
    )


def _errors_px(
    model: pycolmap.Reconstruction, matches: VerifiedMatches, pair: tuple[int, int]
) -> Float64:
    id0, id1 = sorted(pair)
    index = matches.between(id0, id1)
    views = Views.of(model, (id0, id1))
    ray0 = views.rays(0, matches.xy(id0)[index[:, 0]])
    ray1 = views.rays(1, matches.xy(id1)[index[:, 1]])
    return errors_by_poses_px(views, 0, 1, ray0, ray1)
