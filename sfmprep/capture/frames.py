"""A film becomes photographs: chosen frames, each written once."""

from __future__ import annotations

import shutil
from collections import deque
from concurrent.futures import Future
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from sfmprep.capture.developed import Film
from sfmprep.capture.film import (
    Frame,
    colours_of,
    follows_tags,
    read_frames,
    read_header,
)
from sfmprep.capture.flight import Flight, read_flight, read_flight_inside
from sfmprep.capture.keyframes import (
    Chooser,
    Keyframe,
    choose,
    find_blurred,
    thin_out,
)
from sfmprep.capture.motion import Flow
from sfmprep.capture.place_tags import place_tags
from sfmprep.errors import ImageError
from sfmprep.files import not_written
from sfmprep.progress import Progress, silent
from sfmprep.threads import thread_pool

_QUALITY = 97
_MAX_WAITING = 2  # frames that wait to be written
_TURNED = 0.2  # share of points with parallax, below which a turn explains the step
_SLACK = 0.05  # of the length that a film says, which is often rounded
_MAX_CURVE = 400


def take_frames(
    path: Path,
    name: str,
    folder: Path,
    place: str,
    *,
    flow: Flow,
    max_overlap: float,
    most: int | None,
    subtitles: Path | None = None,
    progress: Progress = silent,
) -> Film:
    """Writes the frames of a film that are worth it as `folder/place/00h00m12s345.jpg`.

    The film is decoded once; two or three of its frames are in memory at a time. A
    folder that is there is replaced.

    Args:
        path: The film.
        name: What it is called.
        folder: Where photographs go.
        place: The folder below that, POSIX, of this film.
        flow: Optical flow, which tells how far the picture has moved.
        max_overlap: Share of the picture, below 1, that two frames that are taken one
            after the other have in common.
        most: How many frames may stay, or None.
        subtitles: Of a drone, whose positions the frames get; None for those inside
            the film, if it has some. Those that cannot be read are noted in the film.
        progress: Wraps the loop over frames.

    Raises:
        ImageError: it cannot be decoded; the message is the bare reason.
        StoreError: the frames cannot be written.
        DeviceError: the flow does not fit into the memory of the device.
    """
    header, colours = read_header(path), colours_of(path)
    flight, fault = _flight(path, subtitles)
    located: set[str] = set()
    part = folder / f"{place}.part"
    chooser, taken = Chooser(max_overlap, flow), list[Keyframe]()
    last = Frame(-1, 0.0, np.empty((0, 0, 3), np.uint8))
    try:
        shutil.rmtree(part, ignore_errors=True)
        part.mkdir(parents=True)
        with thread_pool(1, "sfmprep-frames") as pool:
            waiting: deque[Future[None]] = deque()
            frames = progress(
                read_frames(path, chooser.passes_over),
                desc=f"frames of {name}",
                total=header.num_frames or None,
            )

            def noted(frame: Frame) -> Frame:
                nonlocal last
                last = frame
                return frame

            for keyframe in choose(map(noted, frames), chooser):
                frame = keyframe.frame
                file = part / frame_name(frame.seconds)
                fix = flight and flight.at(
                    frame.number, frame.seconds, header.num_frames
                )
                tags = place_tags(fix) if fix else b""
                if fix:
                    located.add(file.name)
                waiting.append(pool.submit(_write, file, frame.pixels, tags))
                taken.append(keyframe.without_pixels())
                while len(waiting) > _MAX_WAITING:
                    waiting.popleft().result()
            for task in waiting:
                task.result()
        needed = [
            k
            for k, keyframe in enumerate(taken)
            if keyframe.frame.number not in chooser.spared
        ]
        taken = _only(taken, needed)
        kept = _thinned(taken, most)
        left = {frame_name(keyframe.frame.seconds) for keyframe in kept}
        for file in part.iterdir():
            if file.name not in left:
                file.unlink()
        shutil.rmtree(folder / place, ignore_errors=True)
        part.replace(folder / place)
    except OSError as error:
        raise not_written(folder / place, error) from error
    is_blurred = zip(chooser.looks, find_blurred(chooser.looks), strict=True)
    blurred = {look.number for look, yes in is_blurred if yes}
    missing = header.seconds - last.seconds
    is_lost = header.num_frames and missing > max(1.0, _SLACK * header.seconds)
    return Film(
        name=name,
        seconds=last.seconds,
        lost_seconds=missing if is_lost else 0.0,
        num_frames=last.number + 1,
        frames=tuple(f"{place}/{frame_name(k.frame.seconds)}" for k in kept),
        times=tuple(keyframe.frame.seconds for keyframe in kept),
        segments=tuple(keyframe.look.segment for keyframe in kept),
        num_blurred=len(blurred),
        num_blurred_used=sum(keyframe.frame.number in blurred for keyframe in kept),
        num_thinned=len(taken) - len(kept),
        most_new=max((keyframe.moved for keyframe in kept), default=0.0),
        share_turned=_share_turned(taken),
        curve=_curve(chooser),
        subtitles=subtitles.name if subtitles else (flight.name if flight else None),
        num_located=len(located & left),
        subtitles_fault=fault,
        hdr=colours.hdr if colours else None,
        is_flat=bool(colours and colours.hdr) and not follows_tags(),
    )


def frame_name(seconds: float) -> str:
    """The file of a frame, which sorts by time: `00h00m12s345.jpg`."""
    thousandths = round(seconds * 1000)
    minutes, rest = divmod(thousandths, 60_000)
    hours, minutes = divmod(minutes, 60)
    return f"{hours:02}h{minutes:02}m{rest // 1000:02}s{rest % 1000:03}.jpg"


def _flight(film: Path, subtitles: Path | None) -> tuple[Flight | None, str | None]:
    """The positions of a drone, or why those beside the film are of no use."""
    if subtitles is None:
        return read_flight_inside(film), None
    try:
        return read_flight(subtitles), None
    except ImageError as error:
        return None, str(error)


def _write(path: Path, pixels: NDArray[np.uint8], tags: bytes) -> None:
    _, encoded = cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    data = encoded.tobytes()
    path.write_bytes(data[:2] + tags + data[2:])


def _thinned(taken: list[Keyframe], most: int | None) -> list[Keyframe]:
    """The keyframes that stay."""
    if most is None or len(taken) <= most:
        return taken
    kept = thin_out(
        [keyframe.moved for keyframe in taken],
        [keyframe.look.sharpness for keyframe in taken],
        [keyframe.look.segment for keyframe in taken],
        most,
    )
    return _only(taken, kept)


def _only(taken: list[Keyframe], kept: list[int]) -> list[Keyframe]:
    """Some of the keyframes, each with what is new since the one before it."""
    starts = [-1, *kept[:-1]]
    return [
        taken[k].after(sum(other.moved for other in taken[start + 1 : k + 1]))
        for start, k in zip(starts, kept, strict=True)
    ]


def _share_turned(taken: list[Keyframe]) -> float:
    steps = np.array([keyframe.parallax for keyframe in taken])
    steps = steps[np.isfinite(steps)]
    return float((steps < _TURNED).mean()) if steps.size else 0.0


def _curve(chooser: Chooser) -> tuple[tuple[float, float], ...]:
    looks = chooser.looks[:: -(-len(chooser.looks) // _MAX_CURVE) or 1]
    usual = float(np.median([look.sharpness for look in chooser.looks])) or 1.0
    return tuple(
        (round(look.seconds, 3), round(look.sharpness / usual, 3)) for look in looks
    )
