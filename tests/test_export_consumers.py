"""The dataset, loaded by nerfstudio's own code, is the model that was exported."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfmprep import coords
from sfmprep.config import ExportConfig
from sfmprep.export.dataset import export_dataset
from sfmprep.images import ImageSet

pytestmark = [pytest.mark.nerfstudio, pytest.mark.slow]

# Larger than the 1600 pixels above which nerfstudio takes images_2 by itself.
WIDTH, HEIGHT = 1801, 1201


@pytest.fixture(scope="module")
def python() -> str:
    """A Python that has nerfstudio."""
    found = os.environ.get("SFMPREP_NERFSTUDIO_PYTHON")
    if not found:
        pytest.skip("no nerfstudio; name its Python in SFMPREP_NERFSTUDIO_PYTHON")
    return found


@pytest.fixture(scope="module", params=["one camera", "turned", "two cameras"])
def dataset(request: pytest.FixtureRequest, tmp_path_factory: Any) -> Path:
    """An export of distorted images: all alike, some upright, or of two cameras."""
    folder = tmp_path_factory.mktemp("dataset")
    two = request.param == "two cameras"
    options = pycolmap.SyntheticDatasetOptions(
        num_rigs=2 if two else 1,
        num_frames_per_rig=3 if two else 6,
        num_points3D=80,
        camera_width=WIDTH,
        camera_height=HEIGHT,
        camera_model_id=pycolmap.CameraModelId.OPENCV,
        camera_params=[2200, 2190, 905.3, 598.2, 0.08, -0.05, 0.001, -0.002],
    )
    model = pycolmap.synthesize_dataset(options)
    rng = np.random.default_rng(0)
    orientations = (1, 6, 8, 3) if request.param == "turned" else (1,)
    for point in model.points3D.values():
        point.color = rng.integers(0, 256, 3, np.uint8)
    for image_id, image in model.images.items():
        image.name = f"zoë/{image_id % 4}/frame {image_id}.jpg"
        path = folder / "photos" / image.name
        path.parent.mkdir(parents=True, exist_ok=True)
        exif = Image.Exif()
        exif[0x0112] = orientations[image_id % len(orientations)]
        noise = rng.integers(0, 256, (9, 12, 3), np.uint8)
        Image.fromarray(noise).resize((WIDTH, HEIGHT)).save(path, exif=exif)
    photos = ImageSet.scan(folder / "photos")
    export_dataset(model, photos, folder / "out", ExportConfig())
    return folder / "out"


@pytest.fixture(scope="module")
def looks(python: str, dataset: Path) -> dict[str, Any]:
    """What each parser saw with each orientation method."""
    script = Path(__file__).with_name("nerfstudio_probe.py")
    done = subprocess.run(
        [python, "-W", "ignore", str(script), str(dataset)],
        capture_output=True,
        text=True,
        timeout=300,
        stdin=subprocess.DEVNULL,  # a question would end it
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("SEEN"))
    return json.loads(line.removeprefix("SEEN"))


@pytest.mark.parametrize("orientation", ["none", "up"])
@pytest.mark.parametrize("parser", ["json", "colmap"])
def test_nerfstudio_sees_the_exported_model(
    parser: str, orientation: str, looks: dict[str, Any], dataset: Path
) -> None:
    seen = looks[f"{parser} {orientation}"]
    model = pycolmap.Reconstruction(dataset / "sparse" / "0")
    images = [model.images[i] for i in sorted(model.images)]
    cameras = [model.cameras[image.camera_id] for image in images]
    transform, scale = np.array(seen["transform"]), seen["scale"]

    factor = 2
    folder = dataset / f"images_{factor}"
    assert seen["filenames"] == [str(folder / image.name) for image in images]

    poses = []
    for image in images:
        pose = np.eye(4)
        pose[:3] = image.cam_from_world().inverse().matrix()
        pose = transform @ coords.opengl_from_opencv(pose)
        pose[:, 3] *= scale
        poses.append(pose)
    np.testing.assert_allclose(seen["camera_to_worlds"], poses, atol=1e-5)
    if orientation == "none" and parser == "json":
        np.testing.assert_array_equal(transform, np.eye(4)[:3])
        assert scale == 1

    want = [
        (c.focal_length_x, c.focal_length_y, c.principal_point_x, c.principal_point_y)
        for c in cameras
    ]
    np.testing.assert_allclose(
        seen["intrinsics"], np.array(want) / factor, rtol=1e-6, atol=1e-5
    )
    sizes = [[c.width // factor, c.height // factor] for c in cameras]
    assert seen["sizes"] == sizes
    assert seen["distortion"] == 0

    # Both readers keep the order of their file, which is that of the ids.
    points = [model.points3D[i] for i in sorted(model.points3D)]
    xyz = np.array([[*point.xyz, 1] for point in points]) @ transform.T * scale
    order = slice(None) if parser == "json" else _order_in_file(seen["points"], xyz)
    np.testing.assert_allclose(np.array(seen["points"])[order], xyz, atol=1e-5)
    colors = [point.color for point in points]
    np.testing.assert_array_equal(np.array(seen["colors"])[order], colors)

    index = seen["batch_index"]
    assert seen["batch_camera_size"] == sizes[index]
    assert seen["batch_image_shape"] == [*sizes[index][::-1], 3]
    with Image.open(folder / images[index].name) as picture:
        mean = np.asarray(picture, np.float64).mean()
    assert seen["batch_image_mean"] == pytest.approx(mean, abs=0.6)


def _order_in_file(points: list[list[float]], xyz: np.ndarray) -> np.ndarray:
    """COLMAP writes points in any order: for each of `xyz` the nearest one's row."""
    distances = np.linalg.norm(np.array(points)[None] - xyz[:, None], axis=-1)
    order = distances.argmin(axis=1)
    assert len(set(order.tolist())) == len(points)
    return order
