"""The parallax of models, and captures whose cameras only turned."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.geometry.parallax import only_turns, parallax_deg
from sfmprep.geometry.views import ModelArrays
from tests.support.synthetic_run import synthesize


def test_parallax_of_a_model_does_not_depend_on_its_frame(tmp_path: Path) -> None:
    run = synthesize(tmp_path)
    before = parallax_deg(ModelArrays.of(run.model))
    assert set(before) == set(run.images.names)
    assert min(before.values()) > 5  # cameras all around the points
    run.model.normalize()
    assert parallax_deg(ModelArrays.of(run.model)) == pytest.approx(before, rel=1e-6)


def turn_on_the_spot(model: pycolmap.Reconstruction) -> None:
    """Puts all cameras where the first is, each turned by a degree more."""
    first, *_ = model.frames.values()
    pose, centre = first.rig_from_world, first.rig_from_world.inverse().translation
    for number, image in enumerate(model.images.values()):
        yaw = pycolmap.Rotation3d(np.array([0, np.radians(number), 0]))
        turned = yaw * pose.rotation
        model.frames[image.frame_id].rig_from_world = pycolmap.Rigid3d(
            turned, turned * -centre
        )
        for point in image.points2D:
            if point.has_point3D():
                seen = image.cam_from_world() * model.points3D[point.point3D_id].xyz
                point.xy = model.cameras[image.camera_id].img_from_cam(
                    seen, check_cheirality=False
                )


def test_camera_that_only_turns_has_no_parallax(tmp_path: Path) -> None:
    run = synthesize(tmp_path)
    moved = pycolmap.Reconstruction(run.model)
    turn_on_the_spot(run.model)
    found = parallax_deg(ModelArrays.of(run.model))
    assert found and max(found.values()) < 1e-3
    few = parallax_deg(ModelArrays.of(run.model), max_images=3)
    assert 1 <= len(few) <= 3 and few.keys() <= found.keys()
    names = run.images.names
    assert only_turns([run.model], names)
    assert not only_turns([moved], names)
    assert not only_turns([run.model, moved], names)
    assert not only_turns([run.model], [*names, "in no model.jpg"])
    assert not only_turns([], names)
