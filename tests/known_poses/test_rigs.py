"""Poses of panoramas, and rigs that come with known poses."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from scipy.spatial.transform import Rotation

from sfmprep.capture.panorama import Panorama, View
from sfmprep.known_poses.panoramas import of_photographs, turns_of
from sfmprep.known_poses.poses import CONVENTIONS, Convention, KnownPoses
from sfmprep.known_poses.rigs import rigs_of_poses

RNG = np.random.default_rng(0)
ROTATIONS = Rotation.random(3, rng=RNG).as_matrix()  # camera from world
CENTRES = RNG.normal(size=(3, 3))
FLIP = np.diag([1.0, -1, -1])
VIEWS = (View(90, 20), View(0, -20))


def given(names: tuple[str, ...], convention: Convention) -> KnownPoses:
    turned = FLIP @ ROTATIONS if convention.axes == "opengl" else ROTATIONS
    if convention.direction == "world_from_cam":
        rotations, vectors = turned.swapaxes(1, 2), CENTRES
    else:
        rotations, vectors = turned, -np.einsum("nij,nj->ni", turned, CENTRES)
    return KnownPoses(
        names=names,
        rotations=rotations,
        vectors=vectors,
        convention=convention,
        is_told=True,
        source="a test",
    )


def panorama(name: str) -> Panorama:
    return Panorama(
        name=name,
        side=160,
        views=tuple(f"panorama-160/{view.name}/{name}" for view in VIEWS),
        directions=tuple((view.yaw_deg, view.pitch_deg) for view in VIEWS),
    )


@pytest.mark.parametrize("convention", CONVENTIONS, ids=str)
def test_views_are_posed_as_their_panorama(convention: Convention) -> None:
    spheres = [panorama("a.jpg"), panorama("b.jpg")]
    names = sorted([*spheres[0].views, *spheres[1].views, "c.jpg"])
    poses = given(("b.jpg", "c.jpg", "a.png"), convention)  # a by another suffix
    found = of_photographs(poses, names, spheres, "poses")
    assert list(found.names) == names
    rotations, centres = found.cam_from_world()
    for name, rotation, centre in zip(names, rotations, centres, strict=True):
        row = {"b": 0, "c": 1, "a": 2}[Path(name).stem]
        view = next((v for v in VIEWS if f"/{v.name}/" in name), None)
        turn = np.eye(3) if view is None else view.rig_from_view.T
        np.testing.assert_allclose(rotation, turn @ ROTATIONS[row], atol=1e-12)
        np.testing.assert_allclose(centre, CENTRES[row], atol=1e-12)
    # a direction that the view looks in is that of the panorama, turned right and up
    x, y, z = ROTATIONS[2] @ rotations[names.index(spheres[0].views[0])].T @ (0, 0, 1)
    np.testing.assert_allclose((x, -y), np.sin(np.radians((70, 20))), atol=1e-12)
    assert abs(z) < 1e-12


def test_poses_of_views_are_theirs() -> None:
    sphere = panorama("a.jpg")
    poses = given((*sphere.views, "c.jpg"), CONVENTIONS[0])
    found = of_photographs(poses, [*sphere.views, "c.jpg"], [sphere], "poses")
    np.testing.assert_array_equal(found.cam_from_world()[0], ROTATIONS)
    assert turns_of(["c.jpg"], []) is None
    by_time = replace(poses, turns=turns_of(poses.names, [sphere]))
    chosen = by_time.chosen({"c.jpg": "d.jpg"})
    np.testing.assert_allclose(chosen.cam_from_world()[0], ROTATIONS[2:], atol=1e-12)


def model_with_rig(folder: Path, names: list[list[str]]) -> Path:
    """Frames of two cameras, whose images are called so: [frame][camera]."""
    model = pycolmap.Reconstruction()
    rig = pycolmap.Rig(rig_id=1)
    for camera_id in (1, 2):
        camera = pycolmap.Camera.create_from_model_name(
            camera_id, "SIMPLE_PINHOLE", 500, 640, 480
        )
        model.add_camera(camera)
        if camera_id == 1:
            rig.add_ref_sensor(camera.sensor_id)
        else:
            rig.add_sensor(camera.sensor_id, pycolmap.Rigid3d())
    model.add_rig(rig)
    for frame_id, pair in enumerate(names, 1):
        frame = pycolmap.Frame(frame_id=frame_id, rig_id=1)
        images = [
            pycolmap.Image(
                name=name, camera_id=camera_id, image_id=10 * frame_id + camera_id
            )
            for camera_id, name in enumerate(pair, 1)
        ]
        for image in images:
            frame.add_data_id(image.data_id)
        frame.rig_from_world = pycolmap.Rigid3d()
        model.add_frame(frame)
        for image in images:
            image.frame_id = frame_id
            model.add_image(image)
    folder.mkdir(exist_ok=True)
    model.write(folder)
    return folder


def test_rigs_of_a_model(tmp_path: Path) -> None:
    names = [[f"{side}/00{k}.jpg" for side in ("left", "right")] for k in (1, 2)]
    folder = model_with_rig(tmp_path / "model", names)
    (rig,) = rigs_of_poses(folder, [name for pair in names for name in pair])
    assert rig == {
        "cameras": [
            {"image_prefix": "left/", "ref_sensor": True},
            {"image_prefix": "right/"},
        ]
    }
    assert rigs_of_poses(tmp_path / "poses.csv", ["a.jpg"]) == []


@pytest.mark.parametrize(
    ("names", "capture"),
    [
        ([["1.jpg", "2.jpg"], ["3.jpg", "4.jpg"]], ["1.jpg", "2.jpg"]),
        ([["l/1.jpg", "r/2.jpg"], ["l/3.jpg", "r/4.jpg"]], ["l/1.jpg", "r/2.jpg"]),
        ([["l/1.jpg", "r/1.jpg"], ["l/2.jpg", "r/2.jpg"]], ["l/1.jpg", "x/1.jpg"]),
    ],
)
def test_rigs_that_names_do_not_tell_are_left_out(
    names: list[list[str]],
    capture: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    folder = model_with_rig(tmp_path, names)
    assert rigs_of_poses(folder, capture) == []
    assert caplog.messages == [
        f"rig 1 of 2 cameras in {folder} is not kept: expected images that are called"
        " by their camera and their frame, such as left/0001.jpg. Tell it by --rigs"
    ]
