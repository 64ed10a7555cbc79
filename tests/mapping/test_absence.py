"""What a view should see and does not, on a wall before a row of cameras."""

from __future__ import annotations

import numpy as np
import pytest

from sfmprep.geometry.views import ModelArrays, Observations, Views
from sfmprep.mapping.absence import Seen, Visibility
from sfmprep.types import Float64, Mask
from tests.support.orbit import lens

CAMERA = lens("SIMPLE_RADIAL", 800)
WALL = np.stack(np.meshgrid(np.arange(-2, 2, 0.2), np.arange(-2, 2, 0.2)), axis=-1)
XYZ = np.pad(WALL.reshape(-1, 2), ((0, 0), (0, 1)), constant_values=10.0)
RIGHT = XYZ[:, 0] > 0.5
NOTHING = np.empty(0, np.int64)


def arrays(across: tuple[float, ...], seen: tuple[Mask, ...]) -> ModelArrays:
    """Cameras side by side that look ahead, and which points each sees."""
    count = len(across)
    centres = np.array([(x, 0.0, 0.0) for x in across])
    views = Views(
        names=tuple(f"{k}.jpg" for k in range(count)),
        ids=np.arange(1, count + 1),
        cameras=(CAMERA,) * count,
        rotations=np.tile(np.eye(3), (count, 1, 1)),
        centres=centres,
        focals=np.full(count, 800.0),
    )
    point, view = np.nonzero(np.stack(seen, axis=1))
    rays = XYZ[point] - centres[view]
    return ModelArrays(
        views=views,
        point_ids=np.arange(len(XYZ)).astype(np.uint64),
        xyz=XYZ,
        observations=Observations(
            point=point,
            view=view,
            keypoint=point,
            xy=at(centres, point, view),
            ray=rays / np.linalg.norm(rays, axis=1, keepdims=True),
        ),
    )


def at(centres: Float64, point: np.ndarray, view: np.ndarray) -> Float64:
    return np.asarray(CAMERA.img_from_cam(XYZ[point] - centres[view]), np.float64)


def seen(found: ModelArrays, matched: np.ndarray) -> Seen:
    """Of view 0 in view 1, with these keypoints of both matched."""
    places = at(found.views.centres, matched, np.full(len(matched), 1))
    return Visibility(found).seen(0, 1, matched, places.reshape(-1, 2))


EVERY = np.ones(len(XYZ), bool)


def test_what_only_others_see_is_absent() -> None:
    found = arrays((-1.0, 0.0, 1.0, 0.5), (EVERY, ~RIGHT, EVERY, EVERY))
    told = seen(found, NOTHING)
    assert told.num_expected == len(XYZ)
    assert len(told.found) == (~RIGHT).sum()
    # but for those next to what is found
    assert 0.8 * RIGHT.sum() < told.num_absent < RIGHT.sum()


def test_where_the_pair_has_matches_nothing_is_absent() -> None:
    # every other match of the right half became a point of these two views alone
    found = arrays((-1.0, 0.0, 1.0, 0.5), (EVERY, ~RIGHT, EVERY, EVERY))
    told = seen(found, np.flatnonzero(RIGHT)[::2])
    assert told.num_absent == 0


@pytest.mark.parametrize(("place", "expected"), [(0.0, True), (2.5, False)])
def test_nothing_is_expected_from_where_nobody_saw_it(
    place: float, expected: bool
) -> None:
    # the others see the wall from the left; further right it may be seen askance
    found = arrays((-1.0, place, -0.5, 0.2), (EVERY, ~EVERY, EVERY, EVERY))
    told = seen(found, NOTHING)
    assert bool(told.num_expected) is expected
    assert bool(told.num_absent) is expected
