"""Images without a pose, matched where pointmaps say that they look.

A pose by pointmaps is off by degrees, which is no pose to train with, but it says where
in an image each point of the model should be. Among the few keypoints there the right
one is told from the others where it is not among all: where things repeat, or where
little else is distinct. Nothing is believed for the pointmaps' sake alone: two of them
must agree, the matches must fit one pose as chance would not have it, and then they are
verified and mapped like any others.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from sfmprep.geometry.pointmaps import Foreseen
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.localise import Located, Sightings, locate
from sfmprep.types import Features, Float64, Index, Matches, Pair

logger = logging.getLogger(__name__)

_MAX_ANGLE_DEG = 15.0  # between poses that agree
_MAX_AWAY = 0.3  # between their places, of the distance to what is seen
_MAX_SPREAD = 0.5  # of the depths of a pair
_RADIUS = 0.06  # of the diagonal: how far from its foreseen place a point is looked for
_RATIO = 0.9  # of distances of descriptors, best and second best there
_ERRORS = 3.0  # a match that stays may be so many largest errors off the pose


@dataclass(frozen=True, kw_only=True, eq=False)
class _Guess:
    """A pose of one image, by its pointmaps with one that has a pose."""

    view: int  # of the model: that which tells it
    rotation: Float64  # [3, 3] camera from world
    centre: Float64  # [3]
    focal_px: float
    distance: float  # from which it sees what the other sees
    weight: float


def foreseen_matches(
    name: str,
    arrays: ModelArrays,
    foreseen: Sequence[Foreseen],
    features: Mapping[str, Features],
    cameras: Sequence[pycolmap.Camera],
    *,
    max_error_px: float,
    seed: int = 0,
) -> dict[Pair, Matches] | str:
    """Matches of one image with those that foresee its pose, or why there are none.

    Args:
        name: Of the image; it has no pose.
        arrays: The model, whose first keypoints are the features.
        foreseen: What pointmaps say of this image.
        features: Of this image and of those that foresee it.
        cameras: That may have taken it; the focal length of those without a prior is
            that of the pointmaps.
        max_error_px: The largest error of an inlier, pixels of the file.
        seed: Of RANSAC.

    Returns:
        By pair in the order of names, matches that fit one pose; pairs without any are
        left out.
    """
    guesses = _agreeing([*_guesses(arrays, foreseen)])
    if len(guesses) < 2:
        return f"of {len(foreseen)} pairs no two foresee the same pose"
    best, own = guesses[0], features[name]
    focal = float(np.median([guess.focal_px for guess in guesses]))
    told = [_with_focal(camera, focal) for camera in cameras]
    reach = _RADIUS * math.hypot(*own.image_size)
    found: list[tuple[int, Index, Index]] = []  # view, rows of points and of matches
    for view in dict.fromkeys(guess.view for guess in guesses):
        other = features[arrays.views.names[view]]
        point, index = _near(arrays, view, other, own, best, told[0], reach)
        if len(point):
            found.append((view, point, index))
    if not found:
        return "nothing is alike where its pointmaps say that points should be"
    seen = Sightings(
        keypoint=np.concatenate([index[:, 1] for _, _, index in found]),
        xy=np.concatenate([own.xy[i[:, 1]] for _, _, i in found]).astype(np.float64),
        xyz=arrays.xyz[np.concatenate([point for _, point, _ in found])],
        image=np.concatenate([np.full(len(p), view) for view, p, _ in found]),
    )
    located = locate(
        *(name, seen, told), max_error_px=max_error_px, within_px=reach, seed=seed
    )
    if located.verdict != "found":
        return located.reason
    return dict(_fitting(name, arrays, own, found, located, _ERRORS * max_error_px))


def _guesses(arrays: ModelArrays, foreseen: Sequence[Foreseen]) -> Iterator[_Guess]:
    views, seen = arrays.views, arrays.observations
    row_of = {name: row for row, name in enumerate(views.names)}
    for each in foreseen:
        row = row_of.get(each.first)
        if row is None or not each.spread <= _MAX_SPREAD:
            continue
        points = arrays.xyz[seen.point[seen.view == row]]
        if not len(points):
            continue
        turn, move = each.second_from_first[:, :3], each.second_from_first[:, 3]
        rotation = turn @ views.rotations[row]
        centre = views.centres[row] - rotation.T @ move
        away = np.linalg.norm(points - centre, axis=1)
        yield _Guess(
            view=row,
            rotation=rotation,
            centre=centre,
            focal_px=each.focal_px,
            distance=float(np.median(away)),
            weight=each.share / (1 + each.spread),
        )


def _agreeing(guesses: Sequence[_Guess]) -> list[_Guess]:
    """The guess that most others agree with, and these, best first."""

    def agree(one: _Guess, other: _Guess) -> bool:
        turn = Rotation.from_matrix(one.rotation @ other.rotation.T).magnitude()
        away = np.linalg.norm(one.centre - other.centre)
        near = min(one.distance, other.distance)
        return bool(np.degrees(turn) <= _MAX_ANGLE_DEG and away <= _MAX_AWAY * near)

    groups = [[other for other in guesses if agree(one, other)] for one in guesses]
    if not groups:
        return []
    group = max(groups, key=lambda g: (len(g), sum(guess.weight for guess in g)))
    return sorted(group, key=lambda guess: -guess.weight)


def _with_focal(camera: pycolmap.Camera, focal_px: float) -> pycolmap.Camera:
    """A camera as it is, with the focal length where it has none of its own."""
    camera = pycolmap.Camera(camera.todict())
    if not camera.has_prior_focal_length and focal_px > 0:
        for row in camera.focal_length_idxs():
            camera.params[row] = focal_px
    return camera


def _near(
    arrays: ModelArrays,
    view: int,
    other: Features,
    own: Features,
    guess: _Guess,
    camera: pycolmap.Camera,
    reach: float,
) -> tuple[Index, Index]:
    """Points of a view and keypoints near to where a guess has them that look alike.

    Returns:
        Rows of the points [M], and [M, 2] rows of the keypoints of the view and of the
        image; one-to-one.
    """
    seen = arrays.observations
    mine = np.flatnonzero((seen.view == view) & (seen.keypoint < len(other)))
    point, row = seen.point[mine], seen.keypoint[mine]
    there = (arrays.xyz[point] - guess.centre) @ guess.rotation.T
    place = np.full((len(there), 2), np.nan)
    ahead = there[:, 2] > 0
    if ahead.any():
        place[ahead] = np.asarray(camera.img_from_cam(there[ahead]), np.float64)
    inside = np.isfinite(place).all(1)
    inside &= ((place > -reach) & (place < np.array(own.image_size) + reach)).all(1)
    point, row, place = point[inside], row[inside], place[inside]
    none = np.empty(0, np.int64), np.empty((0, 2), np.int64)
    if not len(point) or not len(own):
        return none
    near = cKDTree(own.xy).query_ball_point(place, reach)
    counts = np.array([len(rows) for rows in near])
    if not counts.any():
        return none
    item = np.repeat(np.arange(len(near)), counts)
    keypoint = np.concatenate([np.array(rows, np.int64) for rows in near if rows])
    distance = _distances(other, row[item], own, keypoint)
    order = np.lexsort((distance, item))
    item, keypoint, distance = item[order], keypoint[order], distance[order]
    first = np.flatnonzero(np.diff(item, prepend=-1))
    follows = np.append(item, -1)[first + 1] == item[first]
    second = np.where(follows, np.append(distance, np.inf)[first + 1], np.inf)
    kept = first[distance[first] < _RATIO * second]
    # of several points that want a keypoint, the one that looks most like it
    kept = kept[np.argsort(distance[kept], kind="stable")]
    kept = kept[np.sort(np.unique(keypoint[kept], return_index=True)[1])]
    return point[item[kept]], np.column_stack((row[item[kept]], keypoint[kept]))


def _distances(
    first: Features, rows0: Index, second: Features, rows1: Index
) -> Float64:
    """Between unit descriptors, row by row."""
    sides = []
    for side, rows in ((first, rows0), (second, rows1)):
        table = side.descriptors.astype(np.float32)
        table /= np.maximum(np.linalg.norm(table, axis=1, keepdims=True), 1e-12)
        sides.append(table[rows])
    cosine = np.einsum("md,md->m", *sides).astype(np.float64)
    return np.asarray(np.sqrt(np.maximum(2 - 2 * cosine, 0)))


def _fitting(
    name: str,
    arrays: ModelArrays,
    own: Features,
    found: Sequence[tuple[int, Index, Index]],
    located: Located,
    max_error_px: float,
) -> Iterator[tuple[Pair, Matches]]:
    """The matches that fit the pose, by pair."""
    rotation, centre, camera = located.rotation, located.centre, located.camera
    assert rotation is not None and centre is not None and camera is not None
    for view, point, index in found:
        there = (arrays.xyz[point] - centre) @ rotation.T
        place = np.asarray(camera.img_from_cam(there), np.float64)
        off = np.linalg.norm(place - own.xy[index[:, 1]], axis=1)
        fits = (there[:, 2] > 0) & (off <= max_error_px)
        if not fits.any():
            continue
        rows = index[fits].astype(np.int32)
        scores = (1 / (1 + off[fits] / max_error_px)).astype(np.float32)
        matches = Matches(index=rows, scores=scores)
        other = arrays.views.names[view]
        if other < name:
            yield (other, name), matches
        else:
            yield (name, other), matches.reversed()
