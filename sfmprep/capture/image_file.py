"""One image file: what its header says, and its pixels as stored.

Files are recognised by their content, whatever their name, and are only read. Sizes are
(W, H) of the file on disk; pixels are as stored, the EXIF orientation is not applied.
"""

from __future__ import annotations

import io
import math
import os
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray

# Pillow comes in here, before anything imports pycolmap: the other order has aborted.
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    ImageFile,
    Jpeg2KImagePlugin,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    WebPImagePlugin,
)
from PIL.ExifTags import GPS, Base

from sfmprep import coords
from sfmprep.capture.damaged import has_broken_strip, remaining_values, values_of
from sfmprep.capture.exif import (
    Area,
    Moment,
    Vector3,
    exif_tags,
    gravity_of,
    height_of,
    is_panorama,
    moment_of,
    position,
    positive,
    sphere_area,
    text,
    valid_orientation,
)
from sfmprep.errors import ImageError
from sfmprep.types import Bytes

_HEIC_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"mif1", b"msf1")
_AVIF_BRANDS = (b"avif", b"avis")
_HEAD_BYTES = 64  # of which the brands of a HEIC or AVIF file are part
_TAIL_BYTES = 4096
_CHUNK_BYTES = 1 << 20
# Compressed so well that no picture ends in so many zeros, and without a checksum.
_DENSE_FORMATS = ("WEBP", "HEIF", "AVIF", "JPEG2000")
_ZERO_BYTES = 1024
# What libjpeg remarks where pixels are lost, and how much may lie before the end marker
# without: webcams leave a few bytes there, others fill up a block.
_JPEG_DAMAGE = re.compile(
    "remature end|bad Huffman code|bad arithmetic code|extraneous bytes|found marker"
)
_MAX_STRAY_BYTES = 8
_MAX_PADDING_BYTES = 4096
_FEW_LEVELS = 1 << 14  # a quarter of those of 16 bits


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
    digital_zoom: float = 1.0  # what it says to be cut out; 1 where it says nothing
    has_alpha: bool = False  # transparency, which `read_pixels` drops
    serial: str | None = None  # of the camera's body
    taken: Moment | None = None  # when
    gps: tuple[float, float, float | None] | None = None  # WGS84 degrees; altitude, m
    gps_accuracy_m: float | None = None  # GPSHPositioningError
    height_m: float | None = None  # above where a drone took off
    gravity: Vector3 | None = None  # unit; x right, y down, z forward of stored pixels
    is_panorama: bool = False  # it says that it is equirectangular
    area: Area | None = None  # which part of a sphere it says to show
    damage: str | None = None  # why a part of it is lost, if it is kept all the same


def open_header(file: BinaryIO) -> ImageFile.ImageFile:
    """Opens an image by its content, whatever its name, without decoding its pixels.

    Unlike `PIL.Image.open` this has no limit on the size and registers no plug-in.

    Raises:
        ImageError: empty, not an image, or its header truncated or damaged. The message
            is the bare reason: it does not name the file.
    """
    plugin = _plugin(file.read(_HEAD_BYTES))
    file.seek(0)
    try:
        return plugin(file)
    except Exception as error:  # damaged headers make plug-ins raise almost anything
        if bits := re.search(r"(\d+)-bit layers", str(error)):  # Pillow's words
            raise ImageError(
                f"a JPEG of {bits[1]} bits a channel, which cannot be read; save it"
                " anew with 8 bits, or as a PNG or TIFF with 16"
            ) from error
        raise ImageError(
            f"damaged or truncated {plugin.format} header; copy the file again"
        ) from error


def _missing_end(file: BinaryIO, kind: str) -> str | None:
    """What tells that the end of a file is not there, just after its plug-in read it.

    The plug-ins stop at the first pixel data, which is behind any thumbnail.
    """
    if kind == "JPEG" and not _has_after(file, b"\xff\xd9"):
        return "truncated JPEG, it has no end marker; copy the file again"
    if kind == "PNG" and not _has_after(file, b"IEND\xaeB`\x82"):
        return "truncated PNG, it has no IEND chunk; copy the file again"
    if kind in _DENSE_FORMATS and _ends_in_zeros(file):
        return f"unfinished {kind}, its end is all zeros; copy the file again"
    return None


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
    if head.startswith((b"\0\0\0\x0cjP  \r\n\x87\n", b"\xff\x4f\xff\x51")):
        return Jpeg2KImagePlugin.Jpeg2KImageFile
    brand, others = head[8:12], head[16 : int.from_bytes(head[:4])]
    if head[4:8] == b"ftyp" and (
        brand in _AVIF_BRANDS or (brand in (b"mif1", b"msf1") and b"avif" in others)
    ):
        return AvifImagePlugin.AvifImageFile
    if head[4:8] == b"ftyp" and brand in _HEIC_BRANDS:
        from pi_heif import HeifImageFile  # here, since most captures need none

        heif: type[ImageFile.ImageFile] = HeifImageFile
        return heif
    if head[4:8] == b"ftyp" or head[8:12] == b"AVI " or head[:4] == b"\x1aE\xdf\xa3":
        raise ImageError(
            "its content is that of a film; give it the ending of one, such as .mp4"
        )
    raise ImageError(
        "its content is none of JPEG, PNG, TIFF, BMP, WebP, HEIC, AVIF, JPEG 2000"
    )


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


def _ends_in_zeros(file: BinaryIO) -> bool:
    """Whether the end was never written, as in a copy that broke off."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(size - _ZERO_BYTES, 0))
    return file.read() == bytes(_ZERO_BYTES)


def read_info(path: Path, *, keep_damaged: bool = False) -> ImageInfo:
    """Reads the header of one image, and finds JPEG and PNG files without an end.

    Args:
        path: The file.
        keep_damaged: A missing end is no error but the `damage` of the result.

    Raises:
        ImageError: as `open_header`, the end is missing, or the file cannot be read.
    """
    try:
        with path.open("rb") as file, open_header(file) as image:
            damage = _missing_end(file, image.format or "")
            if damage and not keep_damaged:
                raise ImageError(damage)
            info = _info(image, os.fstat(file.fileno()).st_size)
            return replace(info, damage=damage)
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
        digital_zoom=max(positive(tags.get(Base.DigitalZoomRatio)) or 1.0, 1.0),
        has_alpha=image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info,
        serial=text(tags.get(Base.BodySerialNumber)),
        taken=moment_of(tags),
        gps=position(gps),
        gps_accuracy_m=positive(gps.get(GPS.GPSHPositioningError)),
        height_m=height_of(image, tags),
        gravity=gravity,
        is_panorama=is_panorama(image),
        area=sphere_area(image),
    )


# ---------------------------------------------------------------------------- pixels
class Decoded(NamedTuple):
    """The pixels of an image file."""

    pixels: Bytes  # [H, W, 3] RGB
    levels: tuple[float, float] | None  # lowest, highest, where they were stretched
    damage: str | None = None  # why a part of them is lost


def read_pixels(path: Path, *, keep_damaged: bool = False) -> Bytes:
    """Decodes an image as stored: the EXIF orientation is not applied.

    Pixel data that is truncated is an error in every format, and so is broken data
    where the format tells: always in PNG and deflated TIFF, mostly in LZW TIFF and
    JPEG. There a wrong byte may also be another picture: of 360 single wrong bits and
    bytes in JPEG data 126 changed what is seen, and 80 of these were told. In other
    TIFF, BMP, WebP, HEIC, AVIF and JPEG 2000 it may pass.

    Args:
        path: The file.
        keep_damaged: Of a damaged JPEG, PNG, TIFF or BMP return what is there; what
            is lost is grey or black.

    Returns:
        [H, W, 3] uint8 RGB. Of 16 bits the upper 8 are taken, but of a picture that
        uses a quarter of its levels or fewer the range that it uses; so of other
        numbers. Alpha is dropped, grey is spread.

    Raises:
        ImageError: the file cannot be read or decoded.
    """
    try:
        return decode(path, keep_damaged=keep_damaged).pixels
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error


def decode(path: Path, *, keep_damaged: bool = False) -> Decoded:
    """As `read_pixels`, but the error is the bare reason, without the path."""
    try:
        data = path.read_bytes()
    except OSError as error:
        raise ImageError(f"the file cannot be read: {error.strerror}") from error
    file, damage = io.BytesIO(data), None
    with open_header(file) as header:
        info = _info(header, len(data))
        try:
            if missing := _missing_end(file, header.format or ""):
                raise ImageError(missing)
            values = _decode(header, data, info.orientation)
        except ImageError as error:
            left = _what_is_left(header, data, info) if keep_damaged else None
            if left is None:
                raise
            values, damage = left, str(error)
    pixels, levels = _to_8_bits(values)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[:, :, None], 3, axis=2)
    if pixels.shape[1::-1] != info.size:
        raise ImageError(
            f"it decodes to {pixels.shape[1]} x {pixels.shape[0]} pixels but its header"
            f" says {info.size[0]} x {info.size[1]}; save it anew"
        )
    return Decoded(np.ascontiguousarray(pixels), levels, damage)


def _decode(header: ImageFile.ImageFile, data: bytes, orientation: int) -> NDArray[Any]:
    match kind := header.format or "":
        case "JPEG":
            return _decode_jpeg(data)
        case "TIFF":  # its readers turn the pixels upright whatever they are told
            return coords.stored_pixels(_decode_tiff(header, data), orientation)
        case "HEIF" | "AVIF":
            return _decode_by_pillow(header, "HEIC" if kind == "HEIF" else kind)
        case _:
            return _decode_by_opencv(data, kind)


def _what_is_left(
    header: ImageFile.ImageFile, data: bytes, info: ImageInfo
) -> NDArray[Any] | None:
    """The values of a damaged file, black or grey where lost; None if that is all."""
    values = None
    try:
        if header.format == "JPEG":
            import simplejpeg

            values = np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=False))
        elif header.format == "TIFF":
            values = coords.stored_pixels(
                _decode_by_opencv(data, "TIFF"), info.orientation
            )
        else:
            values = remaining_values(header)
    except (ImageError, ValueError):
        return None
    return None if values is None or values.min() == values.max() else values


def _decode_jpeg(data: bytes) -> NDArray[Any]:
    """Unlike OpenCV and Pillow, which fill with grey, this tells of lost data."""
    import simplejpeg

    try:
        return np.asarray(simplejpeg.decode_jpeg(data, "RGB", strict=True))
    except ValueError as error:
        warning = str(error)
    if _JPEG_DAMAGE.search(warning) and not _is_padding(data, warning):
        raise ImageError(f"damaged JPEG ({warning}); copy the file again")
    # What else it remarks is harmless, such as an unknown revision, or not for it.
    return _decode_by_opencv(data, "JPEG")


def _is_padding(data: bytes, warning: str) -> bool:
    """Whether libjpeg only remarks bytes that fill up the data before its end."""
    found = re.search(r"(\d+) extraneous bytes before marker 0xd9", warning)
    if found is None:
        return False
    num_bytes, end = int(found[1]), data.rfind(b"\xff\xd9")
    fill = set(data[max(end - num_bytes, 0) : end])
    most = min(_MAX_PADDING_BYTES, len(data) // 64)
    return num_bytes <= _MAX_STRAY_BYTES or (num_bytes <= most and len(fill) == 1)


def _decode_tiff(header: ImageFile.ImageFile, data: bytes) -> NDArray[Any]:
    """By Pillow: OpenCV passes over errors, and darkens colours by their alpha."""
    depths = getattr(header, "tag_v2", {}).get(Base.BitsPerSample, (1,))
    if has_broken_strip(header, data):
        raise ImageError(
            "damaged TIFF (a strip has not its checksum); copy the file again"
        )
    values = _decode_by_pillow(header, "TIFF")
    # of 16-bit colours Pillow keeps the upper 8
    return _decode_by_opencv(data, "TIFF") if depths[:3] == (16,) * 3 else values


def _decode_by_pillow(header: ImageFile.ImageFile, kind: str) -> NDArray[Any]:
    try:
        return values_of(header)
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:
        raise ImageError(
            f"damaged or truncated {kind} ({' '.join(str(error).split())});"
            " copy the file again"
        ) from error


def _decode_by_opencv(data: bytes, kind: str) -> NDArray[Any]:
    import cv2  # here, so that the headers can be read without it

    flags = cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH | cv2.IMREAD_IGNORE_ORIENTATION
    try:
        decoded = cv2.imdecode(np.frombuffer(data, np.uint8), flags)
    except cv2.error as error:
        raise ImageError(f"OpenCV cannot decode this {kind}: {error.err}") from error
    if decoded is None:
        raise ImageError(
            f"damaged {kind}, or a variant that OpenCV cannot decode; save it anew as"
            " an ordinary JPEG or PNG"
        )
    return np.asarray(cv2.cvtColor(decoded, cv2.COLOR_BGR2RGB))


def _to_8_bits(
    values: NDArray[Any],
) -> tuple[Bytes, tuple[float, float] | None]:
    """Values in 0..255, and the lowest and highest one where these were stretched.

    The stretch goes in steps, a power of two wide and from a multiple of a quarter of
    that, so that photographs of one capture mostly have the same.
    """
    if values.dtype == np.uint8:
        return values, None
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0, 0)
    if values.dtype.kind == "u" and (high - low >= _FEW_LEVELS or high == low):
        return (values >> 8).astype(np.uint8), None
    is_share = values.dtype.kind == "f" and low >= 0 and high <= 1
    if is_share:
        start, width = 0.0, 1.0
    else:
        width = 2.0 ** math.ceil(math.log2(max(high - low, 1.0)))
        while (start := low // (width / 4) * (width / 4)) + width <= high:
            width *= 2
    scaled = (values.astype(np.float32) - start) * (256 / width)
    scaled = np.nan_to_num(scaled, nan=0.0)
    return np.clip(scaled, 0, 255).astype(np.uint8), None if is_share else (low, high)
