"""Photographs of one place are named, and others are not."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pycolmap
from scipy.spatial.transform import Rotation

from sfmprep.geometry.views import ModelArrays, Observations, Views
from sfmprep.report.bursts import of_bursts, repeated_views

WIDE, HIGH = (640, 480), (480, 640)


def model(
    places: Sequence[tuple[str, float, float]],
    sizes: Sequence[tuple[int, int]] = (),
    focals: Sequence[float] = (),
) -> ModelArrays:
    """Cameras by place to the right and turn in degrees; points are 10 away."""
    sizes = sizes or [WIDE] * len(places)
    centres = np.array([(x, 0.0, 0.0) for _, x, _ in places])
    turns = [Rotation.from_euler("y", turn, degrees=True) for *_, turn in places]
    xyz = np.random.default_rng(0).uniform((-3, -3, 9.5), (3, 3, 10.5), (50, 3))
    point = np.repeat(np.arange(50), len(places))
    view = np.tile(np.arange(len(places)), 50)
    return ModelArrays(
        views=Views(
            ids=np.arange(len(places)),
            names=tuple(name for name, *_ in places),
            cameras=tuple(
                pycolmap.Camera(
                    model="SIMPLE_PINHOLE",
                    width=width,
                    height=height,
                    params=[600, width / 2, height / 2],
                )
                for width, height in sizes
            ),
            rotations=np.array([turn.as_matrix() for turn in turns]),
            centres=centres,
            focals=np.array(focals or [600.0] * len(places)),
        ),
        point_ids=np.arange(50, dtype=np.uint64),
        xyz=xyz,
        observations=Observations(
            point=point,
            view=view,
            keypoint=np.zeros(len(point), np.int64),
            xy=np.zeros((len(point), 2)),
            ray=np.zeros((len(point), 3)),
        ),
    )


def test_photographs_of_one_place_repeat_the_first() -> None:
    arrays = model(
        [("10.jpg", 0.02, 0.3), ("2.jpg", 0, 0), ("3.jpg", 0.01, 0), ("4.jpg", 1, 0)]
    )
    assert repeated_views(arrays) == {"3.jpg": "2.jpg", "10.jpg": "2.jpg"}


def test_a_step_a_turn_and_another_format_are_no_repetition() -> None:
    places = [("a", 0, 0), ("b", 0.2, 0), ("c", 0, 3), ("d", 0, 0)]
    assert repeated_views(model(places, [WIDE, WIDE, WIDE, HIGH])) == {}


def test_another_zoom_from_the_same_place_is_no_repetition() -> None:
    places = [("a", 0, 0), ("b", 0, 0), ("c", 0, 0)]
    assert repeated_views(model(places, focals=[600, 1800, 605])) == {"c": "a"}


def test_a_camera_that_stands_repeats_its_first_photograph() -> None:
    found = repeated_views(model([(f"{k}", 0, 0) for k in range(3000)]))
    assert set(found.values()) == {"0"}
    assert len(found) == 2999


def test_small_steps_one_after_the_other_are_a_walk() -> None:
    """Each repeats the one before it, and the third of them the first no longer."""
    walk = [(f"{k}", 0.04 * k, 0) for k in range(6)]
    assert repeated_views(model(walk)) == {"1": "0", "3": "2", "5": "4"}


def test_what_is_said() -> None:
    assert not list(of_bursts(None))
    assert not list(of_bursts(model([("a", 0, 0), ("b", 1, 0)])))
    [one] = of_bursts(model([("a", 0, 0), ("b", 0.01, 0), ("c", 2, 0)]))
    assert (one.code, one.blocks_training) == ("bursts", False)
    assert one.text == (
        "1 photograph shows again what another shows from the same place: b (a)."
    )
    assert one.advice == (
        "Leave them out, or keep the sharpest of each: training takes them for so much"
        " more of one view."
    )
    assert one.images == ["b"]
    [many] = of_bursts(model([(str(k), 0, 0) for k in range(8)]))
    assert many.text == (
        "7 photographs show again what another shows from the same place: 1 (0), 2 (0),"
        " 3 (0), 4 (0), 5 (0), 2 more."
    )
