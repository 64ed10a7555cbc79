"""What is in the wheel, and that it works from there."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = (".py", ".yaml", ".css", ".js", ".safetensors", ".md")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    source = tmp_path_factory.mktemp("source")
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    for name in ("sfmprep", "pipelines", "recipes"):
        shutil.copytree(ROOT / name, source / name)
    subprocess.run(
        [
            *(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps"),
            *("--no-build-isolation", "-w", source / "dist", source),
        ],
        check=True,
    )
    return next((source / "dist").glob("*.whl"))


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


@pytest.mark.slow
def test_recipes_load_from_the_wheel(wheel: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    program = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import sfmprep;"
        "from sfmprep.config.load import recipe_names;"
        "print(sfmprep.__file__, *map(sfmprep.load_recipe, recipe_names()))"
    )
    output = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
    ).stdout

    assert output.startswith(str(tmp_path / "sfmprep"))
