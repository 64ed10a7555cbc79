"""Subtitles inside a film: tracks of text in MP4 and MOV.

Their places are in the index (ISO/IEC 14496-12, 8.6 and 8.7), and each is a length of
two bytes and UTF-8 (3GPP TS 26.245, `tx3g`), as QuickTime has them too.
"""

from __future__ import annotations

import contextlib
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

from sfmprep.capture.film import read_index

_KINDS = (b"text", b"sbtl", b"subt")
_MAX_BYTES = 1 << 16  # of one subtitle
_DAMAGED = (struct.error, ValueError, IndexError, ZeroDivisionError)
_MAX_NUMBER = 1 << 22  # of a track: a day with one a frame


class Subtitle(NamedTuple):
    """What is written from a time on."""

    seconds: float
    text: str


def read_subtitles(film: Path) -> list[list[Subtitle]]:
    """The tracks of text of a film, each in order; those that are damaged are left out.

    None for a film that is no MP4 or MOV, or cannot be read.
    """
    index = read_index(film)
    if index is None:
        return []
    tracks = []
    try:
        with film.open("rb") as file:
            for kind, content in _boxes(index):
                if kind == b"trak" and _box(content, "mdia hdlr")[8:12] in _KINDS:
                    with contextlib.suppress(*_DAMAGED):
                        tracks.append(list(_track(content, file)))
    except (OSError, *_DAMAGED):
        return tracks
    return tracks


def _track(content: bytes, file: BinaryIO) -> Iterator[Subtitle]:
    media = _box(content, "mdia mdhd")
    (scale,) = struct.unpack_from(">I", media, 20 if media[0] else 12)
    table = _box(content, "mdia minf stbl")
    same, count = struct.unpack_from(">2I", _box(table, "stsz"), 4)
    if count > _MAX_NUMBER:
        raise ValueError("that many subtitles are none")
    lengths = _numbers(_box(table, "stts"), 8).reshape(-1, 2)
    ends = np.cumsum(_repeated(lengths[:, 1], lengths[:, 0], count))
    sizes = np.full(count, same) if same else _numbers(_box(table, "stsz"), 12)
    places = _places(table, sizes)
    begin = 0
    for place, size, end in zip(places, sizes, ends, strict=True):
        file.seek(int(place))
        data = file.read(min(int(size), _MAX_BYTES))
        (length,) = struct.unpack_from(">H", data)
        text = data[2 : 2 + length].decode("utf-8", "replace")
        yield Subtitle(begin / scale, text)
        begin = int(end)


def _places(table: bytes, sizes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Where in the file each sample lies."""
    large = _box(table, "co64")
    chunks = _numbers(large, 8, ">u8") if large else _numbers(_box(table, "stco"), 8)
    runs = _numbers(_box(table, "stsc"), 8).reshape(-1, 3)  # from chunk, samples in it
    ends = np.append(runs[1:, 0], len(chunks) + 1)
    in_chunk = np.repeat(runs[:, 1], ends - runs[:, 0])
    chunk = _repeated(np.arange(len(chunks)), in_chunk, len(sizes))
    before = np.cumsum(sizes) - sizes
    first = (np.cumsum(in_chunk) - in_chunk)[chunk]
    return np.asarray(chunks[chunk] + before - before[first], np.int64)


def _repeated(
    values: NDArray[np.int64], counts: NDArray[np.int64], total: int
) -> NDArray[np.int64]:
    """Each value so many times; an error where these are not so many in all."""
    if counts.sum() != total:
        raise ValueError("the tables contradict each other")
    return np.repeat(values, counts)


def _numbers(content: bytes, start: int, kind: str = ">u4") -> NDArray[np.int64]:
    """All numbers of a table from a byte on."""
    rest = content[start:]
    size = np.dtype(kind).itemsize
    return np.frombuffer(rest, kind, len(rest) // size).astype(np.int64)


def _box(content: bytes, path: str) -> bytes:
    """The content of the first box of that path; empty where there is none."""
    for name in path.split():
        found = (box for kind, box in _boxes(content) if kind == name.encode())
        content = next(found, b"")
    return content


def _boxes(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    place = 0
    while place + 8 <= len(content):
        size = int.from_bytes(content[place : place + 4])
        if size < 8:
            return
        yield content[place + 4 : place + 8], content[place + 8 : place + size]
        place += size
