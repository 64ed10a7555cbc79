"""Fixtures shared by all tests."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from sfmprep.progress import silent

_BESIDE = Path(__file__).resolve().parents[2] / "shared"


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real weights and scenes; skips the test where it is absent."""
    folder = Path(os.environ.get("SFMPREP_SHARED") or _BESIDE)
    if not (folder / "data" / "scenes").is_dir():
        pytest.skip(f"no real data at {folder}; name it in SFMPREP_SHARED")
    return folder


@pytest.fixture
def real_weights(shared: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Points SFMPREP_WEIGHTS to the real weights."""
    folder = shared / "weights"
    monkeypatch.setenv("SFMPREP_WEIGHTS", str(folder))
    return folder


@pytest.fixture(scope="session")
def demo_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small images of the demo scene in `images`, and `reference.json`."""
    from sfmprep.demo.courtyard import render_demo_scene

    folder = tmp_path_factory.mktemp("demo-scene")
    render_demo_scene(folder, num_images=8, size=(480, 360))
    return folder


@pytest.fixture(scope="session")
def demo_result(demo_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the main job makes of the demo scene, with SIFT; not to be changed."""
    from sfmprep import load_recipe
    from sfmprep.pipelines.reconstruct import reconstruct

    settings = (
        "features.max_size=480",
        "features.max_keypoints=1500",
        "export.downscales=[2]",
    )
    out = tmp_path_factory.mktemp("demo-result") / "out"
    reconstruct(demo_scene / "images", out, load_recipe("sift", settings))
    return out


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path_factory) -> None:
    """No test downloads, reads the user's cache, or sees the caller's weights."""
    monkeypatch.setenv("SFMPREP_OFFLINE", "1")
    monkeypatch.delenv("SFMPREP_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(autouse=True, scope="session")
def _mapper_in_this_process() -> Iterator[None]:
    """Saves starting an interpreter for each of some hundred tiny models.

    Tests of the isolation itself, and of the program, have it.
    """

    def call(function, *args, progress=silent, **options):  # type: ignore[no-untyped-def]
        return function(*args, progress=progress, **options)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("sfmprep.pipelines.apart.run_isolated", call)
        yield
