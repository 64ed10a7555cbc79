"""What is in the packages, and that they work from there."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from pathlib import Path

import pytest
import yaml

from tests.support.made_once import made_once

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = (".py", ".yaml", ".css", ".html", ".js", ".safetensors", ".md")


@pytest.fixture(scope="session")
def dist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source package, and the wheel that is built from it."""

    def build(folder: Path) -> None:
        source = folder / "source"
        source.mkdir()
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, source)
        for name in ("sfmprep", "pipelines", "recipes"):
            shutil.copytree(ROOT / name, source / name)
        done = subprocess.run(
            [sys.executable, "-m", "build", "--no-isolation", "-o", folder, source],
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr

    return made_once(tmp_path_factory, "dist", build)


@pytest.fixture(scope="session")
def wheel(dist: Path) -> Path:
    return next(dist.glob("*.whl"))


@pytest.mark.slow
def test_wheel_holds_every_module_and_recipe_and_nothing_else(wheel: Path) -> None:
    expected = {"sfmprep/py.typed"}
    for folder, package in (
        ("sfmprep", "sfmprep"),
        ("pipelines", "sfmprep/pipelines"),
        ("recipes", "sfmprep/recipes"),
    ):
        for path in (ROOT / folder).rglob("*"):
            if path.suffix in SHIPPED:
                expected.add(f"{package}/{path.relative_to(ROOT / folder).as_posix()}")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
        info = [n for n in archive.namelist() if n.endswith("entry_points.txt")]
        assert b"sfmprep = sfmprep.cli.commands:main" in archive.read(info[0])

    assert names == expected


def test_source_package_holds_what_the_wheel_holds(dist: Path, wheel: Path) -> None:
    with tarfile.open(next(dist.glob("*.tar.gz"))) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    with zipfile.ZipFile(wheel) as archive:
        shipped = {name for name in archive.namelist() if ".dist-info/" not in name}
    for package in ("pipelines", "recipes"):
        names |= {f"sfmprep/{name}" for name in names if name.startswith(package)}
    assert shipped <= names


def test_pypi_would_take_the_packages(dist: Path) -> None:
    pytest.importorskip("twine", reason="no twine; it is in the extra dev")
    packages = [*dist.glob("*.whl"), *dist.glob("*.tar.gz")]
    done = subprocess.run(
        [sys.executable, "-m", "twine", "--no-color", "check", "--strict", *packages],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "COLUMNS": "1000"},
    )
    assert done.returncode == 0, done.stdout
    assert [line.rsplit(" ", 1)[1] for line in done.stdout.split("\n") if line] == [
        "PASSED",
        "PASSED",
    ]


@pytest.mark.slow
def test_program_and_recipes_work_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--no-index"),
            *("--target", tmp_path, wheel),
        ],
        check=True,
    )
    program = (
        "import sys, sfmprep; from sfmprep.config.load import recipe_names;"
        "print(sfmprep.__file__, *map(sfmprep.load_recipe, recipe_names()))"
    )
    said = []
    for command in (["-c", program], [tmp_path / "bin" / "sfmprep", "--version"]):
        said.append(
            subprocess.run(
                [sys.executable, *command],
                cwd=tmp_path,
                check=True,
                capture_output=True,
                text=True,
                env={**os.environ, "PYTHONPATH": str(tmp_path)},
            ).stdout
        )
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    assert said[0].startswith(str(tmp_path / "sfmprep"))
    assert said[1] == f"sfmprep {project['version']}\n"


def test_release_tries_every_python_that_is_promised() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    workflow = (ROOT / ".github" / "workflows" / "release.yml").read_text("utf-8")
    tried = yaml.safe_load(workflow)["jobs"]["try"]["strategy"]["matrix"]
    versions = tried["python-version"]
    assert project["requires-python"] == f">={versions[0]}"
    prefix = "Programming Language :: Python :: "
    promised = [c.removeprefix(prefix) for c in project["classifiers"] if prefix in c]
    assert promised == versions
