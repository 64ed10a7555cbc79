"""What gsplat's examples/datasets/colmap.py does, step by step (consumers.md 1.2).

Own code that makes the same choices; what would go wrong there is asserted here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pycolmap
import pytest
from PIL import Image

from tests.support.export_scene import (
    centroid,
    draw_dots,
    export,
    synthesize,
    write_images,
)

READABLE = {
    *("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL", "RADIAL"),
    *("OPENCV", "OPENCV_FISHEYE"),
}


def load(folder: Path, factor: int) -> list[dict[str, Any]]:
    """Image file, K and distortion of each image in gsplat's order."""
    sparse = folder / "sparse" / "0"
    if not sparse.exists():
        sparse = folder / "sparse"
    model = pycolmap.Reconstruction(sparse)
    kinds = {model.cameras[i.camera_id].model_name for i in model.images.values()}
    assert kinds <= READABLE
    # The kind of the last image decides how all of them are undistorted.
    assert len(kinds) == 1
    images = sorted(model.images.values(), key=lambda image: image.name)

    reduced = folder / (f"images_{factor}" if factor > 1 else "images")
    all_files = sorted(
        p.relative_to(folder / "images") for p in _files(folder / "images")
    )
    reduced_files = sorted(p.relative_to(reduced) for p in _files(reduced))
    # Paired by rank over every file there is, whatever its name.
    paired = dict(zip(all_files, reduced_files, strict=True))
    assert all(Path(image.name) in paired for image in images)
    assert len(all_files) == len(images)

    with Image.open(reduced / paired[Path(images[0].name)]) as first:
        size = first.size
    camera = model.cameras[images[0].camera_id]
    # The size of one image rescales the K of all cameras.
    stretch = (
        size[0] / (camera.width // factor),
        size[1] / (camera.height // factor),
    )
    loaded = []
    for image in images:
        camera = model.cameras[image.camera_id]
        K = camera.calibration_matrix()
        K[:2] /= factor
        K[:2] *= np.array(stretch)[:, None]
        loaded.append(
            {
                "path": reduced / paired[Path(image.name)],
                "name": image.name,
                "K": K,
                "size": (camera.width // factor, camera.height // factor),
                "params": camera.params[4:],
                "kind": camera.model_name,
                "world_to_camera": image.cam_from_world().matrix(),
            }
        )
    return loaded


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def undistort(view: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """K after undistortion and the map of pixels, as gsplat makes them with OpenCV."""
    K, (width, height) = view["K"], view["size"]
    if view["kind"] != "OPENCV_FISHEYE":
        new, _ = cv2.getOptimalNewCameraMatrix(K, view["params"], view["size"], 0)
        maps = cv2.initUndistortRectifyMap(
            K, view["params"], None, new, view["size"], cv2.CV_32FC1
        )
        return new, np.stack(maps, axis=-1)
    x, y = np.meshgrid(np.arange(width), np.arange(height))
    x1, y1 = (x - K[0, 2]) / K[0, 0], (y - K[1, 2]) / K[1, 1]
    theta2 = x1**2 + y1**2
    radial = 1 + sum(k * theta2**i for i, k in enumerate(view["params"], 1))
    return K, np.stack(
        (K[0, 0] * x1 * radial + width // 2, K[1, 1] * y1 * radial + height // 2), -1
    )


@pytest.mark.parametrize("factor", [1, 2, 4, 8])
@pytest.mark.parametrize("models", [("OPENCV",), ("OPENCV", "FULL_OPENCV")])
def test_dots_are_where_gsplat_projects_their_points(
    models: tuple[str, ...], factor: int, tmp_path: Path
) -> None:
    model = synthesize(*models)
    images = write_images(model, tmp_path / "photos", orientations=(1, 6))
    drawn = draw_dots(model, images)
    export(model, images, tmp_path / "out", targets=("gsplat",))
    for view in load(tmp_path / "out", factor):
        with Image.open(view["path"]) as picture:
            assert picture.size == view["size"]
        pose = view["world_to_camera"]
        xyz = pose @ [*model.points3D[drawn[view["name"]]].xyz, 1]
        projected = view["K"] @ xyz
        found = centroid(view["path"])
        np.testing.assert_allclose(found, projected[:2] / projected[2], atol=0.1)


@pytest.mark.parametrize("factor", [1, 2, 4])
@pytest.mark.parametrize("kind", ["SIMPLE_RADIAL", "OPENCV", "OPENCV_FISHEYE"])
def test_dots_are_where_gsplat_undistorts_them_to(
    kind: str, factor: int, tmp_path: Path
) -> None:
    """With `export.camera=original` gsplat undistorts images itself."""
    model = synthesize(kind)
    images = write_images(model, tmp_path / "photos", orientations=(1, 6))
    drawn = draw_dots(model, images)
    out = tmp_path / "out"
    export(model, images, out, targets=("gsplat",), camera="original")
    for view in load(out, factor):
        K, table = undistort(view)
        pixels = np.asarray(Image.open(view["path"]))
        flat = cv2.remap(pixels, table.astype(np.float32), None, cv2.INTER_LINEAR)
        Image.fromarray(flat).save(tmp_path / "flat.png")
        x, y, z = view["world_to_camera"] @ [
            *model.points3D[drawn[view["name"]]].xyz,
            1,
        ]
        # gsplat leaves a fisheye equidistant: its rays are at K (theta, direction).
        ratio = np.arctan2(np.hypot(x, y), z) / np.hypot(x, y)
        at = (x * ratio, y * ratio) if kind == "OPENCV_FISHEYE" else (x / z, y / z)
        expected = K[:2, :2] @ at + K[:2, 2]
        # gsplat has pixels' centres at whole numbers where it undistorts: up to half
        # a pixel of its own.
        np.testing.assert_allclose(centroid(tmp_path / "flat.png"), expected, atol=0.6)


def test_scene_scale_is_that_of_the_cameras(tmp_path: Path) -> None:
    """gsplat's scene scale is the largest distance from the mean camera."""
    model = synthesize("OPENCV")
    images = write_images(model, tmp_path / "photos")
    export(model, images, tmp_path / "out", targets=("gsplat",))
    centres = []
    for view in load(tmp_path / "out", 1):
        pose = view["world_to_camera"]
        centres.append(-pose[:, :3].T @ pose[:, 3])
    want = [image.projection_center() for image in model.images.values()]
    for positions in (centres, want):
        positions.sort(key=tuple)
    np.testing.assert_allclose(centres, want, atol=1e-9)


def test_every_eighth_by_name_is_for_testing(tmp_path: Path) -> None:
    model = synthesize("SIMPLE_RADIAL", num_frames=17)
    images = write_images(model, tmp_path / "photos")
    export(model, images, tmp_path / "out", targets=("gsplat",), downscales=(2,))
    names = [view["name"] for view in load(tmp_path / "out", 2)]
    listed = json.loads((tmp_path / "out" / "dataset.json").read_text())["images"]
    test = [name for name in names if listed[name]["split"] == "test"]
    assert test == [name for i, name in enumerate(names) if i % 8 == 0]


def test_exposure_of_full_images_can_be_read(tmp_path: Path) -> None:
    """gsplat's load_exposure reads the EXIF of images/."""
    model = synthesize("OPENCV")
    names = {image.name: f"{i}.jpg" for i, image in model.images.items()}
    images = write_images(model, tmp_path / "photos", names=names)
    export(model, images, tmp_path / "out", targets=("gsplat",))
    for path in (tmp_path / "out" / "images").iterdir():
        with Image.open(path) as picture:
            assert picture.getexif().get_ifd(0x8769)[0x829A] == pytest.approx(0.004)
