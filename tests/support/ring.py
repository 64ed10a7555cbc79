"""A walk around points, and models that lay some of its views elsewhere."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pycolmap
from scipy.spatial.transform import Rotation

from sfmprep.geometry.views import Views
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


def asked(
    pairs: dict[Numbers, float], num_inliers: dict[Numbers, int] | None = None
) -> Asked:
    """Pairs with how far they fit the poses of the model, and their inliers."""
    told = num_inliers or {}
    return Asked(
        names=tuple(f"{k}.jpg" for k in range(NUM_VIEWS)),
        index=np.array(list(pairs)),
        num_inliers=np.array([told.get(pair, len(POINTS)) for pair in pairs]),
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
