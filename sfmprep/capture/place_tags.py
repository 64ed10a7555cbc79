"""Where a frame of a film was taken, as headers that its JPEG can carry."""

from __future__ import annotations

import math

from PIL import Image
from PIL.ExifTags import GPS, IFD
from PIL.TiffImagePlugin import IFDRational

from sfmprep.capture.flight import Fix

_SECONDS = 10_000_000  # parts of a second of arc
_XMP = b"http://ns.adobe.com/xap/1.0/\0"
_PACKET = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/">'
    '<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">'
    '<rdf:Description xmlns:drone-dji="http://www.dji.com/drone-dji/1.0/"{}/>'
    "</rdf:RDF></x:xmpmeta>"
)


def place_tags(fix: Fix) -> bytes:
    """EXIF and XMP segments to stand behind the first two bytes of a JPEG.

    Position and altitude are EXIF's; the height above the place of take-off and how the
    camera was held are in the XMP that DJI's drones write into photographs.
    """
    exif = Image.Exif()
    gps = exif.get_ifd(IFD.GPSInfo)
    gps[GPS.GPSLatitudeRef] = "N" if fix.latitude_deg >= 0 else "S"
    gps[GPS.GPSLatitude] = _arc(fix.latitude_deg)
    gps[GPS.GPSLongitudeRef] = "E" if fix.longitude_deg >= 0 else "W"
    gps[GPS.GPSLongitude] = _arc(fix.longitude_deg)
    if not math.isnan(fix.altitude_m):
        gps[GPS.GPSAltitudeRef] = b"\1" if fix.altitude_m < 0 else b"\0"
        gps[GPS.GPSAltitude] = IFDRational(round(abs(fix.altitude_m) * 1000), 1000)
    if not math.isnan(fix.accuracy_m):
        gps[GPS.GPSHPositioningError] = IFDRational(round(fix.accuracy_m * 100), 100)
    told = {
        "RelativeAltitude": fix.height_m,
        "GimbalPitchDegree": fix.pitch_deg,
        "GimbalRollDegree": fix.roll_deg,
    }
    words = "".join(
        f' drone-dji:{name}="{value:+.3f}"'
        for name, value in told.items()
        if not math.isnan(value)
    )
    segments = [exif.tobytes()]
    if words:
        segments.append(_XMP + _PACKET.format(words).encode())
    return b"".join(
        b"\xff\xe1" + (len(segment) + 2).to_bytes(2) + segment for segment in segments
    )


def _arc(degrees: float) -> tuple[IFDRational, IFDRational, IFDRational]:
    """Degrees, minutes and seconds."""
    parts = round(abs(degrees) * 3600 * _SECONDS)
    minutes, seconds = divmod(parts, 60 * _SECONDS)
    whole, minutes = divmod(minutes, 60)
    return IFDRational(whole), IFDRational(minutes), IFDRational(seconds, _SECONDS)
