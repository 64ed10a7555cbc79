"""What INRIA's 3DGS does with a folder, step by step (consumers.md 1.3).

Own code that makes the same choices; what would go wrong there is asserted here.
"""

from __future__ import annotations

import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image, ImageDraw

from sfmprep.capture.image_set import ImageSet
from tests.support.export_scene import (
    centroid,
    draw_dots,
    export,
    read_model,
    read_ply,
    synthesize,
    write_images,
)

# Its own reader of cameras.bin knows these ids only.
MODEL_IDS = {0: ("SIMPLE_PINHOLE", 3), 1: ("PINHOLE", 4)}


def read_cameras(path: Path) -> dict[int, dict[str, Any]]:
    """cameras.bin as its colmap_loader.py reads it."""
    raw = path.read_bytes()
    (count,) = struct.unpack_from("<Q", raw)
    at, cameras = 8, {}
    for _ in range(count):
        camera_id, model_id, width, height = struct.unpack_from("<iiQQ", raw, at)
        # Otherwise: "only undistorted datasets (PINHOLE or SIMPLE_PINHOLE) supported!"
        kind, num_params = MODEL_IDS[model_id]
        params = struct.unpack_from(f"<{num_params}d", raw, at + 24)
        at += 24 + 8 * num_params
        cameras[camera_id] = {
            "kind": kind,
            "size": (width, height),
            "focal": (params[0], params[1] if kind == "PINHOLE" else params[0]),
        }
    assert at == len(raw)
    return cameras


def read_images(path: Path) -> list[dict[str, Any]]:
    """images.bin as its colmap_loader.py reads it."""
    raw = path.read_bytes()
    (count,) = struct.unpack_from("<Q", raw)
    at, images = 8, []
    for _ in range(count):
        image_id, *pose, camera_id = struct.unpack_from("<idddddddi", raw, at)
        at += 64
        end = raw.index(b"\0", at)
        name = raw[at:end].decode("utf-8")
        (num_points,) = struct.unpack_from("<Q", raw, end + 1)
        at = end + 9 + 24 * num_points
        images.append(
            {
                "id": image_id,
                "qvec": pose[:4],
                "tvec": np.array(pose[4:]),
                "camera_id": camera_id,
                "name": name,
            }
        )
    assert at == len(raw)
    return images


def load(folder: Path, images_folder: str = "images") -> list[dict[str, Any]]:
    """What is known of each camera, in the order of names."""
    cameras = read_cameras(folder / "sparse" / "0" / "cameras.bin")
    views = []
    for image in read_images(folder / "sparse" / "0" / "images.bin"):
        camera = cameras[image["camera_id"]]
        # Older versions drop folders, and cut the name at its first dot.
        path = folder / images_folder / Path(image["name"]).name
        w, x, y, z = image["qvec"]
        rotation = pycolmap.Rotation3d(np.array([x, y, z, w])).matrix()
        fov = [
            2 * math.atan(s / 2 / f)
            for s, f in zip(camera["size"], camera["focal"], strict=True)
        ]
        views.append(
            {
                "path": path,
                "image_name": path.name.split(".")[0],
                "fov": fov,
                "pose": np.column_stack([rotation, image["tvec"]]),
            }
        )
    return sorted(views, key=lambda view: view["image_name"])


def project(view: dict[str, Any], size: tuple[int, int], xyz: Any) -> np.ndarray:
    """By field of view alone: the principal point is the middle for 3DGS."""
    x, y, z = view["pose"] @ [*xyz, 1]
    tangent = np.tan(np.array(view["fov"]) / 2)
    return (np.array([x, y]) / z / tangent + 1) / 2 * size


@pytest.mark.parametrize("images_folder", ["images", "images_2"])
@pytest.mark.parametrize("kind", ["PINHOLE", "OPENCV", "OPENCV_FISHEYE"])
def test_dots_are_where_3dgs_projects_their_points(
    kind: str, images_folder: str, tmp_path: Path
) -> None:
    model = synthesize(kind)
    images = write_images(model, tmp_path / "photos", orientations=(1, 6))
    dots = draw_dots(model, images)
    drawn = {Path(name).stem: point_id for name, point_id in dots.items()}
    export(model, images, tmp_path / "out", targets=("3dgs",))
    views = load(tmp_path / "out", images_folder)
    assert len(views) == 4
    for view in views:
        with Image.open(view["path"]) as picture:
            size = picture.size
        xyz = model.points3D[drawn[view["image_name"]]].xyz
        found = centroid(view["path"])
        np.testing.assert_allclose(found, project(view, size, xyz), atol=0.1)


def test_names_stay_apart_without_folder_and_suffix(tmp_path: Path) -> None:
    model = synthesize("OPENCV")
    in_order = sorted(image.name for image in model.images.values())
    names = ("a/1.x.png", "a/1.y.png", "b/1.x.png", "b/1.y.png")
    names = dict(zip(in_order, names, strict=True))
    images = write_images(model, tmp_path / "photos", names=names)
    export(model, images, tmp_path / "out", targets=("3dgs",))
    views = load(tmp_path / "out")
    assert len({view["image_name"] for view in views}) == 4
    assert all(view["path"].is_file() for view in views)


def test_cloud_has_the_fields_that_are_fetched(tmp_path: Path) -> None:
    model = synthesize("OPENCV", "OPENCV_FISHEYE")
    export(model, write_images(model, tmp_path / "photos"), tmp_path / "out")
    _, vertices = read_ply(tmp_path / "out" / "sparse" / "0" / "points3D.ply")
    exported = read_model(tmp_path / "out")
    points = [exported.points3D[i] for i in sorted(exported.points3D)]
    positions = np.column_stack([vertices[axis] for axis in "xyz"])
    np.testing.assert_allclose(positions, [p.xyz for p in points], rtol=1e-6)
    colours = np.column_stack([vertices[c] for c in ("red", "green", "blue")])
    want = [model.points3D[i].color for i in sorted(exported.points3D)]
    np.testing.assert_array_equal(colours, want)  # divided by 255 there
    for name in ("nx", "ny", "nz"):
        assert np.isfinite(vertices[name]).all()


def test_alpha_of_rgba_is_the_mask_and_colours_stay_below_it(tmp_path: Path) -> None:
    model = synthesize("PINHOLE")
    images = write_images(model, tmp_path / "photos")
    disc = Image.new("L", (384, 288))
    ImageDraw.Draw(disc).circle((200, 130), 70, 255)
    (tmp_path / "masks").mkdir()
    for name in images.names[:-1]:
        disc.save(tmp_path / "masks" / f"{name}.png")
    images = ImageSet.scan(images.root, mask_root=tmp_path / "masks")
    export(model, images, tmp_path / "out", targets=("3dgs",))
    for view in load(tmp_path / "out"):
        pixels = np.asarray(Image.open(view["path"]))
        assert pixels.shape == (288, 384, 4)
        original = np.asarray(Image.open(images.path(view["path"].name)))
        np.testing.assert_array_equal(pixels[..., :3], original)
        masked = view["path"].name != images.names[-1]
        np.testing.assert_array_equal(pixels[..., 3], disc if masked else 255)
