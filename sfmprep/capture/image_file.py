"""One image file: what its header says, and its pixels as stored.

Files are recognised by their content, whatever their name, and are only read. Sizes are
(W, H) of the file on disk; pixels are as stored, the EXIF orientation is not applied.
"""

from __future__ import annotations

import io
import logging
import math
import os
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

# Pillow comes in here, before anything imports pycolmap: the other order has aborted.
from PIL import (
    BmpImagePlugin,
    Image,
    ImageFile,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ExifTags import GPS, IFD, Base

from sfmprep import coords
from sfmprep.errors import ImageError

logger = logging.getLogger(__name__)

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_TAIL_BYTES = 4096
_CHUNK_BYTES = 1 << 20
_REST_G = (0.8, 1.2)  # an accelerometer outside of this, in g, was shaken

Vector3 = tuple[float, float, float]


@dataclass(frozen=True)
class ImageInfo:
    """What the header of one image file says; None where it says nothing."""

    size: tuple[int, int]  # (W, H) of the file on disk
    orientation: int  # EXIF, 1..8; 1 where absent or invalid
    num_bytes: int
    make: str | None = None
    model: str | None = None
    lens_model: str | None = None
    focal_length_mm: float | None = None
    focal_length_35mm: float | None = None
    has_alpha: bool = False  # transparency, which `read_pixels` drops
    gps: tuple[float, float, float | None] | None = None  # WGS84 degrees; altitude, m
    gps_accuracy_m: float | None = None  # GPSHPositioningError
    gravity: Vector3 | None = None  # unit; x right, y down, z forward of stored pixels


def open_header(file: BinaryIO) -> ImageFile.ImageFile:
    """Opens an image by its content, whatever its name, without decoding its pixels.

    Unlike `PIL.Image.open` this has no limit on the size and registers no plug-in.

    Raises:
        ImageError: empty, not an image, truncated, damaged, or HEIC without
            pillow-heif. The message is the bare reason: it does not name the file.
    """
    plugin = _plugin(file.read(16))
    file.seek(0)
    try:
        image = plugin(file)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ImageError(
            f"damaged or truncated {plugin.format} header; copy the file again"
        ) from error
    # The plug-ins stop at the first pixel data, which is behind any thumbnail.
    if plugin.format == "JPEG" and not _has_after(file, b"\xff\xd9"):
        raise ImageError("truncated JPEG, it has no end marker; copy the file again")
    if plugin.format == "PNG" and not _has_after(file, b"IEND\xaeB`\x82"):
        raise ImageError("truncated PNG, it has no IEND chunk; copy the file again")
    return image


def _plugin(head: bytes) -> type[ImageFile.ImageFile]:
    """The class that reads files which begin with these bytes."""
    if not head:
        raise ImageError("the file is empty; copy it again")
    if head.startswith(b"\xff\xd8\xff"):
        return JpegImagePlugin.JpegImageFile
    if head.startswith(b"\x89PNG\r\n\x1a\n"):
        return PngImagePlugin.PngImageFile
    if head[:4] in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
        return TiffImagePlugin.TiffImageFile
    if head.startswith(b"BM"):
        return BmpImagePlugin.BmpImageFile
    if head.startswith(b"RIFF") and head[8:12] == b"WEBP":
        return WebPImagePlugin.WebPImageFile
    if head[4:8] == b"ftyp" and head[8:12] in _HEIC_BRANDS:
        try:
            from pillow_heif import HeifImageFile  # the extra `heic`
        except ImportError as error:
            raise ImageError("HEIC cannot be read; install sfmprep[heic]") from error
        heif: type[ImageFile.ImageFile] = HeifImageFile
        return heif
    raise ImageError("its content is none of JPEG, PNG, TIFF, BMP, WebP, HEIC")


def _has_after(file: BinaryIO, marker: bytes) -> bool:
    """Whether `marker` occurs at or after the position of `file`."""
    start = file.tell()
    end = file.seek(0, os.SEEK_END)
    file.seek(max(start, end - _TAIL_BYTES))  # nearly always there, and one read
    if marker in file.read():
        return True
    file.seek(start)
    window = b""
    while chunk := file.read(_CHUNK_BYTES):
        window = window[1 - len(marker) :] + chunk
        if marker in window:
            return True
    return False


def read_info(path: Path) -> ImageInfo:
    """Reads the header of one image, and finds JPEG and PNG files without an end.

    Raises:
        ImageError: as `open_header`, or the file cannot be read.
    """
    try:
        with path.open("rb") as file, open_header(file) as image:
            return _info(image, os.fstat(file.fileno()).st_size)
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error.strerror}") from error


def _info(image: ImageFile.ImageFile, num_bytes: int) -> ImageInfo:
    tags, gps = _exif_tags(image)
    orientation = _orientation(tags.get(Base.Orientation))
    gravity = _gravity(image, tags)
    if image.format == "HEIF":
        # Its readers turn the pixels, and set the tag to 1, since its standard
        # overrules EXIF; what the sensors say is of the pixels before.
        if gravity is not None:
            before = _orientation(image.info.get("original_orientation"))
            x, y = coords.upright_matrix(before) @ gravity[:2]
            gravity = float(x), float(y), gravity[2]
        orientation = 1
    size = image.size
    if isinstance(image, TiffImagePlugin.TiffImageFile):
        # Pillow's own size is that of the upright pixels
        size = image.tag_v2[Base.ImageWidth], image.tag_v2[Base.ImageLength]
    return ImageInfo(
        size=size,
        orientation=orientation,
        num_bytes=num_bytes,
        make=_text(tags.get(Base.Make)),
        model=_text(tags.get(Base.Model)),
        lens_model=_text(tags.get(Base.LensModel)),
        focal_length_mm=_positive(tags.get(Base.FocalLength)),
        focal_length_35mm=_positive(tags.get(Base.FocalLengthIn35mmFilm)),
        has_alpha=image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
        gps=_position(gps),
        gps_accuracy_m=_positive(gps.get(GPS.GPSHPositioningError)),
        gravity=gravity,
    )


def _exif_tags(
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


def _orientation(value: object) -> int:
    """An EXIF orientation; 1 where it is absent or invalid."""
    return value if isinstance(value, int) and value in range(1, 9) else 1


def _text(value: object) -> str | None:
    return value.strip(" \0") or None if isinstance(value, str) else None


def _positive(value: Any) -> float | None:
    number = _finite(value)
    return number if number is not None and number > 0 else None


def _finite(value: Any) -> float | None:
    try:
        number = float(value)
    except (TypeError, ValueError, ZeroDivisionError):
        return None
    return number if math.isfinite(number) else None


# --------------------------------------------------------------------------- sensors
def _position(gps: Mapping[int, Any]) -> tuple[float, float, float | None] | None:
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
    hemisphere = _text(hemisphere)
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


def _gravity(image: ImageFile.ImageFile, tags: Mapping[int, Any]) -> Vector3 | None:
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
    facing_front = "front" in (_text(tags.get(Base.LensModel)) or "").lower()
    if isinstance(maker_note, bytes) and not facing_front:
        return _gravity_from_apple(maker_note)
    return None


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


# ---------------------------------------------------------------------------- pixels
def read_pixels(path: Path) -> NDArray[np.uint8]:
    """Decodes an image as stored: the EXIF orientation is not applied.

    Returns:
        [H, W, 3] uint8 RGB. 16 bits are scaled to 8, alpha is dropped, grey is spread.

    Raises:
        ImageError: the file cannot be read or decoded.
    """
    try:
        return decode(path)
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def decode(path: Path) -> NDArray[np.uint8]:
    """As `read_pixels`, but the error is the bare reason, without the path."""
    import cv2  # here, so that the headers can be read without it

    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error.strerror}") from error
    with open_header(io.BytesIO(data)) as header:
        info = _info(header, len(data))
        kind = header.format
        if kind == "HEIF":
            return _decode_heif(header)
    flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"OpenCV cannot decode this {kind}: {error.err}") from error
    if decoded is None:
        raise ImageError(
            f"damaged {kind}, or a variant that OpenCV cannot decode; save it anew as"
            " an ordinary JPEG or PNG"
        )
    pixels = np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB), np.uint8)
    if kind == "TIFF":  # OpenCV turns these upright whatever the flag says
        pixels = coords.stored_pixels(pixels, info.orientation)
    if pixels.shape[1::-1] != info.size:
        raise ImageError(
            f"it decodes to {pixels.shape[1]} x {pixels.shape[0]} pixels but its header"
            f" says {info.size[0]} x {info.size[1]}; save it anew"
        )
    return pixels


def _decode_heif(header: ImageFile.ImageFile) -> NDArray[np.uint8]:
    try:
        return np.asarray(header.convert("RGB"))
    except (OSError, ValueError, RuntimeError) as error:
        raise ImageError(f"damaged or truncated HEIC: {error}") from error
