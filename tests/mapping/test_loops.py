"""Loops through a row: a folded walk around a thing with two equal sides."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from sfmprep.geometry.views import Views
from sfmprep.mapping.loops import find_in_loops
from sfmprep.mapping.wrong_pairs import Asked
from sfmprep.types import Float64
from tests.support.orbit import lens, looking

CAMERA = lens("SIMPLE_RADIAL", 800)
NUM_VIEWS = 12  # once around: each 30 degrees
HALF_TURN = Rotation.from_euler("y", 180, degrees=True).as_matrix()
POINTS = np.random.default_rng(0).uniform(-0.7, 0.7, (300, 3))

Numbers = tuple[int, int]


def cameras(num_views: int) -> tuple[Float64, Float64]:
    angle = 2 * np.pi * np.arange(num_views) / NUM_VIEWS
    centres = 2.5 * np.column_stack([np.cos(angle), 0.1 * angle, np.sin(angle)])
    return np.array([looking(-centre) for centre in centres]), centres


ROTATIONS, CENTRES = cameras(NUM_VIEWS)


def folded(turns: Iterable[Float64]) -> Views:
    """The views of a model that lays some of them elsewhere."""
    turned = np.array([np.asarray(turn) for turn in turns])
    rotations = ROTATIONS @ turned.swapaxes(1, 2)
    return Views(
        names=tuple(f"{k}.jpg" for k in range(NUM_VIEWS)),
        ids=np.arange(1, NUM_VIEWS + 1),
        cameras=(CAMERA,) * NUM_VIEWS,
        rotations=rotations,
        centres=np.einsum("vij,vj->vi", turned, CENTRES),
        focals=np.full(NUM_VIEWS, 800.0),
    )


def write(path: Path, pairs: Iterable[Numbers]) -> None:
    """A database in which pairs have the matches of true points."""
    local = np.einsum("vij,vpj->vpi", ROTATIONS, POINTS - CENTRES[:, None])
    with pycolmap.Database.open(path) as database:
        camera_id = database.write_camera(CAMERA)
        for k in range(NUM_VIEWS):
            image = pycolmap.Image(name=f"{k}.jpg", camera_id=camera_id, image_id=k + 1)
            database.write_image(image, True)
            xy = np.asarray(CAMERA.img_from_cam(local[k]), np.float32)
            database.write_keypoints(k + 1, xy)
        rows = np.arange(len(POINTS), dtype=np.uint32)
        for one, two in pairs:
            geometry = pycolmap.TwoViewGeometry()
            geometry.config = pycolmap.TwoViewGeometryConfiguration.UNCALIBRATED
            geometry.inlier_matches = np.stack([rows, rows], axis=1)
            database.write_two_view_geometry(one + 1, two + 1, geometry)


def asked(pairs: dict[Numbers, float]) -> Asked:
    """Pairs with how far they fit the poses of the model."""
    return Asked(
        names=tuple(f"{k}.jpg" for k in range(NUM_VIEWS)),
        index=np.array(list(pairs)),
        num_inliers=np.full(len(pairs), len(POINTS)),
        repeated=np.zeros(len(pairs)),
        fitting=np.array(list(pairs.values())),
        absent=np.full(len(pairs), np.nan),
        found=np.zeros(len(pairs), np.int64),
        shared=[np.empty(0, np.int64)] * len(pairs),
    )


def row(broken: int) -> dict[Numbers, float]:
    """Each view with the next, and with the one after; views from `broken` on apart."""
    return {
        (k, k + step): 1.0 - (k < broken <= k + step)
        for step in (1, 2)
        for k in range(NUM_VIEWS - step)
    }


@pytest.fixture
def database(tmp_path: Path) -> Path:
    write(tmp_path / "database.db", row(6))
    return tmp_path / "database.db"


def test_a_pair_that_the_row_contradicts_is_found(database: Path) -> None:
    # views 6 to 11 were turned by half a turn onto views 0 to 5, which look alike
    views = folded([np.eye(3)] * 6 + [HALF_TURN] * 6)
    across = {(0, 6): 1.0, (1, 7): 1.0, (5, 11): 0.9}
    found = find_in_loops(database, views, asked(row(6) | across))
    names = [(pair.name0, pair.name1) for pair in found]
    assert names == [("0.jpg", "6.jpg"), ("1.jpg", "7.jpg"), ("11.jpg", "5.jpg")]
    for pair in found:
        assert pair.loop_deg == pytest.approx(180, abs=1)
        assert (pair.certainty, pair.absent) == (1.0, None)


def test_a_pair_whose_matches_tell_no_pose_is_not_judged(database: Path) -> None:
    views = folded([np.eye(3)] * 6 + [HALF_TURN] * 6)
    with pycolmap.Database.open(database) as opened:
        geometry = pycolmap.TwoViewGeometry()
        geometry.config = pycolmap.TwoViewGeometryConfiguration.UNCALIBRATED
        geometry.inlier_matches = np.zeros((3, 2), np.uint32)
        opened.write_two_view_geometry(4, 9, geometry)
    found = find_in_loops(database, views, asked(row(6) | {(3, 8): 0.0, (0, 6): 1.0}))
    assert [(pair.name0, pair.name1) for pair in found] == [("0.jpg", "6.jpg")]


def test_after_a_whole_turn_pairs_are_right_again(tmp_path: Path) -> None:
    # three stretches, of which the first and the last are at one place
    pairs = row(4)
    for step in (1, 2):
        pairs |= {(k, k + step): 0.0 for k in range(8 - step, 8)}
    write(tmp_path / "database.db", pairs)
    views = folded([np.eye(3)] * 4 + [HALF_TURN] * 4 + [np.eye(3)] * 4)
    across = {(0, 11): 1.0, (1, 10): 1.0, (0, 6): 1.0, (5, 11): 1.0}
    found = find_in_loops(tmp_path / "database.db", views, asked(pairs | across))
    assert [(p.name0, p.name1) for p in found] == [
        ("0.jpg", "6.jpg"),
        ("11.jpg", "5.jpg"),
    ]


def test_a_stretch_that_is_moved_and_not_turned(database: Path) -> None:
    views = folded([np.eye(3)] * NUM_VIEWS)
    found = find_in_loops(database, views, asked(row(6) | {(0, 6): 1.0}))
    assert [(pair.name0, pair.name1) for pair in found] == [("0.jpg", "6.jpg")]
    assert found[0].loop_deg == pytest.approx(0, abs=1)


def test_a_row_without_a_break_says_nothing(database: Path) -> None:
    views = folded([np.eye(3)] * NUM_VIEWS)
    assert find_in_loops(database, views, asked(row(0) | {(0, 6): 1.0})) == []
    # a single pair against all others across that place of the row is no break
    single = row(0) | {(5, 6): 0.0, (0, 6): 1.0}
    assert find_in_loops(database, views, asked(single)) == []
