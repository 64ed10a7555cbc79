"""What moves in a rendered scene, found with its true poses."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import MotionMasksConfig
from sfmprep.demo.courtyard import build_courtyard
from sfmprep.frontend.motion_masks import find_motion
from sfmprep.geometry.views import ModelArrays, Observations, Views
from sfmprep.models.build import build_flow_estimator
from tests.support.made_once import made_once
from tests.support.moving_things import render_moving_things

CONFIG = MotionMasksConfig(max_size=320, neighbours=4)
SIZE = (320, 240)


@pytest.fixture(scope="session")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Seven images of a quarter of the walk."""
    return made_once(
        tmp_path_factory,
        "moving-things",
        lambda folder: render_moving_things(
            folder, num_images=7, size=SIZE, arc=0.15, until=0.3
        ),
    )


def true_model(scene: Path) -> ModelArrays:
    """The poses, and points on the still surfaces, seen even where they are hidden."""
    images = json.loads((scene / "reference.json").read_text())["images"]
    entries = [images[name] for name in sorted(images)]
    rotations = np.array([entry["R"] for entry in entries])
    moves = np.array([entry["t"] for entry in entries])
    (fx, _, cx), (_, fy, cy), _ = entries[0]["K"]
    camera = pycolmap.Camera(
        model="PINHOLE", width=SIZE[0], height=SIZE[1], params=[fx, fy, cx, cy]
    )
    views = Views(
        ids=np.arange(len(entries)),
        names=tuple(sorted(images)),
        cameras=(camera,) * len(entries),
        rotations=rotations,
        centres=-np.einsum("vji,vj->vi", rotations, moves),
        focals=np.full(len(entries), fx),
    )
    rng = np.random.default_rng(0)
    surfaces, _ = build_courtyard(0)
    xyz = np.concatenate([s.sample(*rng.uniform(size=(2, 12)))[0].T for s in surfaces])
    point, view, xy = [], [], []
    for row in range(len(entries)):
        seen = xyz @ rotations[row].T + moves[row]
        place = seen[:, :2] / seen[:, 2:] * (fx, fy) + (cx, cy)
        inside = (seen[:, 2] > 0) & ((place > 0) & (place < SIZE)).all(axis=1)
        point.append(np.flatnonzero(inside))
        view.append(np.full(inside.sum(), row))
        xy.append(place[inside])
    points, numbers = np.unique(np.concatenate(point), return_inverse=True)
    order = np.argsort(numbers, kind="stable")
    places = np.concatenate(xy)[order]
    return ModelArrays(
        views=views,
        point_ids=points.astype(np.uint64),
        xyz=xyz[points],
        observations=Observations(
            point=numbers[order],
            view=np.concatenate(view)[order],
            keypoint=np.zeros(len(order), np.int64),
            xy=places,
            ray=np.zeros((len(order), 3)),
        ),
    )


def test_most_of_what_moves_and_little_else_is_masked(scene: Path) -> None:
    images = ImageSet.scan(scene / "images")
    estimator = build_flow_estimator(CONFIG.flow)
    still = dict(find_motion(images, [true_model(scene)], estimator, CONFIG))
    assert still.keys() == set(images.names)
    found = moving = lost = static = 0
    for name in images.names[1:-1]:
        truth = cv2.imread(str(scene / "masks" / f"{name}.png"), 0) == 0
        mask = cv2.resize(still[name].astype(np.uint8), SIZE, interpolation=0) == 0
        found, moving = found + (mask & truth).sum(), moving + truth.sum()
        lost, static = lost + (mask & ~truth).sum(), static + (~truth).sum()
    assert found / moving > 0.85
    assert lost / static < 0.03


def test_images_without_a_model_are_left_out(scene: Path) -> None:
    images = ImageSet.scan(scene / "images")
    assert not list(find_motion(images, [], build_flow_estimator(CONFIG.flow), CONFIG))
