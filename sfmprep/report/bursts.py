"""Photographs that show again what another shows: of a burst, or of a tripod."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from scipy.spatial import cKDTree

from sfmprep.geometry.views import ModelArrays
from sfmprep.pairing.pairs import natural_order
from sfmprep.report.schema import Finding
from sfmprep.report.sections import count

_STEP = 0.005  # of the distance to what is seen; a hand moves by millimetres
_TURN_DEG = 1.0
_MAX_NAMES = 5


def repeated_views(arrays: ModelArrays) -> dict[str, str]:
    """Images whose pose is that of an earlier one, and which; may be empty.

    Poses are the same that are within 0.5 % of the median distance from cameras to
    their points, and within a degree, of images of one size. Earlier is by the natural
    order of names, and no image is told to repeat one that repeats another.
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
    place = {name: k for k, name in enumerate(natural_order(views.names))}
    earlier: dict[str, list[str]] = {name: [] for name in views.names}
    for row0, row1 in cKDTree(poses).query_pairs(np.sqrt(2), output_type="ndarray"):
        apart = poses[row0] - poses[row1]
        one, two = views.cameras[row0], views.cameras[row1]
        same_size = (one.width, one.height) == (two.width, two.height)
        near = np.linalg.norm(apart[:3]) <= 1 and np.linalg.norm(apart[3:]) <= 1
        if near and same_size:
            names = sorted(
                (views.names[row0], views.names[row1]), key=place.__getitem__
            )
            earlier[names[1]].append(names[0])
    found: dict[str, str] = {}
    for name in sorted(earlier, key=place.__getitem__):
        others = [other for other in earlier[name] if other not in found]
        if others:
            found[name] = min(others, key=place.__getitem__)
    return found


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
    )
