"""Results that one process of a test run makes and all of its processes read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> Path:
    """The folder `name`, which `make` fills for the first who asks in this test run.

    What is there must not be changed: others read it at the same time.
    """
    return made_in(common_folder(factory), name, make)


def common_folder(factory: pytest.TempPathFactory) -> Path:
    """Where the processes of a test run find each other's results.

    Each worker of pytest-xdist has a temporary folder of its own; the one above is
    common to them.
    """
    folder = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        folder = folder.parent
    return folder / "made-once"


def made_in(common: Path, name: str, make: Callable[[Path], object]) -> Path:
    """As `made_once`, in a process that knows the common folder only."""
    folder = common / name
    common.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            begun = folder.with_name(f"{name}.begun")
            shutil.rmtree(begun, ignore_errors=True)  # of one who failed
            begun.mkdir()
            make(begun)
            begun.rename(folder)
    return folder
