"""Photographs that show again what another shows: of a burst, or of a tripod."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.spatial import cKDTree

from sfmprep.geometry.views import ModelArrays, Views
from sfmprep.pairing.pairs import natural_order
from sfmprep.report.schema import Finding
from sfmprep.report.sections import count
from sfmprep.types import Float64

_STEP = 0.005  # of the distance to what is seen; a hand moves by millimetres
_TURN_DEG = 1.0
_SAME_ZOOM = 0.05  # of the logarithm of focal lengths
_MAX_NAMES, _MAX_IMAGES = 5, 10  # in the words, and that go with them


def repeated_views(arrays: ModelArrays) -> dict[str, str]:
    """Images whose pose is that of an earlier one, and which; may be empty.

    Poses are the same that are within 0.5 % of the median distance from cameras to
    their points, and within a degree, of images of one size and zoom. Earlier is by the
    natural order of names, and no image is told to repeat one that repeats another.
    """
    views, seen = arrays.views, arrays.observations
    if len(views) < 2 or not len(seen):
        return {}
    away = arrays.xyz[seen.point] - views.centres[seen.view]
    distance = float(np.median(np.linalg.norm(away, axis=1)))
    # |R - S| is the square root of 8 times the sine of half the angle
    turn = np.sqrt(2) * np.radians(_TURN_DEG)
    poses = np.hstack(
        [
            views.centres / (_STEP * distance),
            views.rotations.reshape(len(views), -1) / turn,
        ]
    )
    names = natural_order(views.names)
    place = {name: k for k, name in enumerate(names)}
    row_of = {name: row for row, name in enumerate(views.names)}
    tree, found = cKDTree(poses), dict[str, str]()
    for first in names:
        if first in found:
            continue
        row = row_of[first]
        for other in tree.query_ball_point(poses[row], np.sqrt(2)):
            name = views.names[other]
            is_later = place[name] > place[first] and name not in found
            if is_later and _is_same(views, poses, row, other):
                found[name] = first
    return dict(sorted(found.items(), key=lambda item: place[item[0]]))


def _is_same(views: Views, poses: Float64, row: int, other: int) -> bool:
    apart = poses[row] - poses[other]
    one, two = views.cameras[row], views.cameras[other]
    zoom = abs(np.log(views.focals[row] / views.focals[other]))
    near = np.linalg.norm(apart[:3]) <= 1 and np.linalg.norm(apart[3:]) <= 1
    same_size = (one.width, one.height) == (two.width, two.height)
    return bool(near and same_size and zoom <= _SAME_ZOOM)


def of_bursts(arrays: ModelArrays | None) -> Iterator[Finding]:
    """Names the images of a model that show again what another shows."""
    found = repeated_views(arrays) if arrays is not None else {}
    if not found:
        return
    names = [f"{name} ({first})" for name, first in list(found.items())[:_MAX_NAMES]]
    if len(found) > _MAX_NAMES:
        names.append(f"{len(found) - _MAX_NAMES} more")
    yield Finding(
        code="bursts",
        text=f"{count(len(found), 'photograph')}"
        f" {'shows' if len(found) == 1 else 'show'} again what another shows from the"
        f" same place: {', '.join(names)}.",
        advice="Leave them out, or keep the sharpest of each: training takes them for"
        " so much more of one view.",
        images=list(found)[:_MAX_IMAGES],
    )
