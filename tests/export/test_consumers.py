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
from scipy.spatial import cKDTree

from sfmprep import load_recipe
from sfmprep.capture.image_set import ImageSet
from sfmprep.config import ExportConfig
from sfmprep.export.dataset import export_dataset
from sfmprep.geometry.uncertainty import PoseUncertainty
from sfmprep.pipelines.reconstruct import reconstruct

pytestmark = [pytest.mark.nerfstudio, pytest.mark.slow]

# Larger than the 1600 pixels above which nerfstudio takes images_2 by itself.
WIDTH, HEIGHT = 1801, 1201
QUICK = ("features.max_size=640", "features.max_keypoints=1000")


@pytest.fixture(scope="module")
def python() -> str:
    """A Python that has nerfstudio and sfmprep."""
    found = os.environ.get("SFMPREP_NERFSTUDIO_PYTHON")
    if not found:
        pytest.skip("no nerfstudio; name its Python in SFMPREP_NERFSTUDIO_PYTHON")
    return found


@pytest.fixture(
    scope="module",
    params=[
        *("one camera", "turned", "two cameras", "masks", "demo"),
        pytest.param("fountain-P11", marks=pytest.mark.shared),
        pytest.param("fox", marks=pytest.mark.shared),
    ],
)
def dataset(request: pytest.FixtureRequest, python: str, tmp_path_factory: Any) -> Path:
    """A dataset of distorted images, or that of a real run.

    SFMPREP_RUNS names a folder of results, by scene, to take in place of a new run.
    """
    runs = os.environ.get("SFMPREP_RUNS")
    if runs and (Path(runs) / request.param / "transforms.json").is_file():
        return Path(runs) / request.param
    folder: Path = tmp_path_factory.mktemp("dataset")
    match request.param:
        case "demo":
            return Path(request.getfixturevalue("demo_result"))
        case "fountain-P11" | "fox" as scene:
            photos = request.getfixturevalue("shared") / "data/scenes" / scene
            recipe = load_recipe("sift", (*QUICK, "pairs={type: sequential}"))
            reconstruct(photos / "images", folder / "out", recipe)
        case kind:
            export_synthetic(kind, folder)
    return folder / "out"


def export_synthetic(kind: str, folder: Path) -> None:
    two = kind == "two cameras"
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
    orientations = (1, 6, 8, 3) if kind == "turned" else (1,)
    uncertainties = {}
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
        if image_id % 3:
            uncertainties[image.name] = PoseUncertainty(
                rotation_stddev_deg=0.01 * image_id, position_stddev=0.1 * image_id
            )
            if kind == "masks":  # every third image has none: all of it counts
                painted = np.full((HEIGHT, WIDTH), 255, np.uint8)
                painted[: HEIGHT // 2] = 0
                mask = folder / "painted" / f"{image.name}.png"
                mask.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(painted).save(mask)
    photos = ImageSet.scan(
        folder / "photos", mask_root=folder / "painted" if kind == "masks" else None
    )
    export_dataset(
        model, photos, folder / "out", ExportConfig(), uncertainties=uncertainties
    )


@pytest.fixture(scope="module")
def looks(python: str, dataset: Path) -> dict[str, Any]:
    """What each parser saw, in each frame or split."""
    script = Path(__file__).parents[1] / "support" / "nerfstudio_probe.py"
    done = subprocess.run(
        [python, "-W", "ignore", str(script), str(dataset)],
        capture_output=True,
        text=True,
        timeout=600,
        stdin=subprocess.DEVNULL,  # a question would end it
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    line = next(x for x in done.stdout.splitlines() if x.startswith("SEEN"))
    return json.loads(line.removeprefix("SEEN"))


CASES = ["json none", "json up", "colmap none", "colmap up"]
OURS = ["sfmprep train", "sfmprep val"]


def exported_images(case: str, dataset: Path) -> tuple[Any, list[Any]]:
    """The model, and the images that this parser is to see."""
    model = pycolmap.Reconstruction(dataset / "sparse" / "0")
    images = [model.images[i] for i in sorted(model.images)]
    if case in OURS:
        described = json.loads((dataset / "dataset.json").read_bytes())["images"]
        wanted = "train" if case == "sfmprep train" else "test"
        images = [i for i in images if described[i.name]["split"] == wanted]
    assert images
    return model, images


def factor(model: Any) -> int:
    sides = [max(c.width, c.height) for c in model.cameras.values()]
    return 2 if max(sides) > 1600 else 1


@pytest.mark.parametrize("case", CASES + OURS)
def test_nerfstudio_sees_the_cameras_of_the_model(
    case: str, looks: dict[str, Any], dataset: Path
) -> None:
    seen = looks[case]
    model, images = exported_images(case, dataset)
    cameras = [model.cameras[image.camera_id] for image in images]
    reduced = factor(model)
    folder = dataset / ("images" if reduced == 1 else f"images_{reduced}")
    assert seen["filenames"] == [str(folder / image.name) for image in images]

    poses = [image.cam_from_world().inverse().matrix() for image in images]
    np.testing.assert_allclose(seen["undone"], poses, rtol=1e-5, atol=1e-5)
    if case == "json none":
        np.testing.assert_array_equal(seen["transform"], np.eye(4)[:3])
        assert seen["scale"] == 1
    if case in OURS:  # the dataset is upright: moved and scaled only
        np.testing.assert_array_equal(np.array(seen["transform"])[:, :3], np.eye(3))
        everywhere = looks["sfmprep train"], looks["sfmprep val"]
        places = np.concatenate(
            [np.array(look["camera_to_worlds"])[:, :, 3] for look in everywhere]
        )
        assert np.abs(places).max() == pytest.approx(1)

    want = [
        (c.focal_length_x, c.focal_length_y, c.principal_point_x, c.principal_point_y)
        for c in cameras
    ]
    np.testing.assert_allclose(
        seen["intrinsics"], np.array(want) / reduced, rtol=1e-6, atol=1e-5
    )
    assert seen["sizes"] == [[c.width // reduced, c.height // reduced] for c in cameras]
    assert seen["distortion"] == 0


@pytest.mark.parametrize("case", CASES + OURS)
def test_nerfstudio_sees_the_points_of_the_model(
    case: str, looks: dict[str, Any], dataset: Path
) -> None:
    seen = looks[case]
    model, _ = exported_images(case, dataset)
    transform = np.array(seen["transform"])
    points = np.array(seen["metadata"]["points3D_xyz"]) / seen["scale"]
    points = (points - transform[:, 3]) @ transform[:, :3]
    seen_rows = np.hstack([points, seen["metadata"]["points3D_rgb"]])
    want = [model.points3D[i] for i in sorted(model.points3D)]
    rows = np.array([[*point.xyz, *point.color] for point in want])
    assert len(seen_rows) == len(rows)
    if case.startswith("colmap"):  # whose file has them in any order
        nearest = rows[cKDTree(rows).query(seen_rows)[1]]
        np.testing.assert_allclose(seen_rows, nearest, rtol=1e-5, atol=1e-5)
        seen_rows = seen_rows[cKDTree(seen_rows).query(rows)[1]]
    np.testing.assert_allclose(seen_rows, rows, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("case", CASES + OURS)
def test_splatfactos_datamanager_serves_a_batch(
    case: str, looks: dict[str, Any], dataset: Path
) -> None:
    seen = looks[case]
    path = Path(seen["filenames"][seen["batch_index"]])
    with Image.open(path) as picture:
        width, height = picture.size
        mean = np.asarray(picture, np.float64).mean()
    assert seen["batch_camera_size"] == [width, height]
    assert seen["batch_image_shape"] == [height, width, 3]
    assert seen["batch_image_mean"] == pytest.approx(mean, abs=0.6)
    if not (dataset / "masks").is_dir():
        assert seen["masks"] == []
        assert seen["batch_mask"] is None
        return
    masks = path.parent.with_name(path.parent.name.replace("images", "masks"))
    names = [Path(name).stem for name in seen["filenames"]]
    assert seen["masks"] == [str(masks / f"{name}.png") for name in names]
    with Image.open(masks / f"{path.stem}.png") as mask:
        share = (np.asarray(mask) > 0).mean()
    assert seen["batch_mask"] == [height, width, 1, pytest.approx(share, abs=1e-4)]


def test_parser_gives_what_dataset_json_knows_of_each_image(
    looks: dict[str, Any], dataset: Path
) -> None:
    described = json.loads((dataset / "dataset.json").read_bytes())["images"]
    for case in OURS:
        seen = looks[case]
        images = [described[Path(name).name] for name in seen["filenames"]]
        known = seen["metadata"]
        assert known["original_names"] == [image["original"] for image in images]
        for key, column, unknown, scale in (
            ("weight", "image_weights", 1, 1),
            ("rotation_stddev_deg", "pose_rotation_stddev_deg", np.nan, 1),
            ("position_stddev", "pose_position_stddev", np.nan, seen["scale"]),
        ):
            if any(key in image for image in images):
                want = [image.get(key, unknown) * scale for image in images]
                np.testing.assert_allclose(known[column], want, rtol=1e-6)
            else:
                assert column not in known


def test_parser_gives_normals_and_scales_of_the_points(
    looks: dict[str, Any], dataset: Path
) -> None:
    seen = looks["sfmprep train"]
    ply = (dataset / "sparse" / "0" / "points3D.ply").read_bytes()
    header, _, body = ply.partition(b"end_header\n")
    columns = np.frombuffer(
        body,
        [
            (
                line.split()[2].decode(),
                {b"float": "<f4", b"uchar": "u1"}[line.split()[1]],
            )
            for line in header.splitlines()
            if line.startswith(b"property")
        ],
    )
    normals = np.stack([columns[name] for name in ("nx", "ny", "nz")], axis=1)
    np.testing.assert_allclose(seen["metadata"]["points3D_normals"], normals, atol=1e-6)
    np.testing.assert_allclose(
        seen["metadata"]["points3D_scales"], columns["scale"] * seen["scale"], rtol=1e-5
    )


def test_command_lists_the_parser(python: str) -> None:
    done = subprocess.run(
        [str(Path(python).with_name("ns-train")), "splatfacto", "--help"],
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert "sfmprep-data" in done.stdout
