"""A shard finds its files, or says what is missing, and leaves its part."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest

from sfmprep import __version__
from sfmprep.errors import ImageError
from sfmprep.executors.protocol import Link
from sfmprep.executors.shard import clear_cache, do_shard
from sfmprep.files import below
from tests.support.shards_here import do_again, elsewhere, order_for


@dataclass(frozen=True)
class Reading:
    """A job that writes what it reads, once an item."""

    chunks_a_device: ClassVar[int] = 1
    suffix: ClassVar[str] = ".txt"
    has_network: ClassVar[bool] = False
    reads: tuple[Path, ...]
    fails: Exception | None = None

    def run(self, device: str, part: Path, link: Link) -> None:
        logging.getLogger("sfmprep.tests").warning("on %s", device)
        if self.fails is not None:
            raise self.fails
        text = "".join(path.read_text() for path in self.reads)
        for items in link.chunks(0):
            link.note({str(item): text for item in items})
            if text:
                part.write_text(text * len([*link.progress(items)]))

    def files(self, items: Sequence[Any]) -> tuple[Path, ...]:
        return self.reads

    def below(self, folder: Path) -> Reading:
        return Reading(tuple(below(folder, path) for path in self.reads), self.fails)


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Reading:
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "node"))
    (tmp_path / "node").mkdir()
    (tmp_path / "a").write_text("a")
    (tmp_path / "b").write_text("b")
    (tmp_path / "parts").mkdir()
    return Reading((tmp_path / "a", tmp_path / "b"))


def test_a_node_that_sees_the_folder_puts_its_part_there(
    job: Reading, tmp_path: Path
) -> None:
    (tmp_path / "parts/.seen-test").touch()
    answer = do_again(job, order_for(job, [1, 2], tmp_path / "parts", "0.txt"), {})
    assert (answer.content, answer.error, answer.missing) == (None, None, [])
    assert answer.notes == {"1": "ab", "2": "ab"}
    assert [record.getMessage() for record in answer.records] == ["on cpu"]
    found = sorted(path.name for path in (tmp_path / "parts").iterdir())
    assert found == [".seen-test", "0.txt"]
    assert (tmp_path / "parts/0.txt").read_text() == "abab"


def test_a_node_that_sees_nothing_asks_and_sends_its_part(
    job: Reading, tmp_path: Path
) -> None:
    order = elsewhere(order_for(job, [1], tmp_path / "gone", "0.txt"))
    asked = do_again(job, order, {})
    assert (asked.missing, asked.content) == ([*job.reads], None)
    sent = {path: [path.read_bytes().upper(), b"!"] for path in job.reads}
    assert do_again(job, order, sent).content == b"A!B!"
    assert do_again(job, order, {}).content == b"A!B!"  # it keeps them
    clear_cache(order.cache)
    assert do_again(job, order, {}).missing == [*job.reads]
    assert [*(tmp_path / "node").iterdir()] == []


def test_a_node_that_sees_some_is_sent_the_others(job: Reading, tmp_path: Path) -> None:
    order = order_for(job, [1], tmp_path / "gone", "0.txt")
    a, b = job.reads
    order = replace(order, files={**order.files, b: elsewhere(order).files[b]})
    assert do_again(job, order, {}).missing == [b]
    assert do_again(job, order, {b: [b"new"]}).content == b"anew"


def test_what_a_job_raises_comes_back(job: Reading, tmp_path: Path) -> None:
    order = order_for(job, [1], tmp_path / "parts", "0.txt")
    error = do_again(replace(job, fails=ImageError("no image")), order, {}).error
    assert isinstance(error, ImageError) and str(error) == "no image"
    error = do_again(replace(job, fails=ZeroDivisionError("by 0")), order, {}).error
    assert isinstance(error, RuntimeError)
    assert str(error).endswith("ZeroDivisionError: by 0\n")


def test_a_job_that_leaves_nothing_is_refused(job: Reading, tmp_path: Path) -> None:
    order = order_for(job, [1], tmp_path / "parts", "0.txt")
    error = do_shard(Reading(()), order, {}).error
    assert str(error) == "a job left no 0.txt, but expected its part there"


def test_another_version_is_refused(job: Reading, tmp_path: Path) -> None:
    order = order_for(job, [1], tmp_path / "parts", "0.txt")
    answer = do_again(job, replace(order, version="9.9"), {})
    assert str(answer.error) == (
        f"it has sfmprep {__version__}, but expected 9.9, as where the run was started."
        " Install the same on every node."
    )
