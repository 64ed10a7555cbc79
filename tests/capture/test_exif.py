"""What of EXIF is handed on to another file."""

from __future__ import annotations

from PIL import Image
from PIL.ExifTags import GPS, IFD, Base
from PIL.TiffImagePlugin import IFDRational

from sfmprep.capture.exif import taken_over

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
