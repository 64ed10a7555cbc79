"""Every example runs as its first lines say."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

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


def test_match_two_images_prints_matches(photographs: Path) -> None:
    output = run("match_two_images.py", photographs, "sift")

    assert int(output.split(" matches; the best:")[0].split()[-1]) > 50
    assert len(output.splitlines()) == 6


@pytest.mark.slow
def test_reconstruct_folder_writes_a_dataset(photographs: Path, tmp_path: Path) -> None:
    output = run("reconstruct_folder.py", photographs, tmp_path / "out", "sift")

    assert output.splitlines()[-1] == (
        "All 5 photographs are in the dataset, and nothing looks wrong. It is ready for"
        " training."
    )
    assert (tmp_path / "out" / "transforms.json").is_file()
