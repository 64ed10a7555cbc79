"""Every example runs as its first lines say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import cv2
import pycolmap
import pytest

from sfmprep.demo.courtyard import render_demo_scene

EXAMPLES = Path(__file__).resolve().parents[1] / "examples"


def run(name: str, *args: object) -> str:
    return subprocess.run(
        [sys.executable, EXAMPLES / name, *map(str, args)],
        check=True,
        capture_output=True,
        text=True,
    ).stdout


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("scene")
    render_demo_scene(folder, num_images=5, size=(480, 360))
    return folder / "images"


def test_every_example_is_tested_here() -> None:
    text = Path(__file__).read_text("utf-8")

    for example in EXAMPLES.glob("*.py"):
        assert f'"{example.name}"' in text


def test_match_two_images_draws_matches(photographs: Path, tmp_path: Path) -> None:
    paths = photographs / "0000.jpg", photographs / "0001.jpg"
    output = run("match_two_images.py", *paths, tmp_path / "matches.png")

    assert int(output.split(" matches")[0].split()[-1]) > 50
    drawn = cv2.imread(str(tmp_path / "matches.png"))
    assert drawn.shape == (360, 960, 3)
    assert (drawn == (60, 220, 60)).all(axis=2).sum() > 1000


def test_own_extractor_goes_through_the_whole_job(
    photographs: Path, tmp_path: Path
) -> None:
    output = run("own_extractor.py", photographs, tmp_path / "out")

    assert output.startswith("5 of 5 images, ")
    assert (tmp_path / "out" / "sparse" / "0" / "images.bin").is_file()


@pytest.mark.slow
def test_pipeline_writes_a_dataset(photographs: Path, tmp_path: Path) -> None:
    output = run("pipeline.py", photographs, tmp_path / "out")

    assert output.startswith("5 of 5 images, ")
    assert (tmp_path / "out" / "transforms.json").is_file()
    assert (tmp_path / "out" / "work" / "matches.h5").is_file()


@pytest.mark.slow
def test_reconstruct_folder_writes_a_dataset(photographs: Path, tmp_path: Path) -> None:
    output = run("reconstruct_folder.py", photographs, tmp_path / "out", "sift")

    assert output.splitlines()[-1] == (
        "All 5 photographs are in the dataset. It can be trained; look at 2 things"
        " first."
    )
    assert (tmp_path / "out" / "transforms.json").is_file()


@pytest.mark.slow
def test_the_python_of_the_readme_runs(photographs: Path, tmp_path: Path) -> None:
    text = (EXAMPLES.parent / "README.md").read_text("utf-8")
    [section] = re.findall(r"## Python\n(.*?)\n## ", text, re.DOTALL)
    code = "\n".join(
        line[4:] for line in section.splitlines() if line.startswith("    ")
    )
    (tmp_path / "photos").symlink_to(photographs)

    subprocess.run([sys.executable, "-c", code], check=True, cwd=tmp_path)

    assert len(list((tmp_path / "dataset" / "images").iterdir())) == 5


def test_fill_colmap_project_leaves_ids_and_cameras(
    photographs: Path, tmp_path: Path
) -> None:
    database = tmp_path / "project.db"
    pycolmap.Database.open(database).close()
    pycolmap.import_images(database, photographs)
    cameras = images_of(database)

    output = run("fill_colmap_project.py", photographs, database)

    assert output in [f"{k} of 10 pairs verified\n" for k in range(7, 11)]
    assert images_of(database) == cameras


def images_of(path: Path) -> list[tuple[int, str, int]]:
    with pycolmap.Database.open(path) as database:
        return sorted(
            (image.image_id, image.name, image.camera_id)
            for image in database.read_all_images()
        )
