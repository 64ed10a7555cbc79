"""Small files: whole or not at all."""

from __future__ import annotations

import errno
from pathlib import Path

import pytest

from sfmprep.errors import StoreError
from sfmprep.files import write_text


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
