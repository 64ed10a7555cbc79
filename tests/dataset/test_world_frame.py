"""Up, middle, scale and GPS of reconstructions whose true frame is known."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import GPS

from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import WorldConfig
from sfmprep.coords import stored_pose
from sfmprep.dataset.gravity import rotation_to_z
from sfmprep.dataset.world_frame import WorldFrame, apply_world, find_world
from sfmprep.errors import ConfigError, ReconstructionError

Float64 = NDArray[np.float64]
SIZE = (640, 480)
BERLIN = (52.52, 13.405, 34.0)


def look(
    eye: Sequence[float], target: Sequence[float], *, roll_deg: float = 0.0
) -> Float64:
    """The [3, 4] pose of a camera whose right side is down by `roll_deg`; z is up."""
    forward = np.subtract(target, eye) / np.linalg.norm(np.subtract(target, eye))
    right = np.cross(forward, (0, 0, 1))
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    a = math.radians(roll_deg)
    x = math.cos(a) * right + math.sin(a) * down
    y = math.cos(a) * down - math.sin(a) * right
    rotation = np.stack((x, y, forward))
    return np.column_stack((rotation, -rotation @ eye))


def orbit(
    number: int = 24, *, height: float = 2.0, arc_deg: float = 330, **options: float
) -> list[Float64]:
    """Cameras on a circle of radius 4 that look at the origin."""
    angles = np.radians(np.linspace(0, arc_deg, number))
    return [
        look((4 * math.cos(a), 4 * math.sin(a), height), (0, 0, 0), **options)
        for a in angles
    ]


def capture(
    poses: Sequence[Float64], points: Float64 | None = None, **info: object
) -> tuple[pycolmap.Reconstruction, ImageSet]:
    """A model with these poses and points, each point seen by four cameras."""
    model = pycolmap.Reconstruction()
    camera = pycolmap.Camera.create_from_model_id(
        1, pycolmap.CameraModelId.SIMPLE_PINHOLE, 500.0, *SIZE
    )
    model.add_camera_with_trivial_rig(camera)
    points = np.zeros((0, 3)) if points is None else points
    names = [f"{k:03}.jpg" for k in range(len(poses))]
    for image_id, (name, pose) in enumerate(zip(names, poses, strict=True), 1):
        seen = points @ pose[:, :3].T + pose[:, 3]
        xy = 500 * seen[:, :2] / seen[:, 2:] + np.array(SIZE) / 2
        image = pycolmap.Image(
            name=name, image_id=image_id, camera_id=1, keypoints=xy.reshape(-1, 2)
        )
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
    for k, point in enumerate(points):
        first = k % len(poses)
        track = pycolmap.Track()
        for step in range(min(4, len(poses))):
            track.add_element((first + step) % len(poses) + 1, k)
        model.add_point3D(point, track)
    infos = {
        name: ImageInfo(size=SIZE, orientation=1, num_bytes=1, **info) for name in names
    }
    return model, ImageSet(Path("photographs"), tuple(names), infos, {})


def with_infos(
    images: ImageSet, change: Callable[[int, ImageInfo], ImageInfo]
) -> ImageSet:
    changed = {n: change(k, images.infos[n]) for k, n in enumerate(images.names)}
    return replace(images, infos=changed)


def disguised(
    model: pycolmap.Reconstruction, seed: int = 1, scale: float = 0.37
) -> tuple[pycolmap.Reconstruction, pycolmap.Sim3d]:
    """The model in a random frame, as a mapper leaves it, and what made it so."""
    rng = np.random.default_rng(seed)
    turn, _ = np.linalg.qr(rng.normal(size=(3, 3)))
    turn *= np.sign(np.linalg.det(turn))
    sfm_from_true = pycolmap.Sim3d(
        scale, pycolmap.Rotation3d(turn), rng.normal(size=3) * 5
    )
    moved = pycolmap.Reconstruction(model)
    moved.transform(sfm_from_true)
    return moved, sfm_from_true


def angle_deg(a: Float64, b: Sequence[float]) -> float:
    cosine = np.dot(a, b) / (np.linalg.norm(a) * np.linalg.norm(b))
    return math.degrees(math.acos(np.clip(cosine, -1, 1)))


def tilt_deg(frame: WorldFrame, sfm_from_true: pycolmap.Sim3d) -> float:
    """The angle between the dataset's z and the true z."""
    rotation = frame.world_from_sfm.rotation * sfm_from_true.rotation
    return angle_deg(rotation.matrix() @ (0, 0, 1), (0, 0, 1))


def gravity_of(pose: Float64) -> tuple[float, float, float]:
    x, y, z = pose[:, :3] @ (0, 0, -1)
    return float(x), float(y), float(z)


def plane(
    number: int, normal: Sequence[float], centre: Sequence[float], size: float = 2.0
) -> Float64:
    rng = np.random.default_rng(5)
    flat = np.column_stack((rng.uniform(-size, size, (number, 2)), np.zeros(number)))
    flat += rng.normal(scale=0.002, size=flat.shape)
    unit = np.array(normal) / np.linalg.norm(normal)
    return flat @ rotation_to_z(unit) + np.array(centre)


# --------------------------------------------------------------------------------- up
@pytest.mark.parametrize("direction", [(0, 0, 1), (0, 0, -1), (1, 2, -2), (0, -1, 0)])
def test_rotation_to_z_is_a_rotation_to_z(direction: tuple[float, ...]) -> None:
    unit = np.array(direction, np.float64) / np.linalg.norm(direction)
    rotation = rotation_to_z(unit)
    np.testing.assert_allclose(rotation @ unit, (0, 0, 1), atol=1e-12)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(3), atol=1e-12)
    assert np.linalg.det(rotation) > 0


@pytest.mark.parametrize("height", [-1.5, 0.0, 2.0, 8.0])
@pytest.mark.parametrize("arc_deg", [90.0, 330.0])
def test_level_cameras_tell_up_whatever_their_common_tilt(
    height: float, arc_deg: float
) -> None:
    model, images = capture(orbit(height=height, arc_deg=arc_deg))
    moved, sfm_from_true = disguised(model)
    frame = find_world(moved, images, WorldConfig())
    assert tilt_deg(frame, sfm_from_true) < 1.0
    assert frame.up.startswith("the horizontal axes of 24 cameras")


def test_rolled_cameras_are_outvoted() -> None:
    rng = np.random.default_rng(0)
    poses = [
        look(
            (4 * math.cos(a), 4 * math.sin(a), 2),
            (0, 0, 0),
            roll_deg=90 if k % 4 == 0 else rng.normal(scale=2),
        )
        for k, a in enumerate(np.radians(np.linspace(0, 330, 40)))
    ]
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    assert tilt_deg(find_world(moved, images, WorldConfig()), sfm_from_true) < 2.0


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_photographs_that_are_shown_turned_give_the_same_up(orientation: int) -> None:
    model, images = capture([stored_pose(pose, orientation) for pose in orbit()])
    images = with_infos(images, lambda k, info: replace(info, orientation=orientation))
    moved, sfm_from_true = disguised(model)
    assert tilt_deg(find_world(moved, images, WorldConfig()), sfm_from_true) < 1.0


def test_cameras_that_hardly_turn_tell_up_by_their_vertical_axes() -> None:
    model, images = capture(orbit(12, height=0.5, arc_deg=15))
    moved, sfm_from_true = disguised(model)
    frame = find_world(moved, images, WorldConfig())
    assert tilt_deg(frame, sfm_from_true) == pytest.approx(7.1, abs=0.5)  # their tilt
    assert frame.up.startswith("the vertical axes of 12 cameras that turn only by 1")


@pytest.mark.parametrize("arc_deg", [15.0, 330.0])
def test_floor_corrects_what_cameras_tell(arc_deg: float) -> None:
    poses = orbit(20, height=1.5, arc_deg=arc_deg, roll_deg=4)
    model, images = capture(poses, plane(600, (0, 0, 1), (0, 0, 0)))
    moved, sfm_from_true = disguised(model)
    frame = find_world(moved, images, WorldConfig())
    assert tilt_deg(frame, sfm_from_true) < 1.0
    assert "planes of points (1)" in frame.up


def test_wall_corrects_only_the_tilt_towards_it() -> None:
    poses = [look((x, -5, 1), (x, 0, 0.3), roll_deg=3) for x in np.linspace(-1, 1, 10)]
    model, images = capture(poses, plane(600, (0, 1, 0), (0, 0, 0)))
    moved, sfm_from_true = disguised(model)
    frame = find_world(moved, images, WorldConfig())
    true_from_world = (
        sfm_from_true.rotation.inverse() * frame.world_from_sfm.rotation.inverse()
    )
    x, y, _ = true_from_world.matrix() @ (0, 0, 1)
    assert abs(math.degrees(math.asin(y))) < 1.5  # the cameras alone are 8 degrees off
    assert abs(math.degrees(math.asin(x))) == pytest.approx(3, abs=0.5)


def test_slanted_plane_is_no_floor() -> None:
    model, images = capture(orbit(), plane(600, (0.5, 0, 1), (0, 0, 0)))
    moved, sfm_from_true = disguised(model)
    frame = find_world(moved, images, WorldConfig())
    assert tilt_deg(frame, sfm_from_true) < 1.0
    assert "planes" not in frame.up


def test_cameras_that_look_straight_down_are_above() -> None:
    rng = np.random.default_rng(2)
    poses = []
    for x, y in rng.uniform(-5, 5, (30, 2)):
        heading = rng.uniform(0, 2 * math.pi)
        tip = (x + 0.2 * math.cos(heading), y + 0.2 * math.sin(heading), 0)
        poses.append(look((x, y, 10), tip))
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    assert tilt_deg(find_world(moved, images, WorldConfig()), sfm_from_true) < 2.0


# ---------------------------------------------------------------------------- gravity
def test_gravity_of_the_sensors_comes_before_the_cameras_axes() -> None:
    poses = orbit(20, roll_deg=20)
    model, images = capture(poses)
    images = with_infos(
        images, lambda k, info: replace(info, gravity=gravity_of(poses[k]))
    )
    moved, sfm_from_true = disguised(model)
    frame = find_world(moved, images, WorldConfig())
    assert tilt_deg(frame, sfm_from_true) < 1e-4
    assert frame.up == (
        "gravity in the headers of 20 of 20 images, which agree to 0.0 degrees (rms)"
    )


def test_wrong_sensors_are_outvoted() -> None:
    poses = orbit(20)
    model, images = capture(poses)
    images = with_infos(
        images,
        lambda k, info: replace(
            info,
            gravity=(0.5, math.sqrt(0.75), 0.0) if k < 8 else gravity_of(poses[k]),
        ),
    )
    moved, sfm_from_true = disguised(model)
    frame = find_world(moved, images, WorldConfig())
    assert tilt_deg(frame, sfm_from_true) < 1e-4
    assert frame.up.startswith("gravity in the headers of 12 of 20 images")


@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_gravity_is_of_the_stored_pixels(orientation: int) -> None:
    poses = [stored_pose(pose, orientation) for pose in orbit(20, roll_deg=10)]
    model, images = capture(poses)
    images = with_infos(
        images,
        lambda k, info: replace(
            info, gravity=gravity_of(poses[k]), orientation=orientation
        ),
    )
    moved, sfm_from_true = disguised(model)
    assert tilt_deg(find_world(moved, images, WorldConfig()), sfm_from_true) < 1e-4


def test_gravity_against_how_images_are_shown_is_not_believed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    poses = orbit(20)
    model, images = capture(poses)
    images = with_infos(  # as if an editor had turned the pixels by 90 degrees
        images, lambda k, info: replace(info, gravity=(1.0, 0.0, 0.0))
    )
    moved, sfm_from_true = disguised(model)
    frame = find_world(moved, images, WorldConfig())
    assert tilt_deg(frame, sfm_from_true) < 1.0
    assert "contradicts how they are shown in all but 0" in caplog.text


def test_gravity_that_differs_after_reconstruction_is_not_believed(
    caplog: pytest.LogCaptureFixture,
) -> None:
    model, images = capture(orbit(20, height=3))
    images = with_infos(  # every sensor says that its camera is level
        images, lambda k, info: replace(info, gravity=(0.0, 1.0, 0.0))
    )
    moved, sfm_from_true = disguised(model)
    frame = find_world(moved, images, WorldConfig())
    assert tilt_deg(frame, sfm_from_true) < 1.0
    assert "after reconstruction; it is not used" in caplog.text


def test_gravity_of_cameras_that_look_down_is_believed() -> None:
    poses = [look((x, 0, 10), (x, 0.3, 0)) for x in np.linspace(-9, 9, 8)]
    model, images = capture(poses)
    images = with_infos(
        images, lambda k, info: replace(info, gravity=gravity_of(poses[k]))
    )
    moved, sfm_from_true = disguised(model)
    assert tilt_deg(find_world(moved, images, WorldConfig()), sfm_from_true) < 1e-4


# ------------------------------------------------------------------- middle and scale
def test_origin_is_what_the_cameras_look_at_not_the_far_points() -> None:
    rng = np.random.default_rng(3)
    object_points = rng.normal(scale=0.3, size=(300, 3))
    sky = rng.normal(size=(250, 3)) * 2000
    model, images = capture(orbit(), np.concatenate((object_points, sky)))
    moved, sfm_from_true = disguised(model)
    world = find_world(moved, images, WorldConfig()).world_from_sfm
    target = world * (sfm_from_true * np.zeros(3))
    assert np.linalg.norm(target) < 0.05 * 4 * world.scale * sfm_from_true.scale


def test_origin_of_parallel_cameras_lies_among_the_points() -> None:
    poses = [look((x, -5, 0), (x, 0, 0)) for x in np.linspace(-1, 1, 9)]
    model, images = capture(poses, plane(300, (0, 1, 0), (0, 2, 0)))
    moved, sfm_from_true = disguised(model, scale=1)
    world = find_world(moved, images, WorldConfig()).world_from_sfm
    assert np.linalg.norm(world * (sfm_from_true * np.array((0, 2, 0)))) < 0.3


def test_centre_and_up_can_be_left_alone() -> None:
    model, images = capture(orbit())
    moved, _ = disguised(model)
    config = WorldConfig(up="keep", centre=False)
    frame = find_world(moved, images, config)
    np.testing.assert_array_equal(frame.world_from_sfm.matrix(), np.eye(4)[:3])
    assert frame.up == "kept as reconstructed"


def test_unit_scale_puts_all_cameras_into_the_unit_ball() -> None:
    model, images = capture(orbit())
    moved, _ = disguised(model)
    frame = find_world(moved, images, WorldConfig(unit_scale=True))
    done = apply_world(moved, frame.world_from_sfm)
    radii = [np.linalg.norm(i.projection_center()) for i in done.images.values()]
    assert max(radii) == pytest.approx(1)
    assert frame.scale == "all cameras are within 1 of the origin"


def test_one_camera_has_a_frame() -> None:
    model, images = capture([look((4, 0, 0), (0, 0, 0))])
    moved, sfm_from_true = disguised(model)
    frame = find_world(moved, images, WorldConfig(unit_scale=True))
    assert tilt_deg(frame, sfm_from_true) < 1e-4
    assert np.isfinite(frame.world_from_sfm.matrix()).all()


def test_model_of_other_images_is_refused() -> None:
    model, _ = capture(orbit(3))
    _, images = capture(orbit(2))
    with pytest.raises(
        ConfigError, match=r"'002\.jpg' of the model is not among the 2"
    ):
        find_world(model, images, WorldConfig())


def test_empty_model_is_refused() -> None:
    _, images = capture(orbit(2))
    with pytest.raises(ReconstructionError, match="no registered image"):
        find_world(pycolmap.Reconstruction(), images, WorldConfig())


# -------------------------------------------------------------------------- transform
def test_transform_keeps_residuals_and_the_argument() -> None:
    options = pycolmap.SyntheticDatasetOptions()
    options.num_rigs, options.num_cameras_per_rig = 2, 2
    options.num_frames_per_rig, options.num_points3D = 4, 60
    model = pycolmap.synthesize_dataset(options)
    names = sorted(i.name for i in model.images.values())
    infos = {n: ImageInfo(size=SIZE, orientation=1, num_bytes=1) for n in names}
    images = ImageSet(Path("photographs"), tuple(names), infos, {})
    before = pycolmap.Reconstruction(model)
    frame = find_world(model, images, WorldConfig(unit_scale=True))
    done = apply_world(model, frame.world_from_sfm)
    sim = frame.world_from_sfm
    for point_id, point in model.points3D.items():
        np.testing.assert_array_equal(point.xyz, before.points3D[point_id].xyz)
        np.testing.assert_allclose(done.points3D[point_id].xyz, sim * point.xyz)
        for element in point.track.elements:
            image = model.images[element.image_id]
            np.testing.assert_allclose(
                done.images[element.image_id].project_point(sim * point.xyz),
                image.project_point(point.xyz),
                atol=1e-6,
            )
    for image_id, image in model.images.items():
        pose = image.cam_from_world()
        np.testing.assert_array_equal(
            pose.matrix(), before.images[image_id].cam_from_world().matrix()
        )
        np.testing.assert_allclose(
            done.images[image_id].projection_center(),
            sim * image.projection_center(),
            atol=1e-9,
        )


def test_json_holds_the_transform_and_its_inverse() -> None:
    model, images = capture(orbit())
    moved, _ = disguised(model)
    frame = find_world(moved, images, WorldConfig(unit_scale=True))
    written = json.loads(json.dumps(frame.to_json()))
    matrix = np.array(written["world_from_sfm"])
    np.testing.assert_allclose(matrix[:3], frame.world_from_sfm.matrix())
    np.testing.assert_allclose(
        matrix @ np.array(written["sfm_from_world"]), np.eye(4), atol=1e-12
    )
    np.testing.assert_allclose(
        matrix[:3, :3],
        written["scale_factor"] * np.array(written["rotation"]),
        atol=1e-12,
    )
    np.testing.assert_allclose(matrix[:3, 3], written["translation"])
    assert written["is_metric"] is False
    assert written["up"] == frame.up
    assert written["scale"] == frame.scale


# -------------------------------------------------------------------------------- GPS
def test_enu_of_known_points() -> None:
    # one second of arc at the equator: 6378137 m east; north by the meridian's radius
    # there, a (1 - e^2), with WGS84's a = 6378137 and e^2 = 0.00669437999014
    second = 1 / 3600
    east = 6378137 * math.radians(second)
    north = 6378137 * (1 - 0.00669437999014) * math.radians(second)
    earth = np.array([(0, second, 0), (second, 0, 0), (0, 0, 7)], np.float64)
    enu = pycolmap.GPSTransform().ellipsoid_to_enu(earth, 0, 0, 0)
    np.testing.assert_allclose(enu, [(east, 0, 0), (0, north, 0), (0, 0, 7)], atol=1e-3)


def located(
    images: ImageSet,
    poses: Sequence[Float64],
    *,
    noise_m: float = 0.0,
    heights: bool = True,
    accuracy_m: float | None = None,
    origin: tuple[float, float, float] = BERLIN,
) -> ImageSet:
    """Images whose EXIF holds the true centres, in metres east, north, up of origin."""
    rng = np.random.default_rng(7)
    enu = np.array([-p[:, :3].T @ p[:, 3] for p in poses])
    enu += rng.normal(size=enu.shape) * noise_m * (1, 1, 2)
    earth = np.asarray(pycolmap.GPSTransform().enu_to_ellipsoid(enu, *origin))
    return with_infos(
        images,
        lambda k, info: replace(
            info,
            gps=(*map(float, earth[k, :2]), float(earth[k, 2]) if heights else None),
            gps_accuracy_m=accuracy_m,
        ),
    )


def block(number: int = 30, size: float = 40.0) -> list[Float64]:
    """A drone's cameras, metres: spread over an area, looking down at 30 degrees."""
    rng = np.random.default_rng(4)
    return [
        look((x, y, 30 + z), (x * 0.2, y * 0.2, 0))
        for x, y, z in rng.uniform(-size, size, (number, 3)) * (1, 1, 0.1)
    ]


def world_from_true(
    frame: WorldFrame, sfm_from_true: pycolmap.Sim3d
) -> tuple[float, Float64]:
    """Scale and rotation of the true frame in the dataset's, exact where identity."""
    both = frame.world_from_sfm.matrix() @ np.vstack(
        (sfm_from_true.matrix(), (0, 0, 0, 1))
    )
    scale = float(np.cbrt(np.linalg.det(both[:, :3])))
    return scale, both[:, :3] / scale


@pytest.mark.parametrize("origin", [BERLIN, (-33.9, 18.4, 5.0), (-17.0, 180.0, 0.0)])
def test_gps_gives_metres_north_and_the_origin(
    origin: tuple[float, float, float],
) -> None:
    poses = block()
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    images = located(images, poses, origin=origin)
    frame = find_world(moved, images, WorldConfig(georeference=True, centre=False))
    done = apply_world(moved, frame.world_from_sfm)
    assert frame.origin is not None
    for image in done.images.values():
        enu = np.asarray(image.projection_center())[None]
        earth = pycolmap.GPSTransform().enu_to_ellipsoid(enu, *frame.origin)
        latitude, longitude, altitude = images.infos[image.name].gps or (0, 0, 0)
        np.testing.assert_allclose(np.asarray(earth)[0, 0], latitude, atol=1e-8)
        turn = (np.asarray(earth)[0, 1] - longitude + 180) % 360 - 180
        assert abs(turn) < 1e-8
        np.testing.assert_allclose(np.asarray(earth)[0, 2], altitude, atol=1e-3)
    assert frame.scale.startswith("metres, by the GPS of 30 of 30 images, known to 0.0")


def test_files_with_gps_give_metres(tmp_path: Path) -> None:
    poses = block(12)
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    for name, info in located(images, poses).infos.items():
        latitude, longitude, altitude = info.gps or (0, 0, 0)
        tags = Image.Exif()
        tags[0x8825] = {
            **{GPS.GPSLatitudeRef: "N", GPS.GPSLatitude: sexagesimal(latitude)},
            **{GPS.GPSLongitudeRef: "E", GPS.GPSLongitude: sexagesimal(longitude)},
            **{GPS.GPSAltitudeRef: b"\0", GPS.GPSAltitude: altitude},
        }
        Image.new("RGB", SIZE).save(tmp_path / name, exif=tags)
    config = WorldConfig(georeference=True)
    frame = find_world(moved, ImageSet.scan(tmp_path), config)
    scale, rotation = world_from_true(frame, sfm_from_true)
    assert scale == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(rotation, np.eye(3), atol=1e-3)


def sexagesimal(degrees: float) -> tuple[float, float, float]:
    minutes = degrees % 1 * 60
    return math.floor(degrees), math.floor(minutes), minutes % 1 * 60


def test_origin_moves_with_the_centre() -> None:
    poses = block()
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    frame = find_world(moved, located(images, poses), WorldConfig(georeference=True))
    assert frame.origin is not None
    expected = pycolmap.GPSTransform().ellipsoid_to_enu(
        np.array([frame.origin]), *BERLIN
    )
    centre = sfm_from_true.inverse() * (frame.world_from_sfm.inverse() * np.zeros(3))
    np.testing.assert_allclose(np.asarray(expected)[0], centre, atol=1e-2)
    assert np.linalg.norm(centre[:2]) < 5
    written = frame.to_json()
    assert written["is_metric"] is True
    assert "latitude" not in json.dumps(written)  # georeference.json alone tells it


def test_wrong_positions_are_left_out() -> None:
    poses = block()
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    images = located(images, poses, noise_m=0.2)
    images = with_infos(
        images,
        lambda k, info: (
            replace(info, gps=(52.5 + k / 1e3, 13.4, 99)) if k < 9 else info
        ),
    )
    frame = find_world(moved, images, WorldConfig(georeference=True))
    scale, rotation = world_from_true(frame, sfm_from_true)
    assert scale == pytest.approx(1, abs=0.01)
    np.testing.assert_allclose(rotation, np.eye(3), atol=0.02)
    assert "images (9 others contradict them)" in frame.scale


def test_three_positions_are_enough() -> None:
    poses = orbit(3, height=1, arc_deg=200)
    poses = [np.column_stack((p[:, :3], p[:, 3] * 10)) for p in poses]  # radius 40 m
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    images = located(images, poses, noise_m=0.3)
    frame = find_world(moved, images, WorldConfig(georeference=True))
    scale, rotation = world_from_true(frame, sfm_from_true)
    assert scale == pytest.approx(1, abs=0.03)
    np.testing.assert_allclose(rotation, np.eye(3), atol=0.05)
    assert "GPS of 3 of 3 images" in frame.scale


def test_straight_path_keeps_up_and_gets_heading_and_metres() -> None:
    poses = [
        look((10 * x, 20 * x, 1.6), (10 * x + 5 * math.sin(9 * x), 20 * x - 9, 1))
        for x in np.linspace(-1, 1, 20)
    ]
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    images = located(images, poses)
    frame = find_world(moved, images, WorldConfig(georeference=True))
    scale, rotation = world_from_true(frame, sfm_from_true)
    assert scale == pytest.approx(1, abs=1e-3)
    np.testing.assert_allclose(rotation, np.eye(3), atol=0.03)
    assert "cameras" in frame.up


def test_gps_overrules_cameras_that_were_not_held_level() -> None:
    poses = [  # a drone without gravity in its photographs, that looks straight down
        look((x, y, 30), (x, y + 0.1, 0))
        for x in np.linspace(-40, 40, 6)
        for y in np.linspace(-30, 30, 5)
    ]
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    assert tilt_deg(find_world(moved, images, WorldConfig()), sfm_from_true) > 80
    images = located(images, poses, noise_m=1.0)
    frame = find_world(moved, images, WorldConfig(georeference=True))
    assert tilt_deg(frame, sfm_from_true) < 2
    assert frame.up.startswith("GPS positions")


def test_noisy_phone_positions_do_not_tilt_what_gravity_tells() -> None:
    poses = orbit(30, height=1)
    poses = [np.column_stack((p[:, :3], p[:, 3] * 5)) for p in poses]  # radius 20 m
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    images = located(images, poses, noise_m=2.0)
    images = with_infos(
        images, lambda k, info: replace(info, gravity=gravity_of(poses[k]))
    )
    frame = find_world(moved, images, WorldConfig(georeference=True))
    scale, _ = world_from_true(frame, sfm_from_true)
    assert tilt_deg(frame, sfm_from_true) < 1e-4
    assert scale == pytest.approx(1, abs=0.1)


def test_positions_without_altitude_give_the_map_only() -> None:
    poses = block()
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    images = located(images, poses, heights=False)
    frame = find_world(moved, images, WorldConfig(georeference=True))
    scale, _ = world_from_true(frame, sfm_from_true)
    assert scale == pytest.approx(1, abs=0.01)
    assert frame.scale.endswith("no altitude, the origin's is 0")


def test_heights_above_a_take_off_do_as_well_as_altitudes() -> None:
    poses = block()
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    heights = located(images, poses)

    def relative(_: int, info: ImageInfo) -> ImageInfo:
        assert info.gps is not None
        latitude, longitude, altitude = info.gps
        assert altitude is not None
        place = latitude, longitude, None
        return replace(info, gps=place, height_m=altitude - 34)

    frame = find_world(moved, with_infos(heights, relative), WorldConfig())
    scale, _ = world_from_true(frame, sfm_from_true)
    assert scale == pytest.approx(1, abs=0.01)
    assert tilt_deg(frame, sfm_from_true) < 0.5
    assert frame.scale.endswith(
        "; heights are above the place of take-off, not the sea"
    )

    def some(k: int, info: ImageInfo) -> ImageInfo:
        return replace(info, height_m=500.0) if k % 2 else relative(k, info)

    frame = find_world(moved, with_infos(heights, some), WorldConfig())
    assert "take-off" not in frame.scale
    scale, _ = world_from_true(frame, sfm_from_true)
    assert scale == pytest.approx(1, abs=0.01)


def test_rough_scale_is_warned_of(caplog: pytest.LogCaptureFixture) -> None:
    poses = block(12, size=10)
    model, images = capture(poses)
    moved, _ = disguised(model)
    images = located(images, poses, accuracy_m=4.0)
    with caplog.at_level(logging.WARNING):
        find_world(moved, images, WorldConfig(georeference=True))
    assert "GPS tells the scale only to 16 %, by 12 positions" in caplog.text


def test_good_gps_is_used_unasked() -> None:
    poses = block()
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    images = located(images, poses, noise_m=0.3)
    frame = find_world(moved, images, WorldConfig())
    assert frame.origin is not None
    assert frame.scale.startswith("metres, by the GPS of ")
    scale, _ = world_from_true(frame, sfm_from_true)
    assert scale == pytest.approx(1, abs=0.02)
    assert tilt_deg(frame, sfm_from_true) < 2


@pytest.mark.parametrize(
    "config",
    [
        {"georeference": False},
        {"unit_scale": True},
        {"up": "keep"},
    ],
)
def test_good_gps_gives_way_to_what_is_asked(config: dict[str, object]) -> None:
    poses = block(12)
    model, images = capture(poses)
    images = located(images, poses)
    frame = find_world(model, images, WorldConfig.model_validate(config))
    assert frame.origin is None
    assert "GPS" not in frame.scale


@pytest.mark.parametrize(
    ("number", "accuracy_m", "why"),
    [
        (12, 4.0, "it tells the scale only to 16 %, by 12 positions"),
        (5, 0.01, "it tells the scale only to 0 %, by 5 positions"),
        (2, 0.01, "it tells no scale"),
        (12, 100.0, "it tells no scale"),
    ],
)
def test_doubtful_gps_is_not_used_unasked(
    number: int, accuracy_m: float, why: str
) -> None:
    poses = block(number, size=10)
    model, images = capture(poses)
    moved, _ = disguised(model)
    frame = find_world(
        moved, located(images, poses, accuracy_m=accuracy_m), WorldConfig()
    )
    assert frame.origin is None
    start = "arbitrary, as reconstructed; GPS is not used: "
    assert frame.scale.startswith(start + why)


def test_exchanged_positions_turn_nothing_over(
    caplog: pytest.LogCaptureFixture,
) -> None:
    poses = block()
    model, images = capture(poses)
    moved, sfm_from_true = disguised(model)
    images = with_infos(
        located(images, poses, noise_m=0.3),
        lambda k, info: replace(info, gps=(info.gps[1], info.gps[0], info.gps[2])),
    )
    frame = find_world(moved, images, WorldConfig())
    said = "the GPS positions fit the poses only with latitude and longitude exchanged"
    assert frame.origin is None
    assert frame.scale == f"arbitrary, as reconstructed; GPS is not used: {said}"
    assert f"{said}, so GPS is not used" in caplog.text
    assert tilt_deg(frame, sfm_from_true) < 1
    with pytest.raises(ReconstructionError) as caught:
        find_world(moved, images, WorldConfig(georeference=True))
    assert str(caught.value) == (
        f"{said}. Write the EXIF of the photographs in {images.root} anew, or turn"
        " georeferencing off: export.world.georeference=false"
    )


def gps_error(images: ImageSet, poses: Sequence[Float64]) -> str:
    model, _ = capture(poses)
    with pytest.raises(ReconstructionError) as caught:
        find_world(model, images, WorldConfig(georeference=True))
    return str(caught.value)


def test_photographs_without_gps_cannot_be_georeferenced() -> None:
    poses = block(10)
    _, images = capture(poses)
    images = with_infos(
        images, lambda k, info: replace(info, gps=BERLIN if k < 2 else None)
    )
    assert gps_error(images, poses) == (
        "2 of 10 registered images have a GPS position in their EXIF but georeferencing"
        " needs 3. Turn it off: export.world.georeference=false"
    )


def test_positions_on_one_spot_cannot_be_georeferenced() -> None:
    poses = block(10)
    _, images = capture(poses, gps=BERLIN)
    assert "images, or their cameras, are all on one spot" in gps_error(images, poses)


def test_positions_nearer_than_their_accuracy_cannot_be_georeferenced() -> None:
    poses = orbit(10)
    _, images = capture(poses)
    images = located(images, poses, accuracy_m=5.0)
    assert gps_error(images, poses) == (
        "the GPS positions of 10 images are within 4.0 m (rms) of their middle but"
        " known to 5.0 m only, which tells no scale. Turn georeferencing off:"
        " export.world.georeference=false"
    )


@pytest.mark.parametrize("settings", [{"unit_scale": True}, {"up": "keep"}])
def test_metres_exclude_other_frames(settings: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="georeference gives scale and up"):
        WorldConfig(georeference=True, **settings)


# ------------------------------------------------------------------------- real scenes
@pytest.mark.shared
@pytest.mark.parametrize("scene", ["fountain-P11", "Herz-Jesus-P8"])
def test_up_of_real_cameras_agrees_with_the_laser_scan(
    shared: Path, scene: str
) -> None:
    reference = json.loads((shared / f"data/scenes/{scene}/reference.json").read_text())
    poses = [
        np.column_stack((image["R"], image["t"]))
        for image in reference["images"].values()
    ]
    model, images = capture(poses)
    world = find_world(model, images, WorldConfig()).world_from_sfm
    down = world.rotation.matrix() @ (0, 0, 1)  # the scan's z points down
    assert angle_deg(down, (0, 0, -1)) < 1.0
