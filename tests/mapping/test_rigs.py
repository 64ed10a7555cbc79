"""Poses that keep to the rigs of a capture."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pycolmap
import pytest

from sfmprep.errors import ConfigError
from sfmprep.mapping.rigs import hold_rigs
from sfmprep.mapping.zooms import with_two_cameras

NUM_CAMERAS, NUM_FRAMES = 4, 6


def capture(database: Path, *, noise: float) -> pycolmap.Reconstruction:
    """A model of a turning rig, mapped image by image, in a database of its own."""
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=1,
        num_cameras_per_rig=NUM_CAMERAS,
        num_frames_per_rig=NUM_FRAMES,
        num_points3D=200,
        num_points2D_without_point3D=0,
        camera_model_id=pycolmap.CameraModelId.SIMPLE_PINHOLE,
        camera_params=[400, 320, 240],
        camera_width=640,
        camera_height=480,
        sensor_from_rig_translation_stddev=0.0,
        sensor_from_rig_rotation_stddev=20.0,
    )
    pycolmap.set_random_seed(1)
    true = pycolmap.synthesize_dataset(options)
    rng = np.random.default_rng(2)
    alone = pycolmap.Reconstruction()
    with pycolmap.Database.open(database) as opened:
        for camera in true.cameras.values():
            alone.add_camera_with_trivial_rig(camera)
            opened.write_camera(camera, use_camera_id=True)
        for rig in alone.rigs.values():
            opened.write_rig(rig, use_rig_id=True)
        rows = {}
        for key in sorted(true.images):
            image = true.images[key]
            xy = np.array([p.xy for p in image.points2D])
            rows[key] = {p.point3D_id: k for k, p in enumerate(image.points2D)}
            copy = pycolmap.Image(
                name=f"cam{image.camera_id}/{image.frame_id}.jpg",
                keypoints=xy,
                camera_id=image.camera_id,
                image_id=key,
            )
            pose = image.cam_from_world()
            turn = pycolmap.Rotation3d(rng.normal(0, noise, 3))
            moved = pose.translation + rng.normal(0, noise, 3)
            alone.add_image_with_trivial_frame(
                copy, pycolmap.Rigid3d(turn * pose.rotation, moved)
            )
            opened.write_image(copy, use_image_id=True)
            frame = alone.frames[alone.images[key].frame_id]
            opened.write_frame(frame, use_frame_id=True)
            opened.write_keypoints(key, xy.astype(np.float32))
        for first in rows:
            for second in rows:
                same_frame = true.images[first].frame_id == true.images[second].frame_id
                if first >= second or same_frame:
                    continue
                both = sorted(rows[first].keys() & rows[second].keys())
                matches = [(rows[first][k], rows[second][k]) for k in both]
                found = pycolmap.TwoViewGeometry()
                found.config = pycolmap.TwoViewGeometryConfiguration.CALIBRATED
                found.inlier_matches = np.array(matches, np.uint32).reshape(-1, 2)
                opened.write_matches(first, second, found.inlier_matches)
                opened.write_two_view_geometry(first, second, found)
    for point in true.points3D.values():
        alone.add_point3D(point.xyz, point.track)
    return alone


def rigs_of(
    true: pycolmap.Reconstruction, tmp_path: Path, *, told: bool = True
) -> list[pycolmap.RigConfig]:
    """What a `rig_config.json` says of it."""
    first = true.images[1].cam_from_world().rotation
    cameras = []
    for camera_id in range(1, NUM_CAMERAS + 1):
        entry: dict[str, object] = {"image_prefix": f"cam{camera_id}/"}
        if camera_id == 1:
            entry["ref_sensor"] = True
        elif told:
            image = next(
                i
                for i in true.images.values()
                if i.camera_id == camera_id and i.name.endswith("/1.jpg")
            )
            turn = image.cam_from_world().rotation * first.inverse()
            x, y, z, w = turn.quat
            entry["cam_from_rig_rotation"] = [w, x, y, z]
            entry["cam_from_rig_translation"] = [0.0, 0.0, 0.0]
        if told:
            entry["camera_model_name"] = "SIMPLE_PINHOLE"
            entry["camera_params"] = [400, 320, 240]
        cameras.append(entry)
    path = tmp_path / "rigs.json"
    path.write_text(json.dumps([{"cameras": cameras}]))
    return pycolmap.read_rig_config(path)


def held(
    model: pycolmap.Reconstruction, rigs: list[pycolmap.RigConfig], tmp_path: Path
) -> pycolmap.Reconstruction:
    folder = tmp_path / "folder"
    folder.mkdir()
    return hold_rigs(model, rigs, tmp_path / "a.db", folder)


def spread(model: pycolmap.Reconstruction) -> float:
    """The largest distance between the centres of one frame's cameras."""
    frames: dict[str, list[np.ndarray]] = {}
    for key in model.reg_image_ids():
        image = model.images[key]
        frames.setdefault(image.name.partition("/")[2], []).append(
            image.projection_center()
        )
    return max(float(np.ptp(centres, axis=0).max()) for centres in frames.values())


@pytest.fixture
def true(tmp_path: Path) -> pycolmap.Reconstruction:
    return capture(tmp_path / "true.db", noise=0)


def largest_error_deg(
    model: pycolmap.Reconstruction, true: pycolmap.Reconstruction
) -> float:
    turns = [
        model.images[key].cam_from_world().rotation.inverse()
        * true.images[key].cam_from_world().rotation
        for key in model.reg_image_ids()
    ]
    return max(np.degrees((turn * turns[0].inverse()).angle()) for turn in turns)


def test_all_views_of_a_frame_get_a_pose_at_one_place(
    true: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    model = capture(tmp_path / "a.db", noise=0.01)
    for key in (2, 7, 12):  # were not mapped
        model.deregister_frame(model.images[key].frame_id)
    image = model.images[13]  # was mapped somewhere else
    pose = image.cam_from_world()
    astray = pycolmap.Rigid3d(
        pycolmap.Rotation3d(np.array([0.5, 0, 0])) * pose.rotation, pose.translation + 1
    )
    model.frames[image.frame_id].set_cam_from_world(image.camera_id, astray)
    before = model.num_reg_images()
    found = held(model, rigs_of(true, tmp_path), tmp_path)
    assert (before, found.num_reg_images()) == (21, 24)
    assert model.num_reg_images() == before
    assert spread(model) > 0.1 and spread(found) < 1e-9
    assert largest_error_deg(found, true) < 1e-3
    assert found.compute_mean_reprojection_error() < 1e-2
    assert found.num_rigs() == NUM_CAMERAS  # each image is on its own again
    for camera in found.cameras.values():
        assert camera.params.tolist() == [400, 320, 240]


def test_images_without_a_verified_pair_get_the_pose_of_their_frame(
    true: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    model = capture(tmp_path / "a.db", noise=0.001)
    with pycolmap.Database.open(tmp_path / "a.db") as opened:
        for other in sorted(model.images):
            if other != 6 and opened.exists_matches(6, other):
                opened.delete_matches(6, other)
                opened.delete_two_view_geometry(6, other)
    without = pycolmap.Reconstruction(model)
    without.deregister_frame(without.images[6].frame_id)
    found = held(without, rigs_of(true, tmp_path), tmp_path)
    assert found.num_reg_images() == NUM_CAMERAS * NUM_FRAMES
    assert found.images[6].has_pose and found.images[6].num_points3D == 0
    assert spread(found) < 1e-9


def test_what_a_rig_leaves_open_is_taken_from_the_model(
    true: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    model = capture(tmp_path / "a.db", noise=0.002)
    model.deregister_frame(model.images[7].frame_id)
    found = held(model, rigs_of(true, tmp_path, told=False), tmp_path)
    assert found.num_reg_images() == NUM_CAMERAS * NUM_FRAMES
    assert largest_error_deg(found, true) < 0.02


def test_models_without_images_of_a_rig_stay(
    true: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    model = capture(tmp_path / "a.db", noise=0.01)
    rigs = rigs_of(true, tmp_path)
    for image in model.images.values():
        image.name = f"other/{image.name}"
    found = held(model, rigs, tmp_path)
    assert found.num_reg_images() == model.num_reg_images()
    for key in model.reg_image_ids():
        expected = model.images[key].cam_from_world().matrix()
        np.testing.assert_array_equal(
            found.images[key].cam_from_world().matrix(), expected
        )


def test_a_rig_that_does_not_fit_is_an_error(
    true: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    model = capture(tmp_path / "a.db", noise=0.01)
    rigs = rigs_of(true, tmp_path)
    for camera in rigs[0].cameras:
        camera.image_prefix = "cam"  # one folder for all: who is whose?
    with pytest.raises(
        ConfigError, match="the rigs do not fit the 24 images with a pose"
    ):
        held(model, rigs, tmp_path)


def test_images_that_look_zoomed_share_the_camera_of_their_rig(
    true: pycolmap.Reconstruction, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """COLMAP would end the run: its database has one camera for them."""
    model = capture(tmp_path / "a.db", noise=0.002)
    zoomed = [key for key in sorted(model.images) if model.images[key].camera_id == 1]
    apart = with_two_cameras(model, 1, zoomed[:2])
    assert len(apart.cameras) == NUM_CAMERAS + 1
    found = held(apart, rigs_of(true, tmp_path, told=False), tmp_path)
    assert sorted(found.cameras) == sorted(model.cameras)
    assert found.num_reg_images() == NUM_CAMERAS * NUM_FRAMES
    assert largest_error_deg(found, true) < 0.02
    assert (
        "2 images of rigs, such as cam1/1.jpg, look as if taken with another zoom than"
        " others of their camera. A camera of a rig has one: put them into a folder of"
        " their own, and into a rig of their own, if they are right"
    ) in caplog.text


def test_images_beside_a_rig_keep_the_camera_of_their_zoom(
    true: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    model = capture(tmp_path / "a.db", noise=0.002)
    beside = [key for key in sorted(model.images) if model.images[key].camera_id == 4]
    apart = with_two_cameras(model, 4, beside[:2])
    apart.cameras[NUM_CAMERAS + 1].focal_length = 401.0
    rig = rigs_of(true, tmp_path)[0]
    of_three = pycolmap.RigConfig(cameras=list(rig.cameras)[:3])
    found = held(apart, [of_three], tmp_path)
    assert found.num_reg_images() == NUM_CAMERAS * NUM_FRAMES
    cameras = {key: found.images[key].camera_id for key in beside}
    assert len({cameras[key] for key in beside[:2]}) == 1
    assert len({cameras[key] for key in beside[2:]}) == 1
    assert cameras[beside[0]] != cameras[beside[2]]


def test_settled_images_stay_and_tell_what_the_rig_leaves_open(
    true: pycolmap.Reconstruction, tmp_path: Path
) -> None:
    model = capture(tmp_path / "a.db", noise=0.0)
    settled = {image.name for image in true.images.values() if image.frame_id <= 8}
    settled.remove("cam1/2.jpg")  # the reference: COLMAP would take its pose alone
    rng = np.random.default_rng(1)
    before = {}
    for image in model.images.values():
        pose = image.cam_from_world()
        if image.name in settled:
            before[image.name] = pose.matrix()
            continue
        turn = pycolmap.Rotation3d(rng.normal(0, 0.01, 3))
        moved = pycolmap.Rigid3d(turn * pose.rotation, pose.translation + 0.02)
        model.frames[image.frame_id].set_cam_from_world(image.camera_id, moved)
    folder = tmp_path / "folder"
    folder.mkdir()
    rigs = rigs_of(true, tmp_path, told=False)
    found = hold_rigs(model, rigs, tmp_path / "a.db", folder, settled=settled)
    assert rigs[0].cameras[1].cam_from_rig is None  # it stays as it is
    for image in found.images.values():
        if image.name in settled:
            np.testing.assert_allclose(
                image.cam_from_world().matrix(), before[image.name], atol=1e-9
            )
    assert spread(found) < 1e-9
    assert largest_error_deg(found, true) < 0.01
