"""A fisheye with known lens and poses, rendered and exported both ways."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import ExportConfig
from sfmprep.demo.courtyard import build_courtyard, camera_walk
from sfmprep.export.dataset import export_dataset
from sfmprep.types import Bytes, Float64
from tests.support.panoramas import render_panorama

LENS = pycolmap.Camera(
    model="OPENCV_FISHEYE",
    width=200,
    height=152,
    params=[88, 87, 101.5, 74.7, 0.03, -0.01, 0.002, -0.0005],
    camera_id=1,
)
WIDTH = 1024  # of the panorama that it is rendered from


def seen_by(camera: pycolmap.Camera, rotation: Float64, panorama: Bytes) -> Bytes:
    """What a camera, turned so from the world, sees of a panorama [H, W, 3]."""
    x, y = np.meshgrid(np.arange(camera.width) + 0.5, np.arange(camera.height) + 0.5)
    rays = np.asarray(camera.cam_ray_from_img(np.column_stack([x.ravel(), y.ravel()])))
    world = (rays / np.linalg.norm(rays, axis=1)[:, None]) @ rotation
    columns = (np.arctan2(world[:, 0], world[:, 1]) / (2 * np.pi) + 0.5) * WIDTH
    rows = (0.5 - np.arcsin(world[:, 2]) / np.pi) * WIDTH / 2
    maps = (m.reshape(x.shape).astype(np.float32) - 0.5 for m in (columns, rows))
    shown = cv2.remap(panorama, *maps, cv2.INTER_LINEAR, borderMode=cv2.BORDER_WRAP)
    return np.asarray(shown, np.uint8)


class Scene:
    """Two photographs by the fisheye, their panoramas, and the true model."""

    def __init__(self, folder: Path) -> None:
        surfaces, sky = build_courtyard(seed=0)
        self.model = pycolmap.Reconstruction()
        self.model.add_camera_with_trivial_rig(LENS)
        self.panoramas: list[Bytes] = []
        self.rotations: list[Float64] = []
        cameras = camera_walk(2, (4, 3), seed=0)
        rng = np.random.default_rng(0)
        middle = np.mean([c.centre for c in cameras], axis=0)
        self.points = (
            middle
            + 4 * np.asarray(cameras[0].rotation)[2]
            + rng.normal(0, 0.8, (60, 3))
        )
        for number, camera in enumerate(cameras, 1):
            panorama = render_panorama(surfaces, sky, camera.centre, WIDTH)[..., ::-1]
            rotation = np.asarray(camera.rotation)
            pixels = seen_by(LENS, rotation, np.ascontiguousarray(panorama))
            (folder / "photos").mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / "photos" / f"{number}.png")
            self.panoramas.append(np.ascontiguousarray(panorama))
            self.rotations.append(rotation)
            pose = np.column_stack([rotation, -rotation @ camera.centre])
            local = self.points @ rotation.T + pose[:, 3]
            image = pycolmap.Image(
                name=f"{number}.png",
                keypoints=np.asarray(LENS.img_from_cam(local)),
                camera_id=1,
                image_id=number,
            )
            self.model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
        for row, xyz in enumerate(self.points):
            track = pycolmap.Track()
            for number in (1, 2):
                track.add_element(number, row)
            self.model.add_point3D(xyz, track)
        self.images = ImageSet.scan(folder / "photos")


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Scene:
    return Scene(tmp_path_factory.mktemp("fisheye"))


@pytest.mark.parametrize(
    ("kept", "kind"), [("pinhole", "PINHOLE"), ("original", "OPENCV_FISHEYE")]
)
def test_exported_pixels_are_what_their_camera_sees(
    scene: Scene, kept: Literal["pinhole", "original"], kind: str, tmp_path: Path
) -> None:
    targets = ("nerfstudio", "gsplat")
    config = ExportConfig(targets=targets, camera=kept, downscales=(2,))
    export_dataset(scene.model, scene.images, tmp_path / "out", config)
    exported = pycolmap.Reconstruction(tmp_path / "out" / "sparse" / "0")
    (camera,) = exported.cameras.values()
    assert camera.model_name == kind
    # gsplat takes the middle for the principal point of a fisheye; 2 divides both sides
    middle = (camera.width / 2, camera.height / 2)
    found = (camera.principal_point_x, camera.principal_point_y)
    assert found == pytest.approx(middle, abs=0.01)
    assert camera.width % 2 == camera.height % 2 == 0
    if kept == "original":
        np.testing.assert_allclose(camera.params[4:], LENS.params[4:])
        np.testing.assert_allclose(camera.params[:2], LENS.params[:2])
    for image in exported.images.values():
        number = int(image.name.partition(".")[0])
        rotation = scene.rotations[number - 1]
        np.testing.assert_allclose(
            image.cam_from_world().rotation.matrix(), rotation, atol=1e-9
        )
        shown = np.asarray(Image.open(tmp_path / "out" / "images" / image.name))
        expected = seen_by(camera, rotation, scene.panoramas[number - 1])
        off = np.abs(shown.astype(np.float64) - expected)
        other = np.abs(np.roll(shown, 1, axis=1).astype(np.float64) - expected)
        assert off.mean() < 0.6 * other.mean()  # one pixel beside is much worse
        for point in image.get_observation_points2D():
            xyz = exported.points3D[point.point3D_id].xyz
            np.testing.assert_allclose(image.project_point(xyz), point.xy, atol=1e-6)
    content = json.loads((tmp_path / "out" / "transforms.json").read_text())
    expected_kind = "OPENCV" if kept == "pinhole" else "OPENCV_FISHEYE"
    assert content["camera_model"] == expected_kind
    names = ("k1", "k2", "p1", "p2") if kept == "pinhole" else ("k1", "k2", "k3", "k4")
    coefficients = [0.0] * 4 if kept == "pinhole" else LENS.params[4:].tolist()
    assert [content[name] for name in names] == pytest.approx(coefficients)
