"""Work on a cluster survives what dies there, and leaves what one process leaves."""

from __future__ import annotations

import logging
import os
import signal
import sqlite3
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sfmprep.capture.image_set import ImageSet
from sfmprep.cli.commands import run
from sfmprep.config import EngineConfig, NearestConfig, SiftConfig
from sfmprep.errors import ConfigError, DeviceError, ImageError
from sfmprep.executors.protocol import Link
from sfmprep.executors.ray import RayCluster
from sfmprep.files import below
from sfmprep.frontend.extract import extract_features
from sfmprep.frontend.in_shards import extract_in_shards, match_in_shards
from sfmprep.frontend.match import match_features
from sfmprep.models.extractors.sift import Sift
from sfmprep.models.matchers.nearest import Nearest
from sfmprep.pairing.pairs import exhaustive_pairs
from sfmprep.progress import silent
from sfmprep.stores.tables import FeatureStore, MatchStore
from tests.support.ray_nodes import RayNodes, ray_nodes
from tests.support.records import expect_features, expect_matches

pytest.importorskip("ray", reason="the extra `cluster` is not installed")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]

MADE = {"made": "here"}
SIFT = SiftConfig(max_keypoints=300, max_size=320)
ENGINE = EngineConfig()


@dataclass(frozen=True)
class Sleeping:
    """A job that writes its items, sleeps, and may be a bad one."""

    chunks_a_device: ClassVar[int] = 4
    suffix: ClassVar[str] = ".txt"
    has_network: ClassVar[bool] = False
    seconds: float
    notes: Path | None = None  # a folder that gets a file for each shard begun
    deadly: int = -1  # an item that kills its worker
    wrong: int = -1  # an item that raises
    reads: tuple[Path, ...] = ()

    def run(self, device: str, part: Path, link: Link) -> None:
        for items in link.chunks(0):
            if self.notes is not None:
                (self.notes / f"{items[0]}.{os.getpid()}").touch()
            time.sleep(self.seconds)
            if self.deadly in items:
                os.kill(os.getpid(), signal.SIGKILL)
            if self.wrong in items:
                raise ImageError(f"item {self.wrong} is wrong")
            read = "".join(path.read_text() for path in self.reads)
            part.write_text("".join(f"{item}{read}\n" for item in items))
            logging.getLogger("sfmprep.tests").warning("did %d", items[0])
            link.note({str(items[0]): device})

    def files(self, items: Sequence[Any]) -> tuple[Path, ...]:
        return self.reads

    def below(self, folder: Path) -> Sleeping:
        moved = tuple(below(folder, path) for path in self.reads)
        return Sleeping(self.seconds, self.notes, self.deadly, self.wrong, moved)


def do(nodes: RayNodes, job: Sleeping, total: int, parts: Path, **more: Any) -> Any:
    return RayCluster(address=nodes.address).run(
        job,
        lambda _: range(total),
        total,
        parts,
        desc="sleep",
        progress=more.get("progress", silent),
    )


def items_in(parts: Path) -> list[int]:
    """What parts hold, in order; each item once."""
    return sorted(
        int(line) for part in parts.glob("*.txt") for line in part.read_text().split()
    )


def next_begun(begun: Path) -> tuple[int, int]:
    """First item and process of the next shard that is begun; that is in its middle."""
    before = {*begun.iterdir()}
    while not (new := {*begun.iterdir()} - before):
        time.sleep(0.02)
    first, _, pid = new.pop().name.partition(".")
    return int(first), int(pid)


@pytest.fixture(scope="module")
def nodes() -> Iterator[RayNodes]:
    with ray_nodes() as started:
        started.add()
        started.add()
        yield started


@pytest.fixture
def parts(tmp_path: Path) -> Path:
    folder = tmp_path / "parts"
    folder.mkdir()
    return folder


# ---------------------------------------------------------------------- nothing dies
def test_a_cluster_leaves_the_stores_of_one_process(
    nodes: RayNodes, demo_scene: Path, tmp_path: Path
) -> None:
    images = ImageSet.scan(demo_scene / "images")
    pairs = exhaustive_pairs(images.names)
    with (
        FeatureStore(tmp_path / "f1.h5", MADE) as features,
        MatchStore(tmp_path / "m1.h5", MADE) as matches,
    ):
        extract_features(images, Sift(SIFT), features, max_size=SIFT.max_size)
        match_features(pairs, features, Nearest(NearestConfig()), matches)
    cluster = RayCluster(address=nodes.address)
    assert not extract_in_shards(
        *(images, SIFT, tmp_path / "f2.h5", MADE), executor=cluster, engine=ENGINE
    )
    match_in_shards(
        *(pairs, tmp_path / "f2.h5", NearestConfig(), tmp_path / "m2.h5", MADE),
        executor=cluster,
        engine=ENGINE,
    )
    with (
        FeatureStore(tmp_path / "f1.h5") as one,
        FeatureStore(tmp_path / "f2.h5") as many,
    ):
        assert sorted(one.names()) == sorted(many.names())
        for name, wanted in one.items():
            expect_features(many.get(name), wanted)
    with MatchStore(tmp_path / "m1.h5") as one, MatchStore(tmp_path / "m2.h5") as many:
        assert sorted(one.pairs()) == sorted(many.pairs())
        for pair, wanted in one.items():
            expect_matches(many.get(*pair), wanted)
    assert not [*tmp_path.glob("*.parts")]


def test_what_is_logged_and_noted_on_nodes_comes_here(
    nodes: RayNodes, parts: Path, caplog: pytest.LogCaptureFixture
) -> None:
    handler = signal.getsignal(signal.SIGTERM)
    outcome = do(nodes, Sleeping(0), 20, parts)
    assert (items_in(parts), outcome.failed) == ([*range(20)], [])
    assert outcome.notes == {"0": "cpu", "8": "cpu", "16": "cpu"}
    assert outcome.summary == "3 of 3 shards are done"
    said = {r.getMessage() for r in caplog.records if r.name == "sfmprep.tests"}
    assert said == {"did 0", "did 8", "did 16"}
    assert [path.suffix for path in parts.iterdir()] == [".txt"] * 3
    assert signal.getsignal(signal.SIGTERM) == handler


def test_an_error_of_the_job_ends_it_and_what_is_done_stays(
    nodes: RayNodes, parts: Path
) -> None:
    outcome = do(nodes, Sleeping(0.3, wrong=17), 200, parts)
    [(where, error)] = outcome.failed
    assert where and isinstance(error, ImageError)
    assert str(error) == "item 17 is wrong"
    done = items_in(parts)
    assert 17 not in done
    assert 0 < len(done) < 100
    assert outcome.summary == f"{len(done) // 8} of 25 shards are done"


def test_a_whole_run_on_a_cluster_leaves_what_one_on_this_machine_leaves(
    nodes: RayNodes, demo_scene: Path, demo_result: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    recipe = str(demo_result / "recipe.yaml")
    where = ["--executor", "ray", "--address", nodes.address]
    photos = str(demo_scene / "images")
    assert run(["reconstruct", photos, str(out), "--recipe", recipe, *where]) == 0
    for kind, file in ((FeatureStore, "features.h5"), (MatchStore, "matches.h5")):
        paths = out / "work" / file, demo_result / "work" / file
        with kind(paths[0]) as many, kind(paths[1]) as one:
            assert many.provenance == one.provenance
            assert dict(many.items()).keys() == dict(one.items()).keys()
    rows = [rows_of(folder / "work/database.db") for folder in (out, demo_result)]
    assert rows[0] == rows[1]


def rows_of(path: Path) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as opened:
        return opened.execute(
            "SELECT * FROM two_view_geometries ORDER BY pair_id"
        ).fetchall()


# ------------------------------------------------------------------------- what dies
def test_a_worker_that_dies_is_replaced_and_a_deadly_shard_given_up(
    nodes: RayNodes, parts: Path, tmp_path: Path
) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    outcome = do(nodes, Sleeping(0, notes=begun, deadly=9), 16, parts)
    [(where, error)] = outcome.failed
    assert where == "shard 1"
    assert isinstance(error, DeviceError)
    assert str(error).startswith("it was lost 5 times, at last so: ")
    assert items_in(parts) == [*range(8)]
    assert len([*begun.glob("8.*")]) == 5


def test_a_preempted_worker_loses_its_shard_alone(
    nodes: RayNodes, parts: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    begun = tmp_path / "begun"
    begun.mkdir()
    killed: list[tuple[int, int]] = []

    def killing(items: Any, **_: Any) -> Any:
        for item in items:
            if not killed:
                killed.append(next_begun(begun))
                os.kill(killed[0][1], signal.SIGKILL)
            yield item

    job = Sleeping(0.5, notes=begun)
    outcome = do(nodes, job, 80, parts, progress=killing)
    assert (items_in(parts), outcome.failed) == ([*range(80)], [])
    [(first, _)] = killed
    assert len([*begun.glob(f"{first}.*")]) == 2
    assert len([*begun.iterdir()]) == 11
    assert f"shard {first // 8} is done again" in caplog.text


def test_nodes_die_one_by_one_and_one_that_comes_goes_on(parts: Path) -> None:
    with ray_nodes() as nodes:
        alive = [nodes.add() for _ in range(3)]
        seen = 0

        def killing(items: Any, **_: Any) -> Any:
            nonlocal seen
            for item in items:
                seen += 1
                if seen in (8, 40) or (seen == 72 and len(alive) == 1):
                    nodes.kill(alive.pop())
                    if not alive:
                        nodes.add()
                yield item

        outcome = do(nodes, Sleeping(0.3), 160, parts, progress=killing)
        assert alive == []
        assert (items_in(parts), outcome.failed) == ([*range(160)], [])


def test_a_lost_head_ends_the_run_and_another_cluster_goes_on(
    demo_scene: Path, tmp_path: Path
) -> None:
    from tests.executors import test_ray as itself

    parts = tmp_path / "parts"
    parts.mkdir()
    with ray_nodes() as nodes:
        nodes.add()
        seen = 0

        def killing(items: Any, **_: Any) -> Any:
            nonlocal seen
            for item in items:
                seen += 1
                if seen == 8:
                    nodes.kill_head()
                yield item

        address = nodes.address
        outcome = do(nodes, itself.Sleeping(2.0), 400, parts, progress=killing)
    [(where, error)] = outcome.failed
    assert where == address
    assert isinstance(error, DeviceError)
    assert str(error) == (
        "the head of the Ray cluster has not answered for 10 s. Start the cluster anew."
    )
    done = items_in(parts)
    assert 8 <= len(done) < 400
    with ray_nodes() as nodes:
        nodes.add()
        outcome = do(nodes, itself.Sleeping(0), 16, parts)
        assert outcome.failed == []


# ------------------------------------------------------------------ no disk in common
def test_a_node_without_our_disk_is_sent_files_and_sends_its_part(
    tmp_path: Path, parts: Path
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("0" * 3)
    before = set(Path(tempfile.gettempdir()).glob("sfmprep-ray-*"))
    with ray_nodes() as nodes:
        try:
            nodes.add_blind(tmp_path)
        except PermissionError as error:
            pytest.skip(f"no mount namespaces here: {error}")
        job = Sleeping(0, reads=(tmp_path / "a" / "b.txt",))
        outcome = do(nodes, job, 16, parts)
        assert outcome.failed == []
        assert items_in(parts) == [k * 1000 for k in range(16)]
        names = {path.name[:6] for path in parts.iterdir()}
        assert names == {"000000", "000001"}
    assert set(Path(tempfile.gettempdir()).glob("sfmprep-ray-*")) <= before


def test_machines_with_networks_of_their_own_and_one_that_is_cut_off(
    tmp_path: Path,
    parts: Path,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.txt").write_text("0" * 3)
    begun = tmp_path_factory.mktemp("begun")  # which machines see, not `tmp_path`
    with ray_nodes() as nodes:
        try:
            for _ in range(2):
                nodes.add_machine(tmp_path)
        except PermissionError as error:
            pytest.skip(f"no network namespaces here: {error}")
        cut: list[tuple[int, float]] = []

        def cutting(items: Any, **_: Any) -> Any:
            for item in items:
                if not cut:
                    first, pid = next_begun(begun)
                    nodes.cut_off(nodes.machine_of(pid))
                    cut.append((first, time.monotonic()))
                yield item

        job = Sleeping(3.0, notes=begun, reads=(tmp_path / "a" / "b.txt",))
        outcome = do(nodes, job, 48, parts, progress=cutting)
        [(first, when)] = cut
        assert time.monotonic() - when < 180  # Ray alone takes five minutes and more
        assert outcome.failed == []
        assert items_in(parts) == [k * 1000 for k in range(48)]
    assert caplog.text.count("is done again") == 1
    assert f"shard {first // 8} is done again" in caplog.text
    assert len([*begun.glob(f"{first}.*")]) == 2
    assert len([*begun.iterdir()]) == 7


def test_a_whole_run_on_machines_that_see_nothing_of_this_one(
    demo_scene: Path,
    demo_result: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    out, photos = tmp_path / "out", demo_scene / "images"
    done: list[str] = []
    run_job = RayCluster.run

    def noted(self: RayCluster, *args: Any, desc: str, **options: Any) -> Any:
        done.append(desc)
        return run_job(self, *args, desc=desc, **options)

    monkeypatch.setattr(RayCluster, "run", noted)
    with ray_nodes() as nodes:
        try:
            nodes.add_machine(tmp_path, demo_scene)
        except PermissionError as error:
            pytest.skip(f"no network namespaces here: {error}")
        where = ["--executor", "ray", "--address", nodes.address]
        recipe = ["--recipe", str(demo_result / "recipe.yaml")]
        command = ["reconstruct", str(photos), str(out), *recipe, *where]
        assert run([*command, "--set", "refinement={}"]) == 0
    assert {*done} == {"extract", "match", "verify", "refine", "export"}
    assert len(list((out / "images").iterdir())) == 8
    assert len(list((out / "images_2").iterdir())) == 8
    assert (out / "work" / "refined.zip").is_file()
    assert not list((out / "work").glob("*.parts"))


# ---------------------------------------------------------------------------- messages
def test_without_a_cluster(parts: Path) -> None:
    cluster = RayCluster(address="127.0.0.1:1")
    with pytest.raises(ConfigError) as raised:
        cluster.run(Sleeping(0), lambda _: [1], 1, parts, desc="sleep", progress=silent)
    assert str(raised.value) == (
        "--address 127.0.0.1:1: no Ray cluster can be joined there ([Errno 111]"
        " Connection refused). Start one with `ray start --head` on one machine and"
        " `ray start --address=HOST:6379` on the others; this machine has to be one of"
        " them."
    )
