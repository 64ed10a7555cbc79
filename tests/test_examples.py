"""Every example runs as its first lines say."""

from __future__ import annotations

import re
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import cv2
import pycolmap
import pytest

ROOT = Path(__file__).resolve().parents[1]
EXAMPLES = ROOT / "examples"

Run = Callable[..., str]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Runs an example in this process and returns what it prints."""

    def run(name: str, *args: object) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, args)])
        runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        return capsys.readouterr().out

    return run


@pytest.fixture(scope="module")
def photographs(demo_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five neighbours of the demo scene."""
    return copied(demo_scene, 5, tmp_path_factory.mktemp("photographs"))


@pytest.fixture(scope="module")
def three(demo_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """For LightGlue, which takes a second a pair."""
    return copied(demo_scene, 3, tmp_path_factory.mktemp("photographs"))


def copied(demo_scene: Path, number: int, folder: Path) -> Path:
    for path in sorted((demo_scene / "images").iterdir())[:number]:
        shutil.copy(path, folder)
    return folder


def test_every_example_is_tested_here() -> None:
    text = Path(__file__).read_text("utf-8")

    for example in EXAMPLES.glob("*.py"):
        assert f'"{example.name}"' in text


def test_match_two_images_draws_matches(photographs: Path, tmp_path: Path) -> None:
    """As a program of its own, which the others differ from in their names only."""
    paths = photographs / "0000.jpg", photographs / "0001.jpg"
    output = subprocess.run(
        [
            sys.executable,
            EXAMPLES / "match_two_images.py",
            *paths,
            tmp_path / "matches.png",
        ],
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert int(output.split(" matches")[0].split()[-1]) > 50
    drawn = cv2.imread(str(tmp_path / "matches.png"))
    assert drawn.shape == (360, 960, 3)
    assert (drawn == (60, 220, 60)).all(axis=2).sum() > 1000


def test_own_extractor_goes_through_the_whole_job(
    run: Run, photographs: Path, tmp_path: Path
) -> None:
    output = run("own_extractor.py", photographs, tmp_path / "out")

    assert output.startswith("5 of 5 images, ")
    assert (tmp_path / "out" / "sparse" / "0" / "images.bin").is_file()


@pytest.mark.slow
def test_pipeline_writes_a_dataset(run: Run, three: Path, tmp_path: Path) -> None:
    output = run("pipeline.py", three, tmp_path / "out")

    assert output.startswith("3 of 3 images, ")
    assert (tmp_path / "out" / "transforms.json").is_file()
    assert (tmp_path / "out" / "work" / "matches.h5").is_file()


@pytest.mark.slow
def test_reconstruct_folder_writes_a_dataset(
    run: Run, photographs: Path, tmp_path: Path
) -> None:
    output = run("reconstruct_folder.py", photographs, tmp_path / "out", "sift")

    assert output.splitlines()[-1] == (
        "All 5 photographs are in the dataset. It can be trained; look at one thing"
        " first."
    )
    assert (tmp_path / "out" / "transforms.json").is_file()


@pytest.mark.slow
def test_the_python_of_the_readme_runs(
    three: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = (ROOT / "README.md").read_text("utf-8")
    [section] = re.findall(r"## Python\n(.*?)\n## ", text, re.DOTALL)
    code = "\n".join(
        line[4:] for line in section.splitlines() if line.startswith("    ")
    )
    monkeypatch.chdir(tmp_path)
    Path("photos").symlink_to(three)

    exec(compile(code, "README.md", "exec"), {"__name__": "__main__"})

    assert len(list((tmp_path / "dataset" / "images").iterdir())) == 3


def test_fill_colmap_project_leaves_ids_and_cameras(
    run: Run, three: Path, tmp_path: Path
) -> None:
    database = tmp_path / "project.db"
    pycolmap.Database.open(database).close()
    pycolmap.import_images(database, three)
    cameras = images_of(database)

    output = run("fill_colmap_project.py", three, database)

    assert output == "3 of 3 pairs verified\n"
    assert images_of(database) == cameras


def images_of(path: Path) -> list[tuple[int, str, int]]:
    with pycolmap.Database.open(path) as database:
        return sorted(
            (image.image_id, image.name, image.camera_id)
            for image in database.read_all_images()
        )
