"""Photographs and masks are known by their content, wherever and whenever they lie."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from sfmprep.capture import identity
from sfmprep.capture.identity import (
    FileDigest,
    content_sha256,
    masks_sha256,
    masks_signature,
    signature,
)
from sfmprep.capture.image_set import ImageSet
from sfmprep.errors import ImageError

LONG_AGO_NS = 1_600_000_000_000_000_000


def write(path: Path, level: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((6, 8), level, np.uint8)).save(path, format="BMP")
    os.utime(path, ns=(LONG_AGO_NS, LONG_AGO_NS))
    return path


@pytest.fixture
def photographs(tmp_path: Path) -> Path:
    root = tmp_path / "photographs"
    write(root / "a.bmp", 10)
    write(root / "b" / "a.bmp", 20)
    return root


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the files whose bytes are read."""
    read: list[str] = []
    genuine = hashlib.file_digest

    def noted(file, digest):
        read.append(Path(file.name).name)
        return genuine(file, digest)

    monkeypatch.setattr(identity.hashlib, "file_digest", noted)
    return read


def test_digest_is_that_of_the_bytes(photographs: Path) -> None:
    images = ImageSet.scan(photographs)
    assert content_sha256(images) == {
        name: FileDigest(
            (photographs / name).stat().st_size,
            LONG_AGO_NS,
            (photographs / name).stat().st_ctime_ns,
            hashlib.sha256((photographs / name).read_bytes()).hexdigest(),
        )
        for name in ("a.bmp", "b/a.bmp")
    }


def test_untouched_files_are_not_read_again(
    photographs: Path, hashed: list[str]
) -> None:
    images = ImageSet.scan(photographs)
    first = content_sha256(images)
    stored = json.loads(json.dumps(first))
    known = {name: FileDigest.from_json(row) for name, row in stored.items()}
    hashed.clear()
    assert content_sha256(images, known) == first
    assert hashed == []


def test_what_an_earlier_version_noted_is_read_again(
    photographs: Path, hashed: list[str]
) -> None:
    images = ImageSet.scan(photographs)
    first = content_sha256(images)
    size, modified, _, sha256 = first["a.bmp"]
    known = {**first, "a.bmp": FileDigest.from_json([size, modified, sha256])}
    assert known["a.bmp"] == FileDigest(-1, -1, -1, sha256)
    hashed.clear()
    assert content_sha256(images, known) == first
    assert hashed == ["a.bmp"]


@pytest.mark.parametrize("row", [[], 3, None, [1, 2, 3, "ab"], [1, "b", 3, 64 * "0"]])
def test_what_is_no_digest_is_refused(row: Any) -> None:
    with pytest.raises((ValueError, TypeError)):
        FileDigest.from_json(row)


@pytest.mark.parametrize("later", [LONG_AGO_NS, LONG_AGO_NS + 1])
def test_file_replaced_by_one_of_equal_size_is_another(
    photographs: Path, hashed: list[str], later: int
) -> None:
    images = ImageSet.scan(photographs)
    first = content_sha256(images)
    write(photographs / "a.bmp", 30)
    os.utime(photographs / "a.bmp", ns=(later, later))
    hashed.clear()
    second = content_sha256(images, first)
    assert hashed == ["a.bmp"]
    assert second["a.bmp"].num_bytes == first["a.bmp"].num_bytes
    assert second["a.bmp"].sha256 != first["a.bmp"].sha256
    assert second["b/a.bmp"] == first["b/a.bmp"]
    assert signature(second) != signature(first)


def test_copied_folder_with_new_times_is_equal(
    photographs: Path, tmp_path: Path, hashed: list[str]
) -> None:
    first = content_sha256(ImageSet.scan(photographs))
    copy = shutil.copytree(photographs, tmp_path / "copy", copy_function=shutil.copy)
    hashed.clear()
    second = content_sha256(ImageSet.scan(copy), first)
    assert len(hashed) == 2
    assert signature(second) == signature(first)


def test_file_that_is_still_new_is_read_again(
    photographs: Path, hashed: list[str]
) -> None:
    """Two changes within one tick of the clock have the same time."""
    now = time.time_ns()
    os.utime(photographs / "a.bmp", ns=(now, now))
    images = ImageSet.scan(photographs)
    first = content_sha256(images)
    assert first["a.bmp"].mtime_ns == -1
    hashed.clear()
    assert content_sha256(images, first)["a.bmp"].sha256 == first["a.bmp"].sha256
    assert hashed == ["a.bmp"]


def test_renamed_photographs_are_others(photographs: Path) -> None:
    first = signature(content_sha256(ImageSet.scan(photographs)))
    (photographs / "a.bmp").rename(photographs / "c.bmp")
    assert signature(content_sha256(ImageSet.scan(photographs))) != first


def test_signature_does_not_depend_on_the_order() -> None:
    one, two = FileDigest(1, 2, 5, "aa"), FileDigest(3, 4, 6, "bb")
    assert signature({"a": one, "b": two}) == signature({"b": two, "a": one})
    assert signature({}) == hashlib.sha256(b"[]").hexdigest()


def test_missing_file_is_named(photographs: Path) -> None:
    images = ImageSet.scan(photographs)
    (photographs / "a.bmp").unlink()
    with pytest.raises(ImageError) as caught:
        content_sha256(images)
    assert str(caught.value) == (
        f"{photographs}/a.bmp: the file cannot be read: No such file or directory"
    )


def test_masks_are_known_by_content(photographs: Path, tmp_path: Path) -> None:
    masks = tmp_path / "masks"
    path = write(masks / "b" / "a.png", 255)
    first = masks_signature(ImageSet.scan(photographs, mask_root=masks))
    digests = masks_sha256(ImageSet.scan(photographs, mask_root=masks))
    assert list(digests) == ["b/a.bmp"]
    assert first == signature(digests)

    moved = shutil.copytree(masks, tmp_path / "moved", copy_function=shutil.copy)
    assert masks_signature(ImageSet.scan(photographs, mask_root=moved)) == first

    write(path, 0)  # the same size and time
    assert masks_signature(ImageSet.scan(photographs, mask_root=masks)) != first


def test_masks_without_a_folder_have_no_signature(photographs: Path) -> None:
    images = ImageSet.scan(photographs)
    assert masks_signature(images) is None
    assert masks_sha256(images) == {}
