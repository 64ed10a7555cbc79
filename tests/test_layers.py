"""The import order of the architecture, and what `import sfmprep` may load."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

import sfmprep

ROOT = Path(__file__).resolve().parents[1]
FOLDERS = {"sfmprep": "sfmprep", "pipelines": "sfmprep.pipelines"}

# Lowest first. A module may import from its own layer and from lower ones. A name also
# stands for all modules below it.
LAYERS = (
    ("errors", "coords", "types", "progress"),
    (
        "images",
        "image_file",
        "pairs",
        "stores",
        "ragged",
        "config",
        "recipe_file",
        "weights",
    ),
    ("models",),
    (  # the stages, and what only they share
        *("extract", "retrieve", "match", "dense", "database", "mapping"),
        *("evaluate", "demo", "raycast", "textures", "video", "workspace"),
        *("masks", "processes", "schedule", "shards", "write_behind"),
        *(
            "dense_keypoints",
            "dense_tracks",
            "remeasure",
            "refine",
            "patches",
            "patch_alignment",
        ),
        *("colours", "outliers", "seed", "surface", "tracks", "triangulate"),
        *("uncertainty", "world", "upright", "georeference"),
    ),
    ("export", "report", "view", "view_scene"),
    ("pipelines",),
    ("terminal",),
    ("cli", "__main__", "nerfstudio_plugin"),
)
TRAINING = "train"  # may import everything; only the command line imports it
HEAVY = {"torch", "cv2", "kornia", "pycolmap", "nerfstudio"}


def modules() -> Iterator[tuple[str, Path]]:
    """Every module's name in the package, without the leading `sfmprep.`."""
    for folder, package in FOLDERS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            parts = path.relative_to(ROOT / folder).with_suffix("").parts
            parts = parts[:-1] if parts[-1] == "__init__" else parts
            name = ".".join((package, *parts)).removeprefix("sfmprep").lstrip(".")
            if name:  # `sfmprep/__init__.py` has its own tests below
                yield name, path


MODULES = dict(modules())


def layer_of(module: str) -> int | None:
    """The layer of the module, by its first name; None where it is not listed."""
    first = module.split(".")[0]
    return next((k for k, names in enumerate(LAYERS) if first in names), None)


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
    """What this source imports against the order of the layers, in words."""
    if module.split(".")[0] == TRAINING:
        return []
    own = layer_of(module)
    if own is None:
        return [f"{module} is in no layer; add it to LAYERS in tests/test_layers.py"]
    found = []
    for other in imported(source, known):
        layer = layer_of(other)
        if other == "__init__":
            found.append(
                f"{module} imports a public name from sfmprep; take its module"
            )
        elif other.split(".")[0] == TRAINING and module != "cli":
            found.append(f"{module} imports {other}, but nothing may")
        elif layer is not None and layer > own:
            found.append(f"{module} imports {other}, which is in a higher layer")
    return found


@pytest.mark.parametrize("module", MODULES)
def test_module_imports_only_its_own_and_lower_layers(module: str) -> None:
    assert not violations(module, MODULES[module].read_text("utf-8"), set(MODULES))


def test_all_folders_of_the_package_are_checked() -> None:
    assert {"errors", "models.protocols", "export", "pipelines"} <= set(MODULES)


@pytest.mark.parametrize(
    ("module", "source", "expected"),
    [
        ("stores", "from sfmprep import coords\nimport sfmprep.errors", []),
        ("stores", "from sfmprep.images import ImageSet", []),
        ("stores", "import torch\nfrom sfmprep import __version__", []),
        (
            "stores",
            "def f():\n    from sfmprep.models.sift import Sift",
            ["stores imports models.sift, which is in a higher layer"],
        ),
        (
            "errors",
            "import sfmprep.cli as c",
            ["errors imports cli, which is in a higher layer"],
        ),
        (
            "match",
            "from sfmprep import export",
            ["match imports export, which is in a higher layer"],
        ),
        (
            "stores",
            "from sfmprep import Recipe",
            ["stores imports a public name from sfmprep; take its module"],
        ),
        (
            "models.sift",
            "from sfmprep.train.losses import loss",
            ["models.sift imports train.losses, but nothing may"],
        ),
        ("train.losses", "from sfmprep.cli import main", []),
        (
            "helpers",
            "",
            ["helpers is in no layer; add it to LAYERS in tests/test_layers.py"],
        ),
    ],
)
def test_check_finds_what_it_should(
    module: str, source: str, expected: list[str]
) -> None:
    known = {"coords", "errors", "images", "models", "models.sift", "export", "cli"}
    assert violations(module, source, known | {"train", "train.losses"}) == expected


def test_import_loads_nothing_heavy() -> None:
    code = f"import sys, sfmprep; print(sorted({HEAVY} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert run.stdout.decode().strip() == "[]"


def test_only_nerfstudio_imports_the_plugin_and_only_that_imports_nerfstudio() -> None:
    sources = {name: path.read_text("utf-8") for name, path in MODULES.items()}
    assert [n for n, s in sources.items() if "import nerfstudio" in s] == []
    importers = [n for n, s in sources.items() if "from nerfstudio" in s]
    assert importers == ["nerfstudio_plugin"]
    for name, source in sources.items():
        assert "nerfstudio_plugin" not in imported(source, set(MODULES)), name


def test_all_is_what_is_public() -> None:
    public = {
        name
        for name, value in vars(sfmprep).items()
        if not name.startswith("_") and not isinstance(value, ModuleType)
    }
    assert set(sfmprep.__all__) == public | {"__version__"}
    assert list(sfmprep.__all__) == sorted(sfmprep.__all__)
