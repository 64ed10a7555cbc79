"""What EXIF and XMP say: the camera, its place, and which way was down."""

from __future__ import annotations

import logging
import math
import re
import struct
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from typing import Any, NamedTuple

from PIL import Image, ImageFile
from PIL.ExifTags import GPS, IFD, Base

logger = logging.getLogger(__name__)

_REST_G = (0.8, 1.2)  # an accelerometer outside of this, in g, was shaken
_PANORAMA = re.compile(rb"\bGPano:ProjectionType\s*(?:=\s*[\"']|>)equirectangular")
_DATE_TIME = re.compile(
    r"([0-9]{4})[:/-]([0-9]{2})[:/-]([0-9]{2})[ T]([0-9]{2}):([0-9]{2}):([0-9]{2})"
)
_OFFSET = re.compile(r"(?P<sign>[+-])(?P<hours>0[0-9]|1[0-4]):(?P<minutes>[0-5][0-9])")
_DIGITS = re.compile("[0-9]+").fullmatch

Vector3 = tuple[float, float, float]


def exif_tags(
    image: ImageFile.ImageFile,
) -> tuple[Mapping[int, Any], Mapping[int, Any]]:
    """The EXIF tags by number, and those of the GPS; none where they are damaged."""
    tags: dict[int, Any] = {}
    gps: dict[int, Any] = {}
    try:
        # Not `image.getexif()`: it decodes all pixels of a PNG that has no EXIF before
        # them, to see whether it has some behind them.
        exif = Image.Image.getexif(image)
        tags = {**exif, **exif.get_ifd(IFD.Exif)}
        gps = exif.get_ifd(IFD.GPSInfo)
    except Exception as error:  # damaged EXIF makes Pillow raise almost anything
        logger.debug("damaged EXIF ignored: %s", error)
    return tags, gps


def taken_over(
    before: Image.Exif,
    camera: Collection[int],
    exposure: Collection[int],
    *,
    with_gps: bool = False,
) -> Image.Exif:
    """Some tags of a file for another one, without what cannot be written again.

    Args:
        before: Of the file.
        camera: Which tags of the camera.
        exposure: Which tags of the exposure.
        with_gps: Whether the position is taken over too, whole or not at all.

    Raises:
        Exception: almost anything, as Pillow does where EXIF is damaged.
    """
    after = Image.Exif()
    for tags, old, new in (
        (camera, before, after),
        (exposure, before.get_ifd(IFD.Exif), after.get_ifd(IFD.Exif)),
    ):
        new.update({tag: old[tag] for tag in tags if _can_be_saved(old.get(tag))})
    if with_gps:
        position = after.get_ifd(IFD.GPSInfo)
        position.update(before.get_ifd(IFD.GPSInfo))
        try:
            after.tobytes()
        except Exception as error:  # such as a value of 1/0
            logger.debug("damaged GPS is not taken over: %s", error)
            position.clear()
    return after


def _can_be_saved(value: object) -> bool:
    """Whether this is a text or a number as EXIF holds it; damaged files have 1/0."""
    if isinstance(value, str):
        return True
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return False


def valid_orientation(value: object) -> int:
    """An EXIF orientation; 1 where it is absent or invalid."""
    return value if isinstance(value, int) and value in range(1, 9) else 1


def text(value: object) -> str | None:
    """A text without the blanks and zeros around it; None if it is empty or none."""
    return value.strip(" \0") or None if isinstance(value, str) else None


def positive(value: Any) -> float | None:
    """A finite number above zero; None if it is not."""
    number = _finite(value)
    return number if number is not None and number > 0 else None


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None


# ------------------------------------------------------------------------------ time
class Moment(NamedTuple):
    """When a photograph was taken."""

    seconds: float  # since the beginning of 1970, by the clock of the camera
    is_utc: bool  # whether it says how far its clock is from UTC: then of UTC


def moment_of(tags: Mapping[int, Any]) -> Moment | None:
    """When the shutter opened, with what it tells below a second; None where not valid.

    Only `DateTimeOriginal`: the other times are those of a scan, or of a change.
    (EXIF 2.31, 4.6.5 F.)
    """
    found = _DATE_TIME.fullmatch(text(tags.get(Base.DateTimeOriginal)) or "")
    if found is None:
        return None
    try:
        whole = datetime.strptime(" ".join(found.groups()), "%Y %m %d %H %M %S")
    except ValueError:  # clocks that were never set write zeros
        return None
    below = text(tags.get(Base.SubsecTimeOriginal)) or ""
    seconds = whole.replace(tzinfo=UTC).timestamp()
    seconds += float(f"0.{below}") if _DIGITS(below) else 0.0
    offset = _OFFSET.fullmatch(text(tags.get(Base.OffsetTimeOriginal)) or "")
    if offset is None:
        return Moment(seconds, is_utc=False)
    ahead = 3600 * int(offset["hours"]) + 60 * int(offset["minutes"])
    return Moment(seconds - (-ahead if offset["sign"] == "-" else ahead), is_utc=True)


# --------------------------------------------------------------------------- sensors
def position(gps: Mapping[int, Any]) -> tuple[float, float, float | None] | None:
    """Latitude and longitude in degrees, altitude in metres; None where not valid."""
    latitude = _degrees(gps.get(GPS.GPSLatitude), gps.get(GPS.GPSLatitudeRef), "NS")
    longitude = _degrees(gps.get(GPS.GPSLongitude), gps.get(GPS.GPSLongitudeRef), "EW")
    if latitude is None or longitude is None:
        return None
    if abs(latitude) > 90 or abs(longitude) > 180:
        return None
    if latitude == 0 and longitude == 0:  # receivers without a fix write zeros
        return None
    altitude = _finite(gps.get(GPS.GPSAltitude))
    if altitude is not None and gps.get(GPS.GPSAltitudeRef) in (1, b"\1", 3, b"\3"):
        altitude = -altitude  # below the sea, or, since EXIF 3.0, the ellipsoid
    return latitude, longitude, altitude


def _degrees(value: Any, hemisphere: Any, letters: str) -> float | None:
    """Degrees from degrees, minutes and seconds; those of `letters[1]` are negative."""
    hemisphere = text(hemisphere)
    if hemisphere is None or hemisphere[0].upper() not in letters:
        return None
    try:
        parts = [number for part in value if (number := _finite(part)) is not None]
    except TypeError:
        return None
    if len(parts) != 3:
        return None
    degrees = parts[0] + parts[1] / 60 + parts[2] / 3600
    return -degrees if hemisphere[0].upper() == letters[1] else degrees


def height_of(image: ImageFile.ImageFile, tags: Mapping[int, Any]) -> float | None:
    """Metres above where a drone took off, by DJI's XMP; None where it is not told."""
    xmp = image.info.get("xmp") or tags.get(Base.XMLPacket)
    if not isinstance(xmp, bytes):
        return None
    return _xmp_number(xmp, "drone-dji:RelativeAltitude")


def gravity_of(image: ImageFile.ImageFile, tags: Mapping[int, Any]) -> Vector3 | None:
    """Which way is down in the camera, by the gimbal or the accelerometer, as unit."""
    xmp = image.info.get("xmp") or tags.get(Base.XMLPacket)
    if isinstance(xmp, bytes):
        for names in (
            ("drone-dji:GimbalPitchDegree", "drone-dji:GimbalRollDegree"),
            ("GPano:PosePitchDegrees", "GPano:PoseRollDegrees"),
        ):
            pitch, roll = (_xmp_number(xmp, name) for name in names)
            if pitch is not None:
                return _gravity_from_angles(pitch, roll or 0.0)
    maker_note = tags.get(Base.MakerNote)
    facing_front = "front" in (text(tags.get(Base.LensModel)) or "").lower()
    if isinstance(maker_note, bytes) and not facing_front:
        return _gravity_from_apple(maker_note)
    return None


def is_panorama(image: ImageFile.ImageFile) -> bool:
    """Whether the image says that it is equirectangular, by Photo Sphere XMP."""
    xmp = image.info.get("xmp")
    return isinstance(xmp, bytes) and _PANORAMA.search(xmp) is not None


class Area(NamedTuple):
    """A part of the picture of a whole sphere, in shares of its width and height."""

    left: float
    top: float
    width: float
    height: float


def sphere_area(image: ImageFile.ImageFile) -> Area | None:
    """Which part of a sphere an image shows, by Photo Sphere XMP; None if not told."""
    xmp = image.info.get("xmp")
    if not isinstance(xmp, bytes):
        return None
    left, top, width, height, full_width, full_height = (
        _xmp_number(xmp, f"GPano:{name}Pixels")
        for name in (
            *("CroppedAreaLeft", "CroppedAreaTop", "CroppedAreaImageWidth"),
            *("CroppedAreaImageHeight", "FullPanoWidth", "FullPanoHeight"),
        )
    )
    if not (width and height and full_width and full_height):
        return None
    area = Area(
        *((left or 0) / full_width, (top or 0) / full_height),
        *(width / full_width, height / full_height),
    )
    is_inside = (
        min(area) >= 0 and area.left + area.width <= 1 and area.top + area.height <= 1
    )
    return area if is_inside and min(area.width, area.height) > 0 else None


def _xmp_number(xmp: bytes, name: str) -> float | None:
    """The number of a property, which XMP writes as an attribute or as an element."""
    found = re.search(rb"\b%b\s*(?:=\s*[\"']|>)([^\"'<]*)" % name.encode(), xmp)
    return None if found is None else _finite(found[1])


def _gravity_from_angles(pitch_deg: float, roll_deg: float) -> Vector3:
    """Gravity of a camera that looks up by the pitch, its right side down by the roll.

    DJI's axes are north, east, down, rotated in the order z, y, x; a pitch of -90 looks
    straight down. Photo Sphere XMP agrees: with more roll the horizon turns
    counter-clockwise in the image.
    """
    pitch, roll = math.radians(pitch_deg), math.radians(roll_deg)
    return (
        math.sin(roll) * math.cos(pitch),
        math.cos(roll) * math.cos(pitch),
        -math.sin(pitch),
    )


def _gravity_from_apple(maker_note: bytes) -> Vector3 | None:
    """Gravity from the acceleration in the maker note of an iPhone's rear camera.

    The note is a big-endian TIFF directory behind 14 bytes, with offsets from its
    beginning. Tag 8 holds three signed fractions, in g: gravity in the axes of the
    phone, x to the right and y to the top of the screen, z out of it. (ExifTool, "Apple
    Tags", documents the same numbers as acceleration in the opposite axes.) A row of
    the stored pixels runs from the phone's top to its bottom.
    """
    if not maker_note.startswith(b"Apple iOS\0") or maker_note[12:14] != b"MM":
        return None
    try:
        (num_entries,) = struct.unpack_from(">H", maker_note, 14)
        for entry in range(num_entries):
            tag, kind, count, at = struct.unpack_from(
                ">HHLL", maker_note, 16 + 12 * entry
            )
            if (tag, kind, count) == (8, 10, 3):
                parts = struct.unpack_from(">6l", maker_note, at)
                x, y, z = (parts[k] / parts[k + 1] for k in (0, 2, 4))
                break
        else:
            return None
    except (struct.error, ZeroDivisionError):
        return None
    norm = math.hypot(x, y, z)
    if not _REST_G[0] < norm < _REST_G[1]:
        return None
    return -y / norm, -x / norm, -z / norm
