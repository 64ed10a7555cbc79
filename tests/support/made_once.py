"""Results that one process of a test run makes and all of its processes read."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from filelock import FileLock


def made_once(
    factory: pytest.TempPathFactory, name: str, make: Callable[[Path], object]
) -> Path:
    """The folder `name`, which `make` fills for the first who asks in this test run.

    Each worker of pytest-xdist has a temporary folder of its own; the one above is
    common to them. What is there must not be changed: others read it at the same time.
    """
    common = factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        common = common.parent
    folder = common / "made-once" / name
    folder.parent.mkdir(exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.exists():
            begun = folder.with_name(f"{name}.begun")
            begun.mkdir()
            make(begun)
            begun.rename(folder)
    return folder
