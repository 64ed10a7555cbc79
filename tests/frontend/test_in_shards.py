"""Several processes leave the store that one leaves, whatever happens to them."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import EngineConfig, NearestConfig, SiftConfig
from sfmprep.errors import ConfigError, DeviceError, StoreError
from sfmprep.executors.local import Processes, _Shards
from sfmprep.frontend.extract import extract_features
from sfmprep.frontend.in_shards import extract_in_shards, match_in_shards
from sfmprep.frontend.match import match_features
from sfmprep.models.extractors.sift import Sift
from sfmprep.models.matchers.nearest import Nearest
from sfmprep.pairing.pairs import Pairs, exhaustive_pairs
from sfmprep.stores.tables import FeatureStore, MatchStore
from tests.support.records import expect_features, expect_matches, features

T = TypeVar("T")

MADE = {"made": "here"}
SIFT = SiftConfig(max_keypoints=300, max_size=320)
NEAREST = NearestConfig()
ENGINE = EngineConfig(num_workers=2)
TWO = ("cpu", "cpu")


@pytest.fixture(scope="module")
def images(demo_scene: Path) -> ImageSet:
    return ImageSet.scan(demo_scene / "images")


@pytest.fixture(scope="module")
def alone(
    images: ImageSet, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path]:
    """Features and matches that one process made; not to be changed."""
    folder = tmp_path_factory.mktemp("alone")
    with (
        FeatureStore(folder / "features.h5", MADE) as store,
        MatchStore(folder / "matches.h5", MADE) as matches,
    ):
        extract_features(images, Sift(SIFT), store, max_size=SIFT.max_size)
        match_features(exhaustive_pairs(images.names), store, Nearest(NEAREST), matches)
    return folder / "features.h5", folder / "matches.h5"


def pairs_of(path: Path) -> Pairs:
    with FeatureStore(path) as store:
        return exhaustive_pairs(store.names())


def expect_same_matches(path: Path, wanted_path: Path) -> None:
    with MatchStore(path) as found, MatchStore(wanted_path) as wanted:
        assert sorted(found.pairs()) == sorted(wanted.pairs())
        for pair, one in wanted.items():
            expect_matches(found.get(*pair), one)
    assert not path.with_name(f"{path.name}.parts").exists()


class Counting:
    """A progress bar that counts, and may do something when it is at a number."""

    def __init__(self, at: int = -1, act: object = None) -> None:
        self.count, self.total = 0, None
        self.at, self.act = at, act

    def __call__(
        self, items: Iterable[T], *, desc: str, total: int | None = None
    ) -> Iterator[T]:
        self.total = total
        for item in items:
            self.count += 1
            if self.count == self.at:
                self.act()  # type: ignore[operator]
            yield item


NUM_IMAGES = 60


def synthetic_features(path: Path) -> Pairs:
    """Features whose pairs take some seconds; returns the pairs."""
    names = [f"{k:03d}" for k in range(NUM_IMAGES)]
    with FeatureStore(path, MADE) as store:
        store.append([(name, features(k, 40)) for k, name in enumerate(names)])
    return exhaustive_pairs(names)


# --------------------------------------------------------------------------- content
def test_two_processes_leave_the_features_and_matches_of_one(
    images: ImageSet,
    alone: tuple[Path, Path],
    tmp_path: Path,
    request: pytest.FixtureRequest,
) -> None:
    with FeatureStore(tmp_path / "f.h5", MADE) as store:  # one is there already
        first = dataclasses.replace(images, names=images.names[:1])
        extract_features(first, Sift(SIFT), store, max_size=SIFT.max_size)
    bar = Counting()
    unreadable = extract_in_shards(
        *(images, SIFT, tmp_path / "f.h5", MADE),
        executor=Processes(TWO),
        engine=ENGINE,
        progress=bar,
    )
    assert (unreadable, bar.count, bar.total) == ({}, 7, 7)
    with FeatureStore(tmp_path / "f.h5") as found, FeatureStore(alone[0]) as wanted:
        assert sorted(found.names()) == list(images.names)
        for name, one in wanted.items():
            expect_features(found.get(name), one)

    bar = Counting()
    request.getfixturevalue("forked")
    match_in_shards(
        *(pairs_of(alone[0]), alone[0], NEAREST, tmp_path / "m.h5", MADE),
        executor=Processes(TWO),
        engine=ENGINE,
        progress=bar,
    )
    assert (bar.count, bar.total) == (28, 28)
    expect_same_matches(tmp_path / "m.h5", alone[1])


@pytest.mark.usefixtures("forked")
def test_images_that_cannot_be_decoded_are_named(
    images: ImageSet, tmp_path: Path
) -> None:
    (tmp_path / "images").mkdir()
    for name in images.names[:3]:
        (tmp_path / "images" / name).write_bytes(images.path(name).read_bytes())
    copied = ImageSet.scan(tmp_path / "images")
    (tmp_path / "images" / copied.names[1]).write_bytes(b"no more an image")
    unreadable = extract_in_shards(
        *(copied, SIFT, tmp_path / "f.h5", MADE),
        executor=Processes(["cpu"]),
        engine=ENGINE,
    )
    assert list(unreadable) == [copied.names[1]]
    with FeatureStore(tmp_path / "f.h5") as store:
        assert sorted(store.names()) == [copied.names[0], copied.names[2]]


def test_nothing_to_do_starts_no_process(
    alone: tuple[Path, Path], tmp_path: Path
) -> None:
    none = Pairs(())
    match_in_shards(
        *(none, alone[0], NEAREST, tmp_path / "m.h5", MADE),
        executor=Processes(()),
        engine=ENGINE,
    )
    assert os.listdir(tmp_path) == ["m.h5"]


def test_work_without_a_device_is_refused(
    alone: tuple[Path, Path], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="no device is named"):
        match_in_shards(
            *(pairs_of(alone[0]), alone[0], NEAREST, tmp_path / "m.h5", MADE),
            executor=Processes([]),
            engine=ENGINE,
        )


@pytest.mark.parametrize(("num_items", "workers"), [(0, 2), (1, 3), (100, 3), (999, 2)])
def test_all_work_is_handed_out_once(num_items: int, workers: int) -> None:
    shards = _Shards(range(num_items), workers, 4)
    random = np.random.default_rng(0)
    taken: list[int] = []
    idle: set[int] = set()
    while len(idle) < workers:
        worker = int(random.integers(workers)) if len(taken) < num_items / 2 else 0
        worker = worker if worker not in idle else min(set(range(workers)) - idle)
        chunk = shards.take(worker)
        taken += chunk
        idle |= set() if chunk else {worker}
    assert sorted(taken) == list(range(num_items))


# --------------------------------------------------------------------- parts and kills
def write_part(store: Path, number: int, source: Path, pairs: slice) -> Path:
    """A part as a killed run leaves it, with some of the matches of another store."""
    part = store.with_name(f"{store.name}.parts") / f"{number}.h5"
    part.parent.mkdir(exist_ok=True)
    with MatchStore(source) as matches, MatchStore(part, MADE) as written:
        written.append(list(matches.items())[pairs])
    return part


@pytest.mark.usefixtures("forked")
def test_parts_of_a_killed_run_are_merged_and_the_rest_is_done(
    alone: tuple[Path, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "m.h5"
    write_part(path, 0, alone[1], slice(0, 8))
    write_part(path, 1, alone[1], slice(6, 12))  # the kill was in the merging
    torn = write_part(path, 7, alone[1], slice(12, 20))
    torn.write_bytes(torn.read_bytes()[:3000])
    bar = Counting()
    match_in_shards(
        *(pairs_of(alone[0]), alone[0], NEAREST, path, MADE),
        executor=Processes(["cpu"]),
        engine=ENGINE,
        progress=bar,
    )
    assert bar.count == 28 - 12
    expect_same_matches(path, alone[1])
    (warning,) = caplog.messages
    assert warning.startswith(f"what is lost of a part is made again: {torn} cannot")


def test_a_part_made_with_other_settings_is_refused_and_kept(
    alone: tuple[Path, Path], tmp_path: Path
) -> None:
    path = tmp_path / "m.h5"
    part = write_part(path, 0, alone[1], slice(0, 8))
    with pytest.raises(StoreError) as caught:
        match_in_shards(
            *(pairs_of(alone[0]), alone[0], NEAREST, path, {"made": "there"}),
            executor=Processes(["cpu"]),
            engine=ENGINE,
        )
    assert str(caught.value) == (
        f"{part} was made with other settings than {path}: made is 'there' there and"
        " 'here' now. Delete it, or choose another output folder."
    )
    assert part.exists()


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_the_others_finish_when_a_process_is_killed(tmp_path: Path) -> None:
    pairs = synthetic_features(tmp_path / "f.h5")

    def kill_one() -> None:
        worker = multiprocessing.active_children()[0]
        os.kill(worker.pid or 0, signal.SIGKILL)

    call = (pairs, tmp_path / "f.h5", NEAREST, tmp_path / "m.h5", MADE)
    with pytest.raises(DeviceError) as caught:
        match_in_shards(
            *call,
            executor=Processes(TWO),
            engine=ENGINE,
            progress=Counting(200, kill_one),
        )
    assert str(caught.value) == (
        "cpu: its process was ended by SIGKILL, as the system does when memory runs"
        f" out\n1 of 2 processes failed; what is done is in {tmp_path / 'm.h5'}. Run"
        " the same command again: it goes on from there."
    )
    with MatchStore(tmp_path / "m.h5") as store:
        # it may have written its last pairs, but not have said so
        assert len(pairs) - 2 * 256 <= len(store) <= len(pairs)
    match_in_shards(*call, executor=Processes(TWO), engine=ENGINE)
    with MatchStore(tmp_path / "m.h5") as store:
        assert sorted(store.pairs()) == list(pairs)


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_what_a_process_raises_is_raised_here_with_its_device(tmp_path: Path) -> None:
    with FeatureStore(tmp_path / "1.h5", MADE) as store:
        store.append([("a", features(0)), ("b", features(1))])
    with FeatureStore(tmp_path / "2.h5", MADE) as store:
        store.append([("c", features(2, dims=9))])
    stores = tmp_path / "stores"
    stores.mkdir()
    for name in ("1.h5", "2.h5"):
        (tmp_path / name).rename(stores / name)
    with pytest.raises(ConfigError, match=r"^cpu: descriptors of lengths \[8, 9\]"):
        match_in_shards(
            *(exhaustive_pairs("abc"), stores, NEAREST, tmp_path / "m.h5", MADE),
            executor=Processes(["cpu"]),
            engine=ENGINE,
        )


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
def test_an_interrupted_run_stops_its_processes_and_keeps_what_is_done(
    tmp_path: Path,
) -> None:
    pairs = synthetic_features(tmp_path / "f.h5")

    def interrupt() -> None:
        raise KeyboardInterrupt

    call = (pairs, tmp_path / "f.h5", NEAREST, tmp_path / "m.h5", MADE)
    with pytest.raises(KeyboardInterrupt):
        match_in_shards(
            *call,
            executor=Processes(TWO),
            engine=ENGINE,
            progress=Counting(200, interrupt),
        )
    assert multiprocessing.active_children() == []
    bar = Counting()
    match_in_shards(*call, executor=Processes(["cpu"]), engine=ENGINE, progress=bar)
    assert bar.count <= len(pairs) - 200
    with MatchStore(tmp_path / "m.h5") as store:
        assert sorted(store.pairs()) == list(pairs)


PARENT = """
    import multiprocessing, os, signal, sys
    from pathlib import Path
    from sfmprep.pairing.pairs import exhaustive_pairs
    from sfmprep.executors.local import Processes
    from sfmprep.frontend.in_shards import match_in_shards
    from tests.frontend import test_in_shards as t
    ENGINE, MADE, NEAREST, NUM_IMAGES = t.ENGINE, t.MADE, t.NEAREST, t.NUM_IMAGES
    Counting = t.Counting

    def vanish():
        (worker,) = multiprocessing.active_children()
        print(worker.pid, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    if __name__ == "__main__":
        match_in_shards(
            exhaustive_pairs([f"{k:03d}" for k in range(NUM_IMAGES)]),
            *(Path(sys.argv[1]), NEAREST, Path(sys.argv[2]), MADE),
            executor=Processes(["cpu"]),
            engine=ENGINE,
            progress=Counting(200, vanish),
        )
"""


@pytest.mark.usefixtures("forked")
@pytest.mark.slow
@pytest.mark.timeout(300)  # for a process that does not
def test_a_process_ends_when_its_parent_is_gone(tmp_path: Path) -> None:
    pairs = synthetic_features(tmp_path / "f.h5")
    script = tmp_path / "parent.py"
    script.write_text(textwrap.dedent(PARENT))
    parent = subprocess.run(
        [sys.executable, script, tmp_path / "f.h5", tmp_path / "m.h5"],
        stdout=subprocess.PIPE,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[2])},
    )
    assert parent.returncode == -signal.SIGKILL
    worker = int(parent.stdout)
    while Path(f"/proc/{worker}").exists():
        time.sleep(0.05)
    bar = Counting()
    match_in_shards(
        *(pairs, tmp_path / "f.h5", NEAREST, tmp_path / "m.h5", MADE),
        executor=Processes(["cpu"]),
        engine=ENGINE,
        progress=bar,
    )
    assert 0 < bar.count <= len(pairs) - 200
