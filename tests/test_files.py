"""Small files: whole or not at all."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from sfmprep.errors import StoreError
from sfmprep.files import as_written, in_words, write_text


def test_a_full_disk_is_an_error_and_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "summary.json"
    write_text(path, "old")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError) as caught:
        write_text(path, "new")
    assert str(caught.value) == (
        f"{path} cannot be written (No space left on device). Give an output folder"
        " that you may write to, on a disk with free space."
    )
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [
        ("summary.json", "old")
    ]


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.ENOSPC, "Free some disk space"),
        (errno.ENOENT, "It is gone: put it back if it was moved"),
        (errno.EROFS, "Make its folder one that may be written to"),
        (errno.EIO, "See whether its disk is there and sound"),
    ],
)
def test_what_the_system_says_is_told_with_place_and_advice(
    number: int, advice: str
) -> None:
    error = OSError(number, os.strerror(number), "/out/a")
    said = f"/out/a: {os.strerror(number)}. {advice}, and run the same command again."
    assert in_words(error) == said


def test_content_that_is_not_as_written_is_damage(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    with pytest.raises(StoreError) as caught, as_written(path):
        {}["key"]
    assert str(caught.value) == (
        f"{path} is damaged ('key'). Delete it; the next run makes it again."
    )
