"""The public names: what they are, that they cost nothing, and that they stay."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import sfmprep
from tests.support.public_api import describe

SNAPSHOT = Path(__file__).with_name("public_api.txt")
RENEW = (
    "The public API is not what tests/public_api.txt says. If that is wanted: `python"
    " -m tests.support.public_api > tests/public_api.txt`, and a line in CHANGELOG.md."
)
HEAVY = ("torch", "cv2", "kornia", "pycolmap", "pydantic", "yaml", "numpy")


def in_new_process(code: str) -> str:
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, check=True, text=True
    )
    return run.stdout.strip()


def test_signatures_are_those_of_the_snapshot() -> None:
    assert describe() == SNAPSHOT.read_text("utf-8"), RENEW


def test_every_name_has_a_docstring_and_is_listed_in_order() -> None:
    assert sfmprep.__all__ == sorted(sfmprep.__all__)
    assert dir(sfmprep) == sfmprep.__all__
    for name in set(sfmprep.__all__) - {"__version__"}:
        assert getattr(sfmprep, name).__doc__, name


def test_what_type_checkers_see_is_what_is_listed() -> None:
    assert sorted([*sfmprep._PLACES, "__version__"]) == sfmprep.__all__
    assert sfmprep._PLACES["Aliked"] == ("sfmprep.config", "AlikedConfig")


def test_importing_loads_nothing_heavy() -> None:
    loaded = in_new_process(
        "import sys, sfmprep; dir(sfmprep); sfmprep.SfmprepError;"
        f" print(sorted({set(HEAVY)!r} & set(sys.modules)))"
    )
    assert loaded == "[]"


def test_recipes_and_configurations_load_no_network() -> None:
    loaded = in_new_process(
        "import sys, sfmprep as sp; sp.load_recipe('splat'); sp.Aliked(), sp.Nearest();"
        " print(sorted({'torch', 'cv2', 'pycolmap'} & set(sys.modules)))"
    )
    assert loaded == "[]"


def test_the_function_export_is_not_hidden_by_the_folder_export() -> None:
    assert in_new_process(
        "from sfmprep.export.dataset import export_dataset; import sfmprep as sp;"
        " print(sp.export.__module__, export_dataset.__module__)"
    ) == ("sfmprep.api.dataset sfmprep.export.dataset")


def test_a_name_that_is_not_there_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError) as caught:
        sfmprep.Alike  # noqa: B018
    assert str(caught.value) == "module 'sfmprep' has no attribute 'Alike'"
