"""Where a drone was while it filmed, by the subtitles that DJI's write beside a film.

Some write them into it, see `subtitles`.

They have several dialects, of which these are read, whatever else stands around them:

    [latitude: 51.5] [longitude: -0.1] [rel_alt: 1.3 abs_alt: 132.9] [gb_pitch: -56.6]
    [latitude : 51.5] [longtitude : -0.1] [altitude: 80.1]         Mavic 2 and others
    GPS(-0.1000,51.5000,16) BAROMETER:1.9                          Mavic Pro, Phantom 4
    GPS(51.5000,-0.1000,0.0M) BAROMETER:1.9M                       Matrice 300
    GPS (-0.1000, 51.5000, 16), D 2.8m, H 46.3m                    Mini, Air 2S

Sources: subtitles that owners of these drones have published.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sfmprep.capture.subtitles import Subtitle, read_subtitles
from sfmprep.errors import ImageError
from sfmprep.types import Float64

_MAX_BYTES = 1 << 28  # three hours with a subtitle a frame take a tenth of it
_MAX_GAP_S = 2.5  # some tell a position each second only
_METRES_A_DEGREE = 111_320
_LEAST_ACCURACY_M = 1.0  # what the digits tell beyond that, no receiver does
_SLACK = 0.01  # between frames of the film and counted ones
_TIME = re.compile(r"(\d+):(\d+):(\d+)[,.](\d+)\s*-->")
_COUNT = re.compile(r"(?:FrameCnt|SrtCnt)\s*:\s*(\d+)")
_N = r"\s*([-+]?\d+(?:\.\d+)?)"
_LATITUDE = re.compile(rf"\blatitude\s*:{_N}")
_LONGITUDE = re.compile(rf"\blongt?itude\s*:{_N}")
_PAIR = re.compile(rf"\bGPS\s*\({_N}\s*,{_N}\s*(?:,{_N}\s*(M?))?", re.IGNORECASE)
_ALTITUDE = re.compile(rf"\babs_alt\s*:{_N}")
_HEIGHT = re.compile(
    rf"(?:\brel_alt\s*:|\baltitude\s*:|\bBAROMETER\s*:|\bH\b(?!\.)){_N}"
)
_PITCH = re.compile(rf"\bgb_pitch\s*:{_N}")
_ROLL = re.compile(rf"\bgb_roll\s*:{_N}")


class Fix(NamedTuple):
    """Where a drone was, and how its camera was held; NaN where that is not told."""

    latitude_deg: float
    longitude_deg: float
    altitude_m: float  # above the sea
    height_m: float  # above where it took off
    pitch_deg: float  # up
    roll_deg: float  # right side down
    accuracy_m: float  # as far as digits are told


@dataclass(frozen=True, kw_only=True, eq=False)
class Flight:
    """Positions by time; one or more."""

    name: str  # of the file, or what else it is from
    seconds: Float64  # [N] rising
    counts: Float64 | None  # [N] of frames, from 0, rising
    values: Float64  # [N, 6] as in `Fix`
    accuracy_m: float  # NaN where the digits are enough

    def at(self, number: int, seconds: float, num_frames: int) -> Fix | None:
        """The position at one frame, on a line between the two told; None outside.

        Args:
            number: Of the frame, from 0.
            seconds: Of the frame. The times of subtitles are rounded and drift, so its
                number decides where frames are counted and as many as in the film.
            num_frames: Of the film; 0 where it does not say.
        """
        at, places, length_s = seconds, self.seconds, 1.0
        if self.counts is not None and _agree(self.counts, num_frames):
            at, places = number, self.counts
            length_s = float(np.ptp(self.seconds) / (np.ptp(places) or 1))
        after = int(np.searchsorted(places, at, side="right"))
        before, after = max(after - 1, 0), min(after, len(places) - 1)
        step = places[after] - places[before]
        if length_s * (step or abs(at - places[before])) > _MAX_GAP_S:
            return None
        first, second = self.values[before], self.values[after]
        mixed = (
            first + (at - places[before]) / step * (second - first)
            if step
            else first.copy()
        )
        mixed[1] = (mixed[1] + 180) % 360 - 180
        return Fix._make([*mixed.tolist(), self.accuracy_m])


def flight_file(film: Path) -> Path | None:
    """The subtitles beside a film, of its name; None where there are none."""
    beside = (film.with_suffix(suffix) for suffix in (".srt", ".SRT"))
    return next((path for path in beside if path.is_file()), None)


def read_flight(path: Path) -> Flight:
    """Reads the positions that subtitles tell.

    Subtitles without a position, or with one that is not on the earth or has no fix,
    are left out, and so are those whose time is not after the one before.

    Raises:
        ImageError: no position is left. The message is the bare reason.
    """
    try:
        with path.open("rb") as file:
            text = file.read(_MAX_BYTES).decode("utf-8-sig", "replace")
    except OSError as error:
        raise ImageError(f"it cannot be read: {error.strerror}") from error
    starts = list(_TIME.finditer(text))
    ends = [*(start.start() for start in starts), len(text)][1:]
    subtitles = []
    for start, end in zip(starts, ends, strict=True):
        hours, minutes, whole, part = start.groups()
        seconds = 3600 * int(hours) + 60 * int(minutes) + float(f"{whole}.{part}")
        subtitles.append(Subtitle(seconds, text[start.end() : end]))
    return _flight_of(subtitles, path.name)


def read_flight_inside(film: Path) -> Flight | None:
    """Likewise of the subtitles inside a film (MP4, MOV); None where none tells one."""
    for subtitles in read_subtitles(film):
        if any(_position(subtitle.text) for subtitle in subtitles):
            try:
                return _flight_of(subtitles, f"the text track of {film.name}")
            except ImageError:
                continue  # without a fix: nothing that anybody gave
    return None


def _flight_of(subtitles: Sequence[Subtitle], name: str) -> Flight:
    if not subtitles:
        raise ImageError("it holds no subtitles")
    seconds, counts, rows = list[float](), list[float](), list[tuple[float, ...]]()
    digits, num_told, num_fixes = 0, 0, 0
    for time, said in subtitles:
        found = _position(said)
        if found is None:
            continue
        num_told += 1
        latitude, longitude = (float(number) for number in found)
        if latitude == 0 and longitude == 0:
            continue
        num_fixes += 1
        if abs(latitude) > 90 or abs(longitude) > 180:
            continue
        if seconds and time <= seconds[-1]:
            continue
        seconds.append(time)
        count = _COUNT.search(said)
        counts.append(float(count[1]) - 1 if count else math.nan)
        others = (_number(p, said) for p in (_ALTITUDE, _HEIGHT, _PITCH, _ROLL))
        rows.append((latitude, longitude, *others))
        digits = max(digits, *(len(number.partition(".")[2]) for number in found))
    if not num_told:
        raise ImageError(
            f"none of its {len(subtitles)} subtitles tells a position as DJI's drones"
            " do"
        )
    if not num_fixes:
        raise ImageError("the drone had no GPS: all its positions are 0")
    if not rows:
        raise ImageError("none of its positions is on the earth")
    values = np.array(rows)
    values[:, 1] = np.unwrap(values[:, 1], period=360)
    counted = np.array(counts)
    accuracy_m = 10.0**-digits * _METRES_A_DEGREE / 2
    return Flight(
        name=name,
        seconds=np.array(seconds),
        counts=counted if (np.diff(counted, prepend=-1) > 0).all() else None,
        values=values,
        accuracy_m=accuracy_m if accuracy_m >= _LEAST_ACCURACY_M else math.nan,
    )


def _agree(counts: Float64, num_frames: int) -> bool:
    """Whether as many frames are counted as the film has."""
    return bool(abs(counts[-1] + 1 - num_frames) <= _SLACK * num_frames + 1)


def _position(said: str) -> tuple[str, str] | None:
    """Latitude and longitude as they are written."""
    latitude, longitude = _LATITUDE.search(said), _LONGITUDE.search(said)
    if latitude and longitude:
        return latitude[1], longitude[1]
    pair = _PAIR.search(said)
    if pair is None:
        return None
    first, second, _, unit = pair.groups()
    # Only where the third number is metres does latitude come first; elsewhere it
    # counts satellites.
    is_turned = bool(unit) or abs(float(second)) > 90
    return (first, second) if is_turned else (second, first)


def _number(pattern: re.Pattern[str], said: str) -> float:
    found = pattern.search(said)
    return float(found[1]) if found else math.nan
