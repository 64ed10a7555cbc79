"""One image file: what its header says, and its pixels as stored.

Files are recognised by their content, whatever their name, and are only read. Sizes are
(W, H) of the file on disk; pixels are as stored, the EXIF orientation is not applied.
"""

from __future__ import annotations

import io
import os
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

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
from PIL.ExifTags import GPS, Base

from sfmprep import coords
from sfmprep.capture.exif import (
    Vector3,
    exif_tags,
    gravity_of,
    position,
    positive,
    text,
    valid_orientation,
)
from sfmprep.errors import ImageError

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_TAIL_BYTES = 4096
_CHUNK_BYTES = 1 << 20


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
    tags, gps = exif_tags(image)
    orientation = valid_orientation(tags.get(Base.Orientation))
    gravity = gravity_of(image, tags)
    if image.format == "HEIF":
        # Its readers turn the pixels, and set the tag to 1, since its standard
        # overrules EXIF; what the sensors say is of the pixels before.
        if gravity is not None:
            before = valid_orientation(image.info.get("original_orientation"))
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
        make=text(tags.get(Base.Make)),
        model=text(tags.get(Base.Model)),
        lens_model=text(tags.get(Base.LensModel)),
        focal_length_mm=positive(tags.get(Base.FocalLength)),
        focal_length_35mm=positive(tags.get(Base.FocalLengthIn35mmFilm)),
        has_alpha=image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
        gps=position(gps),
        gps_accuracy_m=positive(gps.get(GPS.GPSHPositioningError)),
        gravity=gravity,
    )


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
