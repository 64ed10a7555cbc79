"""Loops through a row of photographs that do not come back to where they began.

Where a model contradicts neighbours in time, a stretch of the row lies where it cannot
be. How they are turned against each other, by their own matches, tells how each stretch
has to be turned to go on from the one before; any other pair closes a loop through the
row. A pair whose loop leaves a rotation over joins two places that look alike.
After Zach, Klopschitz and Pollefeys, Disambiguating visual relations using loop
constraints, CVPR 2010; here the row says which pair of a loop is wrong, not a vote.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
from scipy.spatial.transform import Rotation

from sfmprep.geometry.views import Views
from sfmprep.mapping.in_a_row import NEAR, places, stretches
from sfmprep.mapping.wrong_pairs import Asked, WrongPair, as_wrong_pairs
from sfmprep.types import Float64, Index, Mask

_ALIKE_DEG = 25.0  # rotations across a break that say the same
_WRONG_DEG = 45.0  # that a loop leaves over
_TRIALS = 100, 300  # of RANSAC, whose input are inliers
_MAX_ERROR_PX = 4.0


def find_in_loops(database: Path, views: Views, asked: Asked) -> list[WrongPair]:
    """Finds the pairs that close a loop which does not come back, strongest first.

    None without a break. Where a stretch has to be moved and not turned, loops of
    rotations say nothing; then pairs that fit the poses and join it to the stretches
    next to it are wrong.

    Args:
        database: Where the pairs are.
        views: Of the model.
        asked: What the model says of the pairs.
    """
    broken = asked.broken
    if not broken.any():
        return []
    turns = np.tile(np.eye(3), (len(asked.index), 1, 1))
    rows = np.flatnonzero(~asked.agrees)
    turns[rows] = turns_by_pairs(database, views, asked, rows)
    stretch = stretches(asked.names, asked.index, broken)
    offsets, support = _offsets(asked, stretch, turns)
    one, two = stretch[asked.index].T
    expected = offsets[two] @ offsets[one].swapaxes(1, 2)
    over = angles_deg(turns @ expected.swapaxes(1, 2))
    moved = asked.agrees & (np.abs(one - two) == 1)
    moved &= angles_deg(expected) <= _WRONG_DEG
    wrong = ((over > _WRONG_DEG) | moved) & ~broken
    # as sure as the weakest of what is known of the breaks in between
    certainty = [
        support[min(ends) : max(ends)].min(initial=1.0)
        for ends in zip(one.tolist(), two.tolist(), strict=True)
    ]
    return as_wrong_pairs(asked, wrong, np.array(certainty), over)


def _offsets(asked: Asked, stretch: Index, turns: Float64) -> tuple[Float64, Float64]:
    """How each stretch has to be turned [S, 3, 3], the first not at all.

    Across a break, of the rotations that pairs near it tell, that of most inliers
    counts: neighbours and those a little further apart close triangles.

    Returns:
        The rotations, and by break [S - 1] the share of the inliers that say so.
    """
    place = places(asked.names)
    near = np.ptp(place[asked.index], axis=1) <= NEAR
    offsets, support = [np.eye(3)], []
    for number in range(1, int(stretch.max()) + 1):
        rows = np.flatnonzero(near & ~asked.agrees & _joins(asked, stretch, number))
        rows = rows[np.isfinite(turns[rows, 0, 0])]
        if not len(rows):
            offsets.append(offsets[-1])
            support.append(0.0)
            continue
        found, weights = turns[rows], asked.num_inliers[rows]
        forward = stretch[asked.index[rows, 1]] == number
        found[~forward] = found[~forward].swapaxes(1, 2)
        alike = angles_deg(found[:, None] @ found.swapaxes(1, 2)[None]) < _ALIKE_DEG
        sums = (alike * weights).sum(axis=1)
        best = alike[int(sums.argmax())]
        mean = Rotation.from_matrix(found[best]).mean(weights[best])
        offsets.append(mean.as_matrix() @ offsets[-1])
        support.append(sums.max() / weights.sum())
    return np.array(offsets), np.array(support)


def _joins(asked: Asked, stretch: Index, number: int) -> Mask:
    """Which pairs [P] join a stretch to the one before it."""
    low, high = np.sort(stretch[asked.index], axis=1).T
    joins: Mask = (low == number - 1) & (high == number)
    return joins


def turns_by_pairs(database: Path, views: Views, asked: Asked, rows: Index) -> Float64:
    """By how much pairs turn their second view, in the world of a model [R, 3, 3].

    Not at all if they fit the poses exactly; NaN where the matches tell no pose.

    Args:
        database: Where the pairs are.
        views: Of the model.
        asked: What the model says of the pairs.
        rows: Of the pairs that are meant [R].
    """
    turns = np.full((len(rows), 3, 3), np.nan)
    with pycolmap.Database.open(database) as opened:
        id_of = {image.name: image.image_id for image in opened.read_all_images()}
        for place, row in enumerate(rows.tolist()):
            view0, view1 = asked.index[row].tolist()
            ids = id_of[asked.names[view0]], id_of[asked.names[view1]]
            relative = _relative_rotation(opened, ids, views, (view0, view1))
            if relative is not None:
                rotations = views.rotations
                turns[place] = rotations[view1].T @ relative @ rotations[view0]
    return turns


def _relative_rotation(
    database: pycolmap.Database,
    ids: tuple[int, int],
    views: Views,
    rows: tuple[int, int],
) -> Float64 | None:
    """Second camera from first [3, 3], by the inliers of a pair alone."""
    matches = np.asarray(database.read_two_view_geometry(*ids).inlier_matches, np.int64)
    xy0, xy1 = (
        database.read_keypoints(image_id)[column, :2].astype(np.float64)
        for image_id, column in zip(ids, matches.T, strict=True)
    )
    options = pycolmap.TwoViewGeometryOptions()
    options.compute_relative_pose = True
    options.ransac.random_seed = 0
    options.ransac.min_num_trials, options.ransac.max_num_trials = _TRIALS
    options.ransac.max_error = _MAX_ERROR_PX
    every = np.arange(len(matches), dtype=np.uint32)
    found = pycolmap.estimate_calibrated_two_view_geometry(
        *(views.cameras[rows[0]], xy0, views.cameras[rows[1]], xy1),
        np.stack([every, every], axis=1),
        options,
    )
    pose = found.cam2_from_cam1
    return None if pose is None else np.asarray(pose.rotation.matrix(), np.float64)


def angles_deg(rotations: Float64) -> Float64:
    """Angles [...] of rotations [..., 3, 3]."""
    cosine = (np.trace(rotations, axis1=-2, axis2=-1) - 1) / 2
    return np.asarray(np.degrees(np.arccos(cosine.clip(-1, 1))), np.float64)
