"""Every command of the README: those of sfmprep are run, the others checked."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import tomllib
from pathlib import Path

import pycolmap
import pytest

from sfmprep.cli.commands import run
from sfmprep.config.load import load_recipe
from sfmprep.export.next_steps import next_steps

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text("utf-8")
SMALL = [
    *("--set", "features.max_size=480", "features.max_keypoints=1024"),
    *("export.downscales=[8]", "refinement=null"),
]
PROGRAMS = ("sfmprep", "ns-train", "python", "make", "pip", "uv", "mkdir")


def commands(*programs: str) -> list[str]:
    """The indented lines that begin with one of these programs."""
    found = re.findall(r"^    (\S+ .*)$", README, re.M)
    return [line for line in found if line.split()[0] in programs]


def test_every_program_of_the_readme_is_checked_below() -> None:
    words = {line.split()[0] for line in commands(*PROGRAMS)}
    assert words == set(PROGRAMS)


def test_film_becomes_photographs_in_a_folder_that_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (line,) = commands("mkdir")
    programs = tmp_path / "bin"
    programs.mkdir()
    fake = programs / "ffmpeg"  # as the real one, it makes no folder
    fake.write_text('#!/bin/sh\nfor last; do :; done\n: > "$last"\n')
    fake.chmod(0o755)
    monkeypatch.setenv("PATH", str(programs), prepend=":")
    subprocess.run(["sh", "-c", line], cwd=tmp_path, check=True)
    assert [path.name for path in (tmp_path / "images").iterdir()] == ["%05d.jpg"]


def test_training_commands_are_those_that_a_run_prints() -> None:
    shown = [
        line.partition("#")[0].split()
        for line in commands("ns-train", "python")
        if "train" in line
    ]
    recipe = load_recipe("splat")
    steps = next_steps(Path("images"), Path("out"), recipe)[:3]
    absolute = str(Path("out").resolve())
    printed = [
        [word.replace(absolute, "out/") for word in step.partition("#")[0].split()]
        for step in steps
    ]
    assert shown == printed


def test_extras_and_targets_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
    extras = set(project["project"]["optional-dependencies"])
    for names in re.findall(r"\.\[([a-z,]+)\]", README):
        assert set(names.split(",")) <= extras
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for line in commands("make"):
        assert f"\n{line.split()[1]}: " in makefile


def test_pictures_of_the_readme_are_there_and_small() -> None:
    pictures = re.findall(r"!\[[^]]+\]\(([^)]+)\)", README)
    assert pictures
    for name in pictures:
        assert 0 < (ROOT / name).stat().st_size < 200_000


@pytest.mark.slow
@pytest.mark.parametrize("line", commands("sfmprep"))
def test_command_runs(
    line: str, demo_scene: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(demo_scene / "images", "images")
    Path("mine.yaml").write_text(load_recipe("sift").to_yaml())
    pycolmap.Database.open("project.db").close()
    _, *args = shlex.split(line, comments=True)
    if args[0] in ("reconstruct", "database"):
        args += SMALL
    assert run(args) == 0
    if args[0] == "reconstruct":
        assert Path("out/sparse/0/points3D.bin").is_file()
