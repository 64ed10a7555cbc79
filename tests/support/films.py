"""Small films with known content, times and rotation."""

from __future__ import annotations

import struct
from collections.abc import Iterable, Sequence
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sfmprep.capture.film import Frame

Pixels = NDArray[np.uint8]
SIZE = (160, 120)


def texture(width: int, height: int, seed: int = 0) -> Pixels:
    """Random detail at three scales, [H, W, 3]."""
    rng = np.random.default_rng(seed)
    layers = [
        cv2.resize(
            rng.integers(0, 256, (-(-height // n), -(-width // n), 3), np.uint8),
            (width, height),
            interpolation=cv2.INTER_CUBIC,
        ).astype(np.float32)
        for n in (3, 8, 24)
    ]
    mixed = 0.3 * layers[0] + 0.3 * layers[1] + 0.4 * layers[2]
    return np.clip(mixed, 0, 255).astype(np.uint8)


class Walk:
    """What a camera sees that moves sideways past a wall and columns before it.

    A step of 1 moves the wall by one pixel, and the columns by two.
    """

    def __init__(self, seed: int = 0, size: tuple[int, int] = SIZE) -> None:
        self.size = size
        self._wall = texture(2400, size[1], seed)
        self._columns = texture(4800, size[1], seed + 1)
        self._is_column = (np.arange(4800) // 20) % 4 == 0

    def at(self, x: float, blur: float = 0, gain: float = 1) -> Pixels:
        """The frame at x, 0..2000; `blur` pixels of motion, `gain` of exposure."""
        width, height = self.size

        def window(layer: Pixels, start: float) -> Pixels:
            shift = np.float32([[1, 0, -start], [0, 1, 0]])
            return cv2.warpAffine(layer, shift, (width, height))

        wall, columns = window(self._wall, x), window(self._columns, 2 * x)
        mask = np.repeat(self._is_column[None, :, None], height, 0).astype(np.uint8)
        near = window(np.ascontiguousarray(mask[..., 0]), 2 * x) > 0
        seen = np.where(near[..., None], columns, wall).astype(np.float32)
        if blur:
            seen = cv2.blur(seen, (max(round(blur), 1), 1))
        return np.clip(seen * gain, 0, 255).astype(np.uint8)


def as_frames(pictures: Iterable[Pixels], rate: float = 30) -> list[Frame]:
    """Frames as they come from a film."""
    return [Frame(k, k / rate, pixels) for k, pixels in enumerate(pictures)]


def write_film(
    path: Path,
    pictures: Sequence[Pixels],
    *,
    rate: float = 30,
    quarter_turns: int = 0,
    durations: Sequence[float] | None = None,
) -> Path:
    """Writes an MP4 of MPEG-4 frames, [H, W, 3] BGR each.

    Args:
        path: The file; its folder is made.
        pictures: The frames as stored.
        rate: Frames a second.
        quarter_turns: Clockwise, by which a player turns them.
        durations: Of each frame, in units of 1 / `rate`; their mean is 1.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width = pictures[0].shape[:2]
    code = cv2.VideoWriter.fourcc(*"mp4v")
    writer = cv2.VideoWriter(str(path), cv2.CAP_FFMPEG, code, rate, (width, height))
    assert writer.isOpened()
    for pixels in pictures:
        writer.write(pixels)
    writer.release()
    data = path.read_bytes()
    if quarter_turns:
        data = _turned(data, quarter_turns, width, height)
    if durations is not None:
        data = _timed(data, durations)
    path.write_bytes(data)
    return path


def _turned(data: bytes, quarter_turns: int, width: int, height: int) -> bytes:
    """Sets the matrix of the track header (ISO/IEC 14496-12, 8.3.2)."""
    one = 1 << 16
    a, b, x, y = {
        1: (0, one, height, 0),
        2: (-one, 0, width, height),
        3: (0, -one, 0, width),
    }[quarter_turns]
    matrix = struct.pack(">9i", a, b, 0, -b, a, 0, x * one, y * one, 1 << 30)
    start = data.index(b"tkhd") + 44
    return data[:start] + matrix + data[start + 36 :]


def _timed(data: bytes, durations: Sequence[float]) -> bytes:
    """Sets the duration of each frame (8.6.1.2); the index lies behind the frames."""
    start = data.index(b"stts")
    (old_size,) = struct.unpack(">I", data[start - 4 : start])
    (unit,) = struct.unpack(">I", data[start + 16 : start + 20])
    entries = b"".join(struct.pack(">II", 1, round(unit * d)) for d in durations)
    box = b"stts" + struct.pack(">II", 0, len(durations)) + entries
    grown = len(box) + 4 - old_size
    out = bytearray(data)
    for name in (b"moov", b"trak", b"mdia", b"minf", b"stbl"):
        place = data.rindex(name, 0, start) - 4
        (size,) = struct.unpack(">I", data[place : place + 4])
        out[place : place + 4] = struct.pack(">I", size + grown)
    head = struct.pack(">I", len(box) + 4)
    return bytes(out[: start - 4]) + head + box + bytes(out[start - 4 + old_size :])


def sound_only() -> bytes:
    """The skeleton of an MP4 file with sound and no picture."""

    def box(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content) + 8) + name + content

    handler = box(b"hdlr", bytes(8) + b"soun" + bytes(13))
    index = box(b"moov", box(b"trak", box(b"mdia", handler)))
    return box(b"ftyp", b"isom\0\0\2\0isomiso2") + index


def add_subtitles(path: Path, texts: Sequence[str], *, chunk: int = 3) -> None:
    """Adds a track of text to a film of `write_film`, a text for each 1/30 s.

    Args:
        path: The film.
        texts: Of any characters.
        chunk: How many lie one behind the other, before bytes of nothing.
    """

    def box(kind: bytes, *content: bytes) -> bytes:
        joined = b"".join(content)
        return struct.pack(">I", 8 + len(joined)) + kind + joined

    def table(kind: bytes, *numbers: int) -> bytes:
        return box(kind, struct.pack(f">{1 + len(numbers)}I", 0, *numbers))

    data = path.read_bytes()
    samples = [struct.pack(">H", len(t.encode())) + t.encode() for t in texts]
    places, written = list[int](), b""
    for first in range(0, len(samples), chunk):
        places.append(len(data) + 8 + len(written))
        written += b"".join(samples[first : first + chunk]) + bytes(5)
    runs = [1, min(chunk, len(samples)), 1]
    if (rest := len(samples) % chunk) and len(places) > 1:
        runs += [len(places), rest, 1]
    stbl = box(
        b"stbl",
        table(b"stts", 1, len(samples), 1),
        table(b"stsc", len(runs) // 3, *runs),
        table(b"stsz", 0, len(samples), *map(len, samples)),
        table(b"stco", len(places), *places),
    )
    handler = box(b"hdlr", bytes(8), b"sbtl", bytes(13))
    header = table(b"mdhd", 0, 0, 30, len(samples), 0)
    track = box(b"trak", box(b"mdia", header, handler, box(b"minf", stbl)))
    start = data.index(b"moov") - 4
    (size,) = struct.unpack(">I", data[start : start + 4])
    moov = box(b"moov", data[start + 8 : start + size], track)
    # where the index was is nothing now, and its place in the file stays
    gone = data[:start] + struct.pack(">I", size) + b"free" + data[start + 8 :]
    path.write_bytes(gone + box(b"mdat", written) + moov)


def repeat_film(path: Path, times: int) -> None:
    """Makes a film of `write_film` so many times as long, without more frames in it.

    Its index names each frame again and again (ISO/IEC 14496-12, 8.5 to 8.7), so hours
    take no more of the disk than seconds. It can be read from its beginning alone.
    """
    data = path.read_bytes()
    start = data.index(b"moov") - 4  # behind the frames, whose places stay
    path.write_bytes(data[:start] + _repeated(data[start:], times))


def _repeated(data: bytes, times: int) -> bytes:
    """Boxes one behind the other, their tables and durations repeated."""
    boxes = dict[bytes, bytes]()
    while data:
        (size,) = struct.unpack(">I", data[:4])
        boxes[data[4:8]], data = data[8:size], data[size:]
    if b"stsz" in boxes:  # a chunk for each frame: they lie one behind the other
        (place,) = struct.unpack(">I", boxes[b"stco"][8:12])
        sizes = np.frombuffer(boxes[b"stsz"][12:], ">u4")
        places = np.tile(place + np.cumsum(sizes) - sizes, times)
        boxes[b"stsz"] = struct.pack(">3I", 0, 0, len(places)) + sizes.tobytes() * times
        boxes[b"stco"] = struct.pack(">2I", 0, len(places))
        boxes[b"stco"] += places.astype(">u4").tobytes()
        boxes[b"stsc"] = struct.pack(">5I", 0, 1, 1, 1, 1)
        count, entries = struct.unpack(">I", boxes[b"stts"][4:8])[0], boxes[b"stts"][8:]
        boxes[b"stts"] = struct.pack(">2I", 0, count * times) + entries * times
        boxes.pop(b"stss", None)
    for kind, start in ((b"mvhd", 16), (b"tkhd", 20), (b"mdhd", 16), (b"elst", 8)):
        if kind in boxes:
            content = boxes[kind]
            (length,) = struct.unpack(">I", content[start : start + 4])
            longer = struct.pack(">I", length * times)
            boxes[kind] = content[:start] + longer + content[start + 4 :]
    for kind in (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"edts"):
        if kind in boxes:
            boxes[kind] = _repeated(boxes[kind], times)
    return b"".join(
        struct.pack(">I", 8 + len(content)) + kind + content
        for kind, content in boxes.items()
    )
