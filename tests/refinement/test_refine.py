"""Refinement of keypoints on a rendered wall, whose points are known exactly."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pycolmap
import pytest

from sfmprep import coords
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import RefinementConfig
from sfmprep.demo.raycast import Camera, Rectangle, look_at, render_image
from sfmprep.demo.textures import make_noise, tint_noise
from sfmprep.executors.protocol import Shards
from sfmprep.geometry.views import ModelArrays
from sfmprep.refinement.refine import refine_keypoints
from tests.support.shards_here import ShardsHere

SIZE = (320, 240)
PX_PER_M = 0.85 * 320 / 2.6  # of the wall, in the middle of the middle view
WIDTH, HEIGHT = 3.4, 2.6
CONFIG = RefinementConfig()
CENTRES = ((-0.7, -2.6, 0.1), (-0.1, -2.5, -0.3), (0.4, -2.7, 0.3), (0.9, -2.6, 0.0))


def stone_texture() -> np.ndarray:
    noise = make_noise(np.random.default_rng(3), WIDTH, HEIGHT, 0.12)
    return tint_noise((120.0, 130, 140), noise, 0.25)


def striped_texture() -> np.ndarray:
    """Level stripes: what lies along them cannot be seen."""
    column = make_noise(np.random.default_rng(3), 0.1, HEIGHT, 0.12)[:, :1]
    texture = stone_texture()
    return tint_noise((120.0, 130, 140), np.repeat(column, texture.shape[1], 1), 0.25)


class Wall:
    """A wall at y = 0, its photographs in a folder, and a model of noisy keypoints."""

    def __init__(self, folder: Path, texture: np.ndarray, noise_px: float = 1.0):
        self.folder = folder
        self.cameras = [
            look_at(np.array(c), np.array([0.1 * k, 0, 0.05]), SIZE, roll_deg=4 * k - 6)
            for k, c in enumerate(CENTRES)
        ]
        wall = Rectangle(
            texture=texture,
            corner=np.array([-WIDTH / 2, 0, HEIGHT / 2]),
            right=np.array([WIDTH, 0, 0]),
            down=np.array([0, 0, -HEIGHT]),
        )
        sky = np.zeros((2, 1, 3), np.uint8)
        rng = np.random.default_rng(5)
        for k, camera in enumerate(self.cameras):
            pixels = render_image([wall], camera, sky) + rng.normal(
                0, 1, (*SIZE[::-1], 1)
            )
            self.write(k, pixels)
        points = rng.uniform((-0.9, 0, -0.6), (0.9, 0, 0.6), (150, 3))
        self.truth = [camera.project(points)[0] for camera in self.cameras]
        angle = rng.uniform(0, 2 * np.pi, (4, 150))
        noise = noise_px * np.stack((np.cos(angle), np.sin(angle)), axis=2)
        self.model = build_model(
            self.cameras,
            points,
            [xy + e for xy, e in zip(self.truth, noise, strict=True)],
        )

    def path(self, k: int) -> Path:
        return self.folder / f"{k}.png"

    def write(self, k: int, pixels: np.ndarray) -> None:
        cv2.imwrite(str(self.path(k)), np.rint(pixels).clip(0, 255).astype(np.uint8))

    def keypoints(self) -> np.ndarray:
        """[4, 150, 2]."""
        images = [self.model.images[k + 1] for k in range(4)]
        return np.array([[p.xy for p in image.points2D] for image in images])

    def deviations_px(self, rows: slice = slice(None)) -> np.ndarray:
        """How far apart a track's keypoints are on the wall, [V, 150, 2] = right, down.

        Where the track as a whole lies is free: its mean is taken off.
        """
        places = [
            on_wall(camera, xy)
            for camera, xy in zip(self.cameras, self.keypoints(), strict=True)
        ]
        deviations = PX_PER_M * np.array(places)[rows]
        return deviations - deviations.mean(axis=0)

    def refine(self, **options) -> object:
        images = ImageSet.scan(self.folder)
        arrays = ModelArrays.of(self.model)
        return refine_keypoints(
            self.model, arrays, images, CONFIG, num_workers=1, **options
        )


def on_wall(camera: Camera, xy: np.ndarray) -> np.ndarray:
    rays = np.c_[xy, np.ones(len(xy))] @ np.linalg.inv(camera.intrinsics).T
    rays = rays @ camera.rotation
    places = camera.centre - rays * (camera.centre[1] / rays[:, 1:2])
    return places[:, [0, 2]]


def build_model(cameras, points, keypoints) -> pycolmap.Reconstruction:
    model = pycolmap.Reconstruction()
    for k, (camera, xy) in enumerate(zip(cameras, keypoints, strict=True), 1):
        intrinsics = camera.intrinsics
        model.add_camera_with_trivial_rig(
            pycolmap.Camera(
                camera_id=k,
                model="PINHOLE",
                width=camera.size[0],
                height=camera.size[1],
                params=intrinsics[[0, 1, 0, 1], [0, 1, 2, 2]],
            )
        )
        image = pycolmap.Image(
            name=f"{k - 1}.png",
            image_id=k,
            camera_id=k,
            points2D=pycolmap.Point2DList([pycolmap.Point2D(q) for q in xy]),
        )
        pose = np.c_[camera.rotation, camera.translation]
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
    for p, point in enumerate(points):
        track = pycolmap.Track(
            [pycolmap.TrackElement(k + 1, p) for k in range(len(cameras))]
        )
        model.add_point3D(point, track)
    return model


def rms(deviations: np.ndarray) -> float:
    return float(np.sqrt((deviations**2).sum(axis=2).mean()))


@pytest.fixture
def wall(tmp_path: Path) -> Wall:
    return Wall(tmp_path, stone_texture())


def test_noise_of_a_pixel_becomes_a_tenth(wall: Wall) -> None:
    assert rms(wall.deviations_px()) > 0.8
    stats = wall.refine()
    assert rms(wall.deviations_px()) < 0.15
    assert stats.num_observations == stats.num_compared == 600
    assert stats.num_moved > 590
    assert stats.correlation_after > stats.correlation_before
    assert 0.5 < stats.median_move_px < 1.2


def test_only_keypoints_change(wall: Wall) -> None:
    before = pycolmap.Reconstruction(wall.model)
    wall.refine()
    for k in before.images:
        pose, same = (m.images[k].cam_from_world() for m in (before, wall.model))
        assert (pose.matrix() == same.matrix()).all()
    for k, point in before.points3D.items():
        assert (point.xyz == wall.model.points3D[k].xyz).all()
        assert len(point.track.elements) == 4


def test_brightness_and_contrast_of_a_photograph_do_not_matter(wall: Wall) -> None:
    wall.write(1, 0.6 * cv2.imread(str(wall.path(1))).astype(float) + 60)
    wall.refine()
    assert rms(wall.deviations_px()) < 0.15


def test_keypoints_without_texture_stay(tmp_path: Path) -> None:
    texture = np.full_like(stone_texture(), 128)
    wall = Wall(tmp_path, texture)
    rng = np.random.default_rng(0)
    for k in range(4):
        pixels = cv2.imread(str(wall.path(k))).astype(float)
        wall.write(k, pixels + rng.normal(0, 2, pixels.shape))
    before = wall.keypoints()
    assert wall.refine().num_moved == 0
    assert (wall.keypoints() == before).all()


def test_keypoints_on_stripes_move_across_but_not_along(tmp_path: Path) -> None:
    wall = Wall(tmp_path, striped_texture())
    before = wall.deviations_px()
    assert wall.refine().num_moved > 400
    moved = wall.deviations_px() - before
    assert np.abs(moved[..., 0]).mean() < 0.1 < 0.4 < np.abs(moved[..., 1]).mean()
    assert np.abs(wall.deviations_px()[..., 1]).mean() < 0.1


def test_photograph_of_something_else_does_not_draw_the_others(wall: Wall) -> None:
    noise = make_noise(np.random.default_rng(9), 2, 1, 0.03)
    other = tint_noise((120.0, 130, 140), noise, 0.25)
    wall.write(2, other[: SIZE[1], : SIZE[0]])
    before = wall.keypoints()
    wall.refine()
    assert (wall.keypoints()[2] == before[2]).all(axis=1).mean() > 0.95
    good = [0, 1, 3]
    places = np.array([on_wall(wall.cameras[k], wall.keypoints()[k]) for k in good])
    assert rms(PX_PER_M * (places - places.mean(axis=0))) < 0.2


def test_unreadable_photograph_is_a_warning_and_its_keypoints_stay(
    wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    images = ImageSet.scan(wall.folder)
    wall.path(3).write_bytes(wall.path(3).read_bytes()[:2000])
    before = wall.keypoints()
    with caplog.at_level(logging.WARNING):
        refine_keypoints(
            wall.model, ModelArrays.of(wall.model), images, CONFIG, num_workers=1
        )
    assert "3.png is left out" in caplog.text
    assert (wall.keypoints()[3] == before[3]).all()
    assert rms(wall.deviations_px(slice(3))) < 0.15


def test_photograph_that_is_not_there_is_a_warning(
    wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    wall.path(0).unlink()
    with caplog.at_level(logging.WARNING):
        stats = wall.refine()
    assert "0.png is not among the images" in caplog.text
    assert 440 < stats.num_moved <= 450


def test_photograph_of_another_size_is_a_warning(
    wall: Wall, caplog: pytest.LogCaptureFixture
) -> None:
    wall.write(0, cv2.imread(str(wall.path(0)))[::2, ::2])
    with caplog.at_level(logging.WARNING):
        stats = wall.refine()
    assert "0.png is 160 x 120 pixels but its camera 320 x 240" in caplog.text
    assert 440 < stats.num_moved <= 450


def test_exif_orientation_makes_no_difference(wall: Wall) -> None:
    """The pixels as stored are the camera's, whatever way up they are shown."""
    from PIL import Image

    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(wall.path(1)) as image:
        pixels = image.copy()
    pixels.save(wall.path(1), exif=exif)
    assert ImageSet.scan(wall.folder).infos["1.png"].orientation == 6
    assert coords.upright_size(SIZE, 6) == (240, 320)
    wall.refine()
    assert rms(wall.deviations_px()) < 0.15


def test_reduced_size_refines_in_pixels_of_the_file(wall: Wall) -> None:
    wall.refine(max_size=200)
    assert rms(wall.deviations_px()) < 0.25


def test_no_keypoint_moves_further_than_allowed(wall: Wall) -> None:
    before = wall.keypoints()
    images = ImageSet.scan(wall.folder)
    refine_keypoints(
        wall.model,
        ModelArrays.of(wall.model),
        images,
        RefinementConfig(max_move_px=0.5),
    )
    moves = np.linalg.norm(wall.keypoints() - before, axis=2)
    assert 0.3 < moves.max() <= 0.5 + 1e-6


def test_shards_give_the_same_and_go_on_where_they_were_stopped(
    wall: Wall,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    # of one model, so that blocks of others are told apart
    models = [Wall(wall.folder, stone_texture()) for _ in range(3)]
    wall.refine()
    monkeypatch.setattr("sfmprep.refinement.refine.ROWS", 16)
    parts = tmp_path / "parts"
    with pytest.raises(KeyboardInterrupt):
        models[0].refine(shards=Shards(ShardsHere(stop_after=2), parts))
    first, second = sorted(parts.iterdir())
    first = first.rename(parts / "first.npz")
    kept = first.read_bytes()
    second.write_bytes(second.read_bytes()[:-40])
    models[1].refine(shards=Shards(ShardsHere(), parts))
    np.testing.assert_allclose(models[1].keypoints(), wall.keypoints(), atol=1e-3)
    assert first.read_bytes() == kept  # it was taken over
    assert f"{second} is damaged (" in caplog.text
    # of another model nothing is taken over
    models[2].model.transform(pycolmap.Sim3d(2.0, pycolmap.Rotation3d(), [0, 0, 0]))
    models[2].refine(shards=Shards(ShardsHere(), parts))
    np.testing.assert_allclose(models[2].keypoints(), wall.keypoints(), atol=1e-3)


def test_blocks_give_the_same_as_all_at_once(
    wall: Wall, monkeypatch: pytest.MonkeyPatch
) -> None:

    other = Wall(wall.folder, stone_texture())
    wall.refine()
    monkeypatch.setattr("sfmprep.refinement.refine._BLOCK_BYTES", 1 << 19)
    monkeypatch.setattr("sfmprep.refinement.blocks._CHUNK_ROWS", 64)
    other.refine()
    np.testing.assert_allclose(other.keypoints(), wall.keypoints(), atol=1e-3)


def test_empty_model_is_no_error(wall: Wall) -> None:
    wall.model = pycolmap.Reconstruction()
    stats = wall.refine()
    assert stats.num_observations == stats.num_moved == 0
