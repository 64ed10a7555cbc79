"""A run that starts from given poses: its stages, its dataset and its report."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pycolmap
import pytest
from PIL import Image

from sfmprep.cli.commands import run
from sfmprep.coords import opengl_from_opencv
from sfmprep.evaluation.poses import evaluate_model
from sfmprep.evaluation.reference import CameraPose, read_reference
from tests.support.tables import write_table

SETTINGS = (
    *("--set", "features.max_size=480", "features.max_keypoints=1500"),
    "export.downscales=[2]",
)


@pytest.fixture
def truth(demo_scene: Path) -> dict[str, CameraPose]:
    return read_reference(demo_scene / "reference.json")


def test_dataset_keeps_the_world_of_the_poses(
    demo_scene: Path,
    demo_result: Path,
    truth: dict[str, CameraPose],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """In a folder that has features and matches already: these are used."""
    out, images = (
        Path(shutil.copytree(demo_result, tmp_path / "out")),
        demo_scene / "images",
    )
    table = write_table(tmp_path / "poses.csv", truth)
    command = [
        "refine",
        str(images),
        str(table),
        str(out),
        "--recipe",
        "sift",
        *SETTINGS,
    ]
    assert run(command) == 0
    said = capsys.readouterr()
    assert "the poses of a table of poses moved by " in said.out
    model = pycolmap.Reconstruction(out / "sparse" / "0")
    assert evaluate_model(model, truth).auc[3] > 95
    for image in model.images.values():  # names of the dataset are those of the demo
        off = image.projection_center() - truth[image.name].centre
        assert np.linalg.norm(off) < 0.1
    report = json.loads((out / "report.json").read_text())
    given = report["given_poses"]
    assert given["convention"] == "world_from_cam with the axes of OpenGL"
    assert given["num_given"] == 8 and not given["lost"] and not given["added"]
    assert 1 < given["median_rotation_deg"] < 6
    # what is done is done; a table with other content is not
    assert run(["status", str(images), str(out)]) == 0
    assert "would run" not in capsys.readouterr().out
    write_table(table, truth, degrees=1)
    assert run(["status", str(images), str(out)]) == 0
    assert "would run: known_poses.sha256 was " in capsys.readouterr().out


def test_given_principal_points_stay(
    demo_scene: Path,
    demo_result: Path,
    truth: dict[str, CameraPose],
    tmp_path: Path,
) -> None:
    """Also where the photographs would move them: here by 12 pixels, to the middle."""
    out = Path(shutil.copytree(demo_result, tmp_path / "out"))
    frames = []
    for name, pose in truth.items():
        world_from_cam = np.eye(4)
        world_from_cam[:3, :3] = pose.rotation.T
        world_from_cam[:3, 3] = pose.centre
        with Image.open(demo_scene / "images" / name) as image:
            width, height = image.size
        frames.append(
            {
                "file_path": f"images/{name}",
                "transform_matrix": opengl_from_opencv(world_from_cam).tolist(),
                **{"fl_x": width, "cx": width / 2 + 12, "cy": height / 2},
                **{"w": width, "h": height},
            }
        )
    poses = tmp_path / "transforms.json"
    poses.write_text(json.dumps({"frames": frames}))
    command = ["refine", *map(str, (demo_scene / "images", poses, out)), "--recipe"]
    assert run([*command, "sift", *SETTINGS]) in (0, 3)
    (camera,) = pycolmap.Reconstruction(out / "work" / "models" / "0").cameras.values()
    centre = camera.principal_point_x - camera.width / 2, camera.principal_point_y
    assert centre == pytest.approx((12, camera.height / 2), abs=1e-9)


def test_poses_of_other_images_are_refused_before_the_work(
    demo_scene: Path,
    truth: dict[str, CameraPose],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    others = {f"x{name}": pose for name, pose in truth.items()}
    table = write_table(tmp_path / "poses.csv", others)
    images, out = demo_scene / "images", tmp_path / "out"
    assert run(["refine", str(images), str(table), str(out), *SETTINGS]) == 2
    error = capsys.readouterr().err
    assert "none of them is of an image here: they are of 'x" in error
    assert not out.exists()
    one = dict.fromkeys(truth, next(iter(truth.values())))
    table = write_table(tmp_path / "one.csv", one, off=0)
    assert run(["refine", str(images), str(table), str(out), *SETTINGS]) == 2
    assert capsys.readouterr().err.replace(str(tmp_path), "TMP").splitlines()[-1] == (
        "sfmprep: error: poses TMP/one.csv: all 8 cameras are in one place, so there is"
        " no scale to keep. Use `sfmprep reconstruct`, which needs no poses."
    )
