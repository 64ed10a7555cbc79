"""Tracks of text inside films."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sfmprep.capture.subtitles import Subtitle, read_subtitles
from tests.support.films import Walk, add_subtitles, write_film


def film(path: Path) -> Path:
    return write_film(path, [Walk().at(k) for k in range(3)])


def test_tracks_are_read_in_order(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    assert read_subtitles(path) == []
    texts = [f"Nº {k}" for k in range(7)]
    add_subtitles(path, ["one", ""])
    add_subtitles(path, texts, chunk=3)
    first, second = read_subtitles(path)
    assert first == [Subtitle(0.0, "one"), Subtitle(1 / 30, "")]
    assert second == [Subtitle(k / 30, text) for k, text in enumerate(texts)]


def test_what_is_no_film_has_none(tmp_path: Path) -> None:
    (tmp_path / "a.mkv").write_bytes(b"no film at all")
    assert read_subtitles(tmp_path / "a.mkv") == []
    assert read_subtitles(tmp_path / "none.mp4") == []


def test_damaged_tracks_are_left_out(tmp_path: Path) -> None:
    path = film(tmp_path / "a.mp4")
    add_subtitles(path, ["one", "two", "three", "four"])
    whole = path.read_bytes()
    start = whole.rindex(b"trak")
    rng = np.random.default_rng(0)
    for _ in range(300):
        data = bytearray(whole)
        for place in rng.integers(start, len(data), 3):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        for track in read_subtitles(path):
            assert len(track) <= 4
    path.write_bytes(whole[: whole.rindex(b"mdat")] + whole[start - 8 :])
    assert all(len(track) <= 4 for track in read_subtitles(path))
