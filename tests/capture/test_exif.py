"""What EXIF says of time, and what of it is handed on to another file."""

from __future__ import annotations

import pytest
from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.TiffImagePlugin import IFDRational

from sfmprep.capture.exif import Moment, moment_of, taken_over

NO_NUMBER = IFDRational(1, 0)


def test_named_tags_are_taken_over_and_no_others() -> None:
    before = Image.Exif()
    before[Base.Make], before[Base.Software] = "Maker", "Editor"
    before.get_ifd(IFD.Exif)[Base.FNumber] = IFDRational(28, 10)
    before.get_ifd(IFD.GPSInfo)[GPS.GPSLatitudeRef] = "N"
    after = taken_over(before, [Base.Make], [Base.FNumber])
    assert dict(after) == {Base.Make: "Maker"}
    assert dict(after.get_ifd(IFD.Exif)) == {Base.FNumber: 2.8}
    assert not after.get_ifd(IFD.GPSInfo)
    with_gps = taken_over(before, [], [], with_gps=True)
    assert dict(with_gps.get_ifd(IFD.GPSInfo)) == {GPS.GPSLatitudeRef: "N"}


def test_what_cannot_be_written_again_is_left_out() -> None:
    before = Image.Exif()
    before[Base.Make] = "Maker"
    before.get_ifd(IFD.Exif)[Base.FNumber] = NO_NUMBER
    before.get_ifd(IFD.GPSInfo)[GPS.GPSLatitude] = (object(),)
    after = taken_over(before, [Base.Make], [Base.FNumber], with_gps=True)
    assert after.tobytes()
    assert dict(after) == {Base.Make: "Maker"}
    assert not after.get_ifd(IFD.Exif) and not after.get_ifd(IFD.GPSInfo)


def told(when: object, below: object = None, offset: object = None) -> Moment | None:
    return moment_of(
        {
            Base.DateTimeOriginal: when,
            Base.SubsecTimeOriginal: below,
            Base.OffsetTimeOriginal: offset,
        }
    )


NOON = 1_591_012_800.0  # 2020-06-01 12:00:00 UTC


def test_moments_have_fractions_and_offsets() -> None:
    noon = "2020:06:01 12:00:00"
    assert told(noon) == Moment(NOON, is_utc=False)
    assert told(noon + "\0", "25 ") == Moment(NOON + 0.25, is_utc=False)
    assert told(noon, "007", "+02:00") == Moment(NOON + 0.007 - 7200, is_utc=True)
    assert told(noon, None, "-03:30") == Moment(NOON + 12_600, is_utc=True)
    assert told(noon, "  ", "   :  ") == Moment(NOON, is_utc=False)
    assert told(noon, "1/0", "+25:00") == Moment(NOON, is_utc=False)
    assert told("2020-06-01T12:00:00") == Moment(NOON, is_utc=False)


@pytest.mark.parametrize(
    "when",
    [
        *(None, "", "0000:00:00 00:00:00", "    :  :     :  :  ", "2020:06:01"),
        *("2020:13:01 12:00:00", "2020:06:01 24:00:00", b"2020:06:01 12:00:00", 7),
    ],
)
def test_what_is_no_moment(when: object) -> None:
    assert told(when, "25", "+02:00") is None
