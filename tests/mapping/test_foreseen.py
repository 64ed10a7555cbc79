"""What pointmaps foresee is believed where two agree and matches fit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from sfmprep.geometry.pointmaps import Foreseen
from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.foreseen import foreseen_matches
from sfmprep.types import Features

LOST = 2
ERROR_PX = 4.0


class Scene:
    """A synthetic capture, one of whose images has no pose.

    Every descriptor comes twice, at points far apart: no ratio test can tell them.
    """

    def __init__(self) -> None:
        options = pycolmap.SyntheticDatasetOptions()
        options.num_rigs, options.num_frames_per_rig = 1, 5
        options.num_points3D, options.num_points2D_without_point3D = 300, 50
        pycolmap.set_random_seed(0)
        self.truth = pycolmap.synthesize_dataset(options)
        rng = np.random.default_rng(0)
        half = rng.normal(size=(150, 32))
        ids = sorted(self.truth.points3D)
        self._row = {key: half[k % 150] for k, key in enumerate(ids)}
        self._rng = rng
        self.features = {i.name: self._of(i) for i in self.truth.images.values()}
        self.name = sorted(self.features)[LOST]
        [self.image] = [i for i in self.truth.images.values() if i.name == self.name]
        self.camera = self.truth.cameras[self.image.camera_id]
        model = pycolmap.Reconstruction(self.truth)
        model.deregister_frame(model.images[self.image.image_id].frame_id)
        self.arrays = ModelArrays.of(model)

    def _of(self, image: pycolmap.Image) -> Features:
        rows = [
            self._row[p.point3D_id] if p.has_point3D() else self._rng.normal(size=32)
            for p in image.points2D
        ]
        table = np.array(rows) + self._rng.normal(0, 0.05, (len(rows), 32))
        camera = self.truth.cameras[image.camera_id]
        return Features(
            xy=np.array([p.xy for p in image.points2D], np.float32),
            scores=np.ones(len(rows), np.float32),
            descriptors=(table / np.linalg.norm(table, axis=1)[:, None]).astype("f4"),
            image_size=(camera.width, camera.height),
        )

    def foreseen(self, off_deg: float = 3.0, count: int = 3) -> list[Foreseen]:
        """By the first images with a pose, turned each about another axis."""
        views, pose = self.arrays.views, self.image.cam_from_world()
        told = []
        for row in range(count):
            axis = np.eye(3)[row % 3]
            off = Rotation.from_rotvec(np.radians(off_deg) * axis).as_matrix()
            turn = off @ pose.rotation.matrix() @ views.rotations[row].T
            centre = views.rotations[row] @ (
                pose.rotation.matrix().T @ -pose.translation - views.centres[row]
            )
            told.append(
                Foreseen(
                    first=views.names[row],
                    second=self.name,
                    focal_px=self.camera.mean_focal_length(),
                    second_from_first=np.column_stack((turn, -turn @ centre)),
                    share=0.8,
                    spread=0.05,
                )
            )
        return told

    def matches(self, told: list[Foreseen]):
        return foreseen_matches(
            *(self.name, self.arrays, told, self.features, [self.camera]),
            max_error_px=ERROR_PX,
        )


@pytest.fixture(scope="module")
def scene() -> Scene:
    return Scene()


def test_what_looks_alike_is_told_by_where_it_is(scene: Scene) -> None:
    found = scene.matches(scene.foreseen())
    assert isinstance(found, dict)
    assert len(found) == 3
    total = right = 0
    for pair, matches in found.items():
        assert pair == tuple(sorted(pair))
        sides = [
            [p.point3D_id for p in image.points2D]
            for name in pair
            for image in scene.truth.images.values()
            if image.name == name
        ]
        total += len(matches)
        right += sum(sides[0][a] == sides[1][b] for a, b in matches.index.tolist())
        assert len(np.unique(matches.index[:, 0])) == len(matches)
        assert len(np.unique(matches.index[:, 1])) == len(matches)
        assert ((matches.scores > 0) & (matches.scores <= 1)).all()
    assert total > 300
    assert right > 0.98 * total


def test_one_pair_alone_is_not_believed(scene: Scene) -> None:
    assert scene.matches(scene.foreseen(count=1)) == (
        "of 1 pairs no two foresee the same pose"
    )
    assert scene.matches([]) == "of 0 pairs no two foresee the same pose"


def test_pairs_that_contradict_each_other_are_not_believed(scene: Scene) -> None:
    assert scene.matches(scene.foreseen(off_deg=40)) == (
        "of 3 pairs no two foresee the same pose"
    )


def test_pairs_whose_depths_do_not_fit_are_not_believed(scene: Scene) -> None:
    told = [replace(each, spread=0.8) for each in scene.foreseen()]
    assert scene.matches(told) == "of 3 pairs no two foresee the same pose"


def test_two_that_agree_on_a_wrong_pose_are_found_out(scene: Scene) -> None:
    """All are turned alike, by half a turn about where they look."""
    told = []
    for each in scene.foreseen():
        turn = Rotation.from_euler("y", 90, degrees=True).as_matrix()
        told.append(replace(each, second_from_first=turn @ each.second_from_first))
    said = scene.matches(told)
    assert isinstance(said, str)
    assert said != "of 3 pairs no two foresee the same pose"
