"""Positions by the subtitles of drones, in the frames of their films."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sfmprep.capture.flight import Fix, Flight, flight_file, read_flight
from sfmprep.capture.image_file import read_info
from sfmprep.capture.place_tags import place_tags
from sfmprep.errors import ImageError

NAN = math.nan


def flight_of(tmp_path: Path, *said: str, step_ms: int = 33) -> Flight:
    """Subtitles of so many texts, one each `step_ms`."""
    path = tmp_path / "DJI_0001.SRT"
    path.write_text(
        "".join(
            f"{k + 1}\n{time(k * step_ms)} --> {time((k + 1) * step_ms)}\n{text}\n\n"
            for k, text in enumerate(said)
        )
    )
    return read_flight(path)


def time(ms: int) -> str:
    seconds, ms = divmod(ms, 1000)
    return f"00:{seconds // 60:02}:{seconds % 60:02},{ms:03}"


@pytest.mark.parametrize(
    ("said", "latitude", "longitude", "altitude", "height", "pitch", "roll"),
    [
        (
            '<font size="28">FrameCnt: 1, DiffTime: 33ms\n2023-05-31 19:04:26.691\n'
            "[iso: 100] [focal_len: 40.00] [dzoom_ratio: 1.00], [latitude: -37.920295]"
            " [longitude: 176.456417] [rel_alt: 62.370 abs_alt: 227.373]"
            " [gb_yaw: -142.5 gb_pitch: -28.7 gb_roll: 0.5] </font>",
            *(-37.920295, 176.456417, 227.373, 62.37, -28.7, 0.5),
        ),
        (
            '<font size="36">FrameCnt : 1, DiffTime : 33ms\n2018-09-15 15:58:16,001\n'
            "[iso : 100] [shutter : 1/1000.0] [fnum : 280] [focal_len : 280]"
            " [latitude : 51.500001] [longtitude : -0.100002] [altitude: 80.1] </font>",
            *(51.500001, -0.100002, NAN, 80.1, NAN, NAN),
        ),
        (
            "HOME(149.0251,-20.2532) 2017.08.05 14:11:51\n"
            "GPS(149.0251,-20.2533,16) BAROMETER:1.9\nISO:100 Shutter:60 EV: Fnum:F2.2",
            *(-20.2533, 149.0251, NAN, 1.9, NAN, NAN),
        ),
        (
            "2022.06.21 16:06:17\nGPS(36.6146,-6.1120,0.0M) BAROMETER:0.3M",
            *(36.6146, -6.1120, NAN, 0.3, NAN, NAN),
        ),
        (
            "F/2.8, SS 206.14, ISO 150, EV 0, GPS (-82.6669, 27.7716, 10), D 2.80m,"
            " H 46.30m, H.S 0.00m/s, V.S 0.00m/s",
            *(27.7716, -82.6669, NAN, 46.3, NAN, NAN),
        ),
        ("GPS(20.2533,149.0251,16)", 20.2533, 149.0251, NAN, NAN, NAN, NAN),
    ],
)
def test_dialects(
    tmp_path: Path,
    said: str,
    latitude: float,
    longitude: float,
    altitude: float,
    height: float,
    pitch: float,
    roll: float,
) -> None:
    fix = flight_of(tmp_path, said).at(0, 0.0, 1)
    assert fix is not None
    expected = (latitude, longitude, altitude, height, pitch, roll)
    np.testing.assert_allclose(fix[:6], expected)


def test_few_digits_are_little_accuracy(tmp_path: Path) -> None:
    rough = flight_of(tmp_path, "GPS(149.0251,-20.2533,16)")
    assert rough.accuracy_m == pytest.approx(5.566)
    assert math.isnan(flight_of(tmp_path, "GPS(149.025123,-20.2533,9)").accuracy_m)


def test_position_is_on_the_line_between_two(tmp_path: Path) -> None:
    said = [f"GPS({longitude},10,9)" for longitude in (179.9998, -179.9998)]
    flight = flight_of(tmp_path, *said, step_ms=1000)
    for seconds, longitude in ((0.25, 179.9999), (0.75, -179.9999), (2.9, -179.9998)):
        fix = flight.at(0, seconds, 0)
        assert fix is not None
        assert fix.longitude_deg == pytest.approx(longitude)
    assert flight.at(0, 3.6, 0) is None
    far = flight_of(tmp_path, *said, step_ms=3000)
    assert far.at(0, 1.5, 0) is None


def test_counted_frames_decide_where_they_are_those_of_the_film(
    tmp_path: Path,
) -> None:
    said = [f"FrameCnt: {k + 1}\nGPS({k / 1000},10,9)" for k in range(300)]
    flight = flight_of(tmp_path, *said)  # of 33 ms, where a frame takes 33.37
    counted, timed = flight.at(297, 297 * 0.03337, 300), flight.at(297, 9.0, 600)
    assert counted is not None
    assert timed is not None
    assert counted.longitude_deg == pytest.approx(0.297)
    assert timed.longitude_deg == pytest.approx(9 / 33)


def test_what_is_no_position_is_left_out(tmp_path: Path) -> None:
    flight = flight_of(
        tmp_path,
        *("GPS(0.0,0.0,0)", "GPS(1.5,2.5,9)", "clouds", "GPS(200,100,9)"),
        "GPS(nan,2,9)",
    )
    assert flight.seconds.tolist() == [0.033]
    path = tmp_path / "a.srt"
    path.write_text(
        "1\n00:00:01,000 --> 00:00:01,000\nGPS(1,2,9)\n\n"
        "2\n00:00:00,000 --> 00:00:00,000\nGPS(3,4,9)\n"
    )
    assert read_flight(path).seconds.tolist() == [1.0]


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it holds no subtitles"),
        (b"\0\xff\x81" * 100, "it holds no subtitles"),
        (
            b"1\n00:00:00,000 --> 00:00:01,000\nHello.\n",
            "none of its 1 subtitles tells a position as DJI's drones do",
        ),
        (
            b"1\n00:00:00,000 --> 00:00:01,000\nGPS(0.0,0.0,0)\n",
            "the drone had no GPS: all its positions are 0",
        ),
        (
            b"1\n00:00:00,000 --> 00:00:01,000\nGPS(500,100,0)\n",
            "none of its positions is on the earth",
        ),
    ],
)
def test_subtitles_without_positions(tmp_path: Path, content: bytes, why: str) -> None:
    path = tmp_path / "a.srt"
    path.write_bytes(content)
    with pytest.raises(ImageError) as caught:
        read_flight(path)
    assert str(caught.value) == why


def test_subtitles_are_found_in_either_case(tmp_path: Path) -> None:
    film = tmp_path / "DJI_0001.MP4"
    assert flight_file(film) is None
    (tmp_path / "DJI_0001.SRT").touch()
    assert flight_file(film) == tmp_path / "DJI_0001.SRT"


@pytest.mark.parametrize(
    "fix",
    [
        Fix(-33.8688001, 151.2093002, 12.345, 7.25, -56.6, 1.5, 5.57),
        Fix(51.5, -0.1, -3.5, NAN, NAN, NAN, NAN),
        Fix(51.5, -0.1, NAN, 80.1, NAN, NAN, NAN),
    ],
)
def test_a_photograph_carries_them(tmp_path: Path, fix: Fix) -> None:
    path = tmp_path / "a.jpg"
    Image.new("RGB", (16, 16)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[:2] + place_tags(fix) + data[2:])
    info = read_info(path)

    def told(value: float) -> float | None:
        return None if math.isnan(value) else pytest.approx(value, abs=1e-3)

    assert info.gps is not None
    assert info.gps[:2] == pytest.approx(fix[:2], abs=1e-9)
    assert info.gps[2] == told(fix.altitude_m)
    assert info.height_m == told(fix.height_m)
    assert info.gps_accuracy_m == told(fix.accuracy_m)
    if math.isnan(fix.pitch_deg):
        assert info.gravity is None
    else:
        pitch, roll = math.radians(fix.pitch_deg), math.radians(fix.roll_deg)
        down = (
            math.sin(roll) * math.cos(pitch),
            math.cos(roll) * math.cos(pitch),
            -math.sin(pitch),
        )
        assert info.gravity == pytest.approx(down, abs=1e-4)
    assert np.asarray(Image.open(path)).shape == (16, 16, 3)
