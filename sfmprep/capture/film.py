"""Films: their frames one after the other, upright and with their times.

OpenCV decodes them, whose wheels bring an FFmpeg under the LGPL. It turns frames as the
film's rotation says, and colours of 10 bits become 8. Since 4.13 colours follow the
film's tags; what earlier versions do, as nerfstudio pins one, is made good here, but
for the tones of HDR.
"""

from __future__ import annotations

import math
import shlex
import struct
from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from sfmprep.errors import ImageError
from sfmprep.threads import thread_pool

_MP4_FIRST = (b"ftyp", b"moov", b"mdat", b"wide", b"free", b"skip")
_MAX_INDEX_BYTES = 1 << 26
# Transfer characteristics by which a film holds more light than 8 bits show:
# Recommendation ITU-T H.273, table 3
_HDR = {16: "PQ", 18: "HLG"}
# Shares of red and blue in the luma, by matrix coefficients: H.273, table 4
_LUMA = {1: (0.2126, 0.0722), 9: (0.2627, 0.0593)}
_LUMA_OF_SD = (0.299, 0.114)
# Measured with 4.10, 4.12, 4.13 and 5.0: until then each film is decoded as SD is, and
# HDR as if it were none; from then on HDR becomes sRGB up to the light of white paper.
_FOLLOWS_TAGS = (4, 13)
_FALLBACK_RATE = 30.0  # frames a second, where a film has no times of its own


@dataclass(frozen=True, eq=False)
class Frame:
    """One decoded frame."""

    number: int  # of the frames that could be decoded, from 0
    seconds: float  # from the start of the film, always more than the one before
    pixels: NDArray[np.uint8]  # [H, W, 3] BGR, upright; [0, 0, 3] if passed over


@dataclass(frozen=True, kw_only=True)
class FilmHeader:
    """What a film says of itself; it may be wrong."""

    num_frames: int  # 0 where it is not said
    seconds: float  # 0 where it is not said


def read_header(path: Path) -> FilmHeader:
    """How long a film says that it is.

    Raises:
        ImageError: there is no film that can be decoded. The message is the bare
            reason: it does not name the file.
    """
    import cv2

    capture = _open(path)
    try:
        count, rate = (
            capture.get(key) for key in (cv2.CAP_PROP_FRAME_COUNT, cv2.CAP_PROP_FPS)
        )
    finally:
        capture.release()
    count = max(count, 0) if math.isfinite(count) else 0
    return FilmHeader(num_frames=int(count), seconds=count / rate if rate > 0 else 0)


def read_frames(
    path: Path, passes_over: Callable[[int], bool] = lambda number: False
) -> Generator[Frame]:
    """Decodes all frames in order, one ahead of the consumer and no more.

    The times are those of the film, whatever its frame rate does. A film that breaks
    off yields the frames before that.

    Args:
        path: The film.
        passes_over: Whether nobody needs the picture of a frame, by its number: half of
            the time that a frame takes is spent on its colours. It is asked before the
            frame before that one is yielded.

    Raises:
        ImageError: as `read_header`, or not one frame can be decoded.
    """
    import cv2

    capture = _open(path)
    rate = capture.get(cv2.CAP_PROP_FPS)
    step = 1 / (rate if 0 < rate < 1000 else _FALLBACK_RATE)
    corrected = correction(colours_of(path))

    def read_one(is_passed: bool) -> tuple[NDArray[np.uint8] | None, float]:
        is_there = capture.grab()
        seconds = capture.get(cv2.CAP_PROP_POS_MSEC) / 1000
        pixels = np.empty((0, 0, 3), np.uint8)
        if is_there and not is_passed:
            is_there, pixels = capture.retrieve()
            if is_there and corrected is not None:
                pixels = cv2.transform(pixels, corrected).astype(np.uint8)
        return (np.asarray(pixels, np.uint8) if is_there else None), seconds

    number, last = 0, -step
    try:
        with thread_pool(1, "sfmprep-film") as pool:
            task = pool.submit(read_one, passes_over(0))
            while True:
                pixels, seconds = task.result()
                if pixels is None:
                    break
                task = pool.submit(read_one, passes_over(number + 1))
                if not math.isfinite(seconds) or seconds <= last:
                    seconds = last + step  # of films that have no times, or wrong ones
                yield Frame(number, seconds, pixels)
                number, last = number + 1, seconds
    finally:
        capture.release()
    if number == 0:
        raise ImageError("not one frame of it can be decoded; copy the film again")


def _open(path: Path) -> Any:
    import cv2

    if reason := _why_not(path):
        raise ImageError(reason)
    # by name, so that no `%d` in it makes OpenCV look for numbered pictures
    capture = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG)
    if not capture.isOpened():
        converted = shlex.quote(path.stem + "-new.mp4")
        raise ImageError(
            "it is no film that can be decoded: sound alone, damaged, or of a rare"
            f" kind. Convert it, for example: ffmpeg -i {shlex.quote(str(path))}"
            f" {converted}"
        )
    return capture


def _why_not(path: Path) -> str | None:
    """What is wrong with an MP4 or MOV file, of which its boxes tell; None if nothing.

    Their format: ISO/IEC 14496-12.
    """
    try:
        with path.open("rb") as file:
            head = file.read(8)
            if not head:
                return "the file is empty; copy it again"
            if head[4:8] not in _MP4_FIRST:
                return None
            index = _find_index(file)
    except OSError as error:
        return f"the file cannot be read: {error.strerror}"
    if index is None:
        return (
            "its index (moov) is missing: the recording or the copy was not finished."
            " Copy it from the camera again, or play it there once, which repairs it"
        )
    if b"vide" not in index and b"soun" in index:
        return "it holds sound but no picture; give the film itself"
    return None


def read_index(path: Path) -> bytes | None:
    """The box `moov` of an MP4 or MOV file; None where it has none or is another."""
    try:
        with path.open("rb") as file:
            return _find_index(file) if file.read(8)[4:8] in _MP4_FIRST else None
    except OSError:
        return None  # whoever decodes it says what is wrong


@dataclass(frozen=True, kw_only=True)
class Colours:
    """What a film says of its colours, by the numbers of H.273."""

    transfer: int
    matrix: int

    @property
    def hdr(self) -> str | None:
        """`PQ` or `HLG` where it is HDR."""
        return _HDR.get(self.transfer)


def colours_of(path: Path) -> Colours | None:
    """What an MP4 or MOV film says of its colours; None where it says nothing.

    By the box `colr` of its pictures: ISO/IEC 14496-12, and QuickTime's `nclc`.
    """
    index = read_index(path) or b""
    for head in (b"colrnclx", b"colrnclc"):
        # primaries, transfer and matrix follow, two bytes each
        if (place := index.find(head)) >= 0:
            start = place + len(head)
            numbers = struct.unpack(">3H", index[start : start + 6].ljust(6, b"\0"))
            return Colours(transfer=numbers[1], matrix=numbers[2])
    return None


def follows_tags() -> bool:
    """Whether OpenCV decodes colours as a film says that they are."""
    import cv2

    return tuple(map(int, cv2.__version__.split(".")[:2])) >= _FOLLOWS_TAGS


def correction(colours: Colours | None) -> NDArray[np.float64] | None:
    """What BGR that was decoded as of SD is to be multiplied by, [3, 3]; None for 1."""
    if colours is None or colours.matrix not in _LUMA or follows_tags():
        return None
    return np.linalg.inv(_ycc_from_bgr(*_LUMA[colours.matrix])) @ _ycc_from_bgr(
        *_LUMA_OF_SD
    )


def _ycc_from_bgr(red: float, blue: float) -> NDArray[np.float64]:
    luma = np.array([blue, 1 - red - blue, red])
    of_blue = (np.array([1, 0, 0]) - luma) / (2 * (1 - blue))
    of_red = (np.array([0, 0, 1]) - luma) / (2 * (1 - red))
    return np.stack([luma, of_blue, of_red])


def _find_index(file: BinaryIO) -> bytes | None:
    """The content of the box `moov` of an MP4 file; None where there is none."""
    place = 0
    while True:
        file.seek(place)
        head = file.read(16)
        if len(head) < 8:
            return None
        size, length = int.from_bytes(head[:4]), 8  # of the box and of its head
        if size == 1:
            size, length = int.from_bytes(head[8:16]), 16
        if head[4:8] == b"moov":
            file.seek(place + length)
            most = max(size - length, 0) if size else _MAX_INDEX_BYTES
            return file.read(min(most, _MAX_INDEX_BYTES))
        if size < 8:  # 0: to the end of the file
            return None
        place += size
