"""The floors of the house: which folder may import which, and no circle anywhere."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"sfmprep": "sfmprep", "pipelines": "sfmprep.pipelines"}

# Lowest first. A room is a folder, or a file that lies in none. A module may import
# from its own room, from lower floors, and along the arrows below.
FLOORS = """
errors budget types coords progress files devices threads
config weights stores capture executors
models pairing geometry known_poses
frontend semidense mapping refinement dataset demo
export evaluation report
pipelines
api
terminal interrupts
viewer train plugins
cli
"""
ARROWS = {
    *(("coords", "types"), ("files", "errors"), ("devices", "errors")),
    ("threads", "devices"),
    ("pairing", "models"),
    ("semidense", "frontend"),
}
HEAVY = {"torch", "cv2", "kornia", "pycolmap", "nerfstudio"}

FLOOR_OF = {
    room: floor
    for floor, rooms in enumerate(FLOORS.strip().splitlines())
    for room in rooms.split()
}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module's name in the package, without the leading `sfmprep.`."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            name = ".".join((package, *parts)).removeprefix("sfmprep").lstrip(".")
            if name not in ("", "__main__"):  # these two have their own tests below
                yield name, path


MODULES = dict(modules())


def imported(source: str, known: set[str]) -> Iterator[str]:
    """The modules of sfmprep that this source imports, at any depth."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            if node.level:
                raise ValueError("relative import; write `from sfmprep.x import y`")
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            package, _, rest = name.partition(".")
            if package != "sfmprep" or rest == "__version__":
                continue
            while rest and rest not in known:  # from a module's member to the module
                rest = rest.rpartition(".")[0]
            yield rest or "__init__"


def violations(module: str, source: str, known: set[str]) -> list[str]:
    """What this source imports against the order of the floors, in words."""
    room = module.split(".")[0]
    if room not in FLOOR_OF:
        return [f"{room} is on no floor; give it one in tests/test_floors.py"]
    found = []
    for other in imported(source, known):
        target = other.split(".")[0]
        if other == "__init__":
            found.append(
                f"{module} imports a public name from sfmprep; take its module"
            )
        elif target == room or (room, target) in ARROWS:
            continue
        elif FLOOR_OF.get(target, -1) > FLOOR_OF[room]:
            found.append(f"{module} imports {other}, which is on a higher floor")
        elif FLOOR_OF.get(target) == FLOOR_OF[room]:
            found.append(f"{module} imports {other}, which is beside it")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_what_lies_below(module: str) -> None:
    assert not violations(module, MODULES[module].read_text("utf-8"), set(MODULES))


def test_no_modules_import_each_other_in_a_circle() -> None:
    known = set(MODULES)
    graph = {
        name: {o for o in imported(path.read_text("utf-8"), known) if o != name}
        for name, path in MODULES.items()
    }
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_every_room_and_every_arrow_is_used() -> None:
    known = set(MODULES)
    rooms = {name.split(".")[0] for name in known}
    assert rooms == set(FLOOR_OF)
    arrows = {
        (name.split(".")[0], other.split(".")[0])
        for name, path in MODULES.items()
        for other in imported(path.read_text("utf-8"), known)
    }
    assert arrows >= ARROWS


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("stores.x", "from sfmprep import coords\nimport sfmprep.errors", []),
        ("stores.x", "from sfmprep.stores.ragged import Ragged", []),
        ("stores.x", "import torch\nfrom sfmprep import __version__", []),
        ("pairing.x", "from sfmprep.models.build import build_extractor", []),
        (
            "stores.x",
            "from sfmprep.capture.image_set import ImageSet",
            ["stores.x imports capture.image_set, which is beside it"],
        ),
        (
            "stores.x",
            "def f():\n    from sfmprep.models.build import build_extractor",
            ["stores.x imports models.build, which is on a higher floor"],
        ),
        (
            "errors",
            "import sfmprep.cli as c",
            ["errors imports cli, which is on a higher floor"],
        ),
        (
            "stores.x",
            "from sfmprep import Recipe",
            ["stores.x imports a public name from sfmprep; take its module"],
        ),
        (
            "helpers.x",
            "",
            ["helpers is on no floor; give it one in tests/test_floors.py"],
        ),
    ],
)
def test_check_finds_what_it_should(
    module: str, source: str, expected: list[str]
) -> None:
    known = {
        *("coords", "errors", "stores.ragged", "capture.image_set", "models.build"),
        *("stores.x", "cli"),
    }
    assert violations(module, source, known) == expected


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, sfmprep; print(sorted({HEAVY} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout.decode().strip() == "[]"


def test_a_run_that_has_everything_loads_no_torch() -> None:
    code = (
        "import sys, sfmprep.pipelines.reconstruct, sfmprep.pipelines.status;"
        " print('torch' in sys.modules)"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout.decode().strip() == "False"


def test_only_nerfstudio_imports_the_plugin_and_only_that_imports_nerfstudio() -> None:
    sources = {name: path.read_text("utf-8") for name, path in MODULES.items()}
    assert [n for n, s in sources.items() if "import nerfstudio" in s] == []
    importers = [n for n, s in sources.items() if "from nerfstudio" in s]
    assert importers == ["plugins.nerfstudio"]
    for name, source in sources.items():
        assert "plugins.nerfstudio" not in imported(source, set(MODULES)), name
