"""Poses by an update operator that says what is true."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from scipy.spatial.transform import Rotation

from sfmprep.mapping.dense_adjustment import DenseWindow, Edges, project
from sfmprep.mapping.dense_odometry import FIRST, DenseOdometry
from sfmprep.models.flow.droid import DroidImage
from sfmprep.models.flow.droid_network import Updated

SIZE = (96, 64)
FOCAL = 80.0
NUM_FRAMES = 14


def truth() -> DenseWindow:
    """A camera that goes sideways and turns, before hills."""
    steps = np.arange(NUM_FRAMES)
    turns = np.stack((0.004 * steps, -0.01 * steps, 0.003 * np.sin(steps)), axis=1)
    shifts = np.stack((0.12 * steps, 0.02 * np.sin(steps), 0.01 * steps), axis=1)
    row, column = np.mgrid[:8, :12]
    hills = 0.7 + 0.25 * np.sin(column[None] + steps[:, None, None]) * np.cos(row)
    camera = np.array([FOCAL, FOCAL, SIZE[0] / 2, SIZE[1] / 2]) / 8
    rotations = Rotation.from_rotvec(turns).as_matrix()
    arrays = (rotations, shifts, hills, camera)
    names = ("rotations", "translations", "inverse_depths", "camera")
    return DenseWindow(**dict(zip(names, map(torch.from_numpy, arrays), strict=True)))


@dataclass
class Oracle:
    """An update operator that knows the scene; frames are told apart by a feature."""

    scene: DenseWindow
    num_edges: int = 0

    def update(self, edges, hidden, places, target, source) -> Updated:
        self.num_edges = max(self.num_edges, len(edges))
        assert hidden.shape == (len(edges), 128, 8, 12)
        assert target.shape == places.shape == (len(edges), 8, 12, 2)
        ends = [[int(each.features[0, 0, 0]) for each in edge] for edge in edges]
        rows = torch.tensor(ends)
        assert torch.equal(rows[:, 0] - rows[:, 0].min(), source)
        right = project(self.scene, Edges(source=rows[:, 0], other=rows[:, 1])).places
        delta = (right - places).permute(0, 3, 1, 2)
        count = len(source.unique())
        return Updated(
            hidden=hidden,
            delta=delta,
            weight=torch.ones_like(delta),
            damping=torch.full((count, 8, 12), 1e-6),
            mask=torch.zeros(count, 576, 8, 12),
        )


def image(number: int) -> DroidImage:
    planes = torch.full((128, 8, 12), float(number))
    return DroidImage(
        features=planes,
        hidden=planes,
        context=planes,
        size=SIZE,
        padding=(0, 0, 0, 0),
    )


def test_poses_follow_from_true_targets() -> None:
    scene = truth()
    oracle = Oracle(scene)
    way = DenseOdometry(oracle, FOCAL)
    for number in range(NUM_FRAMES):
        way.push(image(number))
        if number + 1 < FIRST:
            assert (way.cam_from_world[0] == np.eye(3)).all()
    assert oracle.num_edges == 36  # of 8 frames, three to either side
    rotations, translations = way.cam_from_world
    right = scene.rotations.numpy()
    turned = rotations @ right.swapaxes(1, 2)
    assert np.degrees(Rotation.from_matrix(turned).magnitude()).max() < 1.0
    centres = -np.einsum("nji,nj->ni", rotations, translations)
    expected = -np.einsum("nji,nj->ni", right, scene.translations.numpy())
    centres *= np.linalg.norm(expected[-1]) / np.linalg.norm(centres[-1])
    off = np.linalg.norm(centres - expected, axis=1)
    assert off.max() < 0.05 * np.linalg.norm(expected[-1])


def test_of_no_frames_there_are_no_poses() -> None:
    rotations, translations = DenseOdometry(Oracle(truth()), FOCAL).cam_from_world
    assert rotations.shape == (0, 3, 3) and translations.shape == (0, 3)
