"""RAW files: developed to JPEG, once; needs rawpy, the extra `raw`."""

from __future__ import annotations

from pathlib import Path

from PIL import Image
from PIL.ExifTags import Base

from sfmprep.capture.exif import taken_over
from sfmprep.errors import ImageError
from sfmprep.files import not_written

_QUALITY = 97
_ORIENTATIONS = {0: 1, 3: 3, 5: 8, 6: 6}  # of LibRaw's `flip`
_EXIF_TAGS = (
    *(Base.ExposureTime, Base.FNumber, Base.ISOSpeedRatings),
    *(Base.DateTimeOriginal, Base.SubsecTimeOriginal, Base.OffsetTimeOriginal),
    *(Base.FocalLength, Base.FocalLengthIn35mmFilm, Base.LensModel),
    Base.BodySerialNumber,
)


def develop_raw(path: Path, target: Path) -> None:
    """Writes a RAW file as a JPEG in the camera's white balance, as stored.

    The brightness is that of the sensor: it is not stretched for each picture, so the
    same light stays the same from one to the next. EXIF's camera, lens, exposure,
    position and orientation are taken over where the RAW file is a TIFF, as most are.

    Args:
        path: The RAW file.
        target: The JPEG; it is replaced, and its folder is made.

    Raises:
        ImageError: rawpy is not installed, or cannot read it; the message is the bare
            reason.
        StoreError: the JPEG cannot be written.
    """
    try:
        import rawpy
    except ImportError as error:
        raise ImageError(
            "RAW cannot be read; install sfmprep[raw], or develop it to JPEG or to"
            " TIFF of 16 bits"
        ) from error
    try:
        with rawpy.imread(str(path)) as raw:
            flip = raw.sizes.flip
            pixels = raw.postprocess(
                use_camera_wb=True, no_auto_bright=True, user_flip=0
            )
    except rawpy.LibRawError as error:
        raise ImageError(
            f"rawpy cannot read it ({_text(error)}); copy the file again, or develop it"
            " to JPEG"
        ) from error
    exif = _exif_of(path)
    exif[Base.Orientation] = _ORIENTATIONS.get(flip, 1)
    part = target.with_name(f"{target.name}.part")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(
            part, format="JPEG", quality=_QUALITY, subsampling="4:4:4", exif=exif
        )
        part.replace(target)
    except OSError as error:
        raise not_written(target, error) from error


def _text(error: Exception) -> str:
    first = error.args[0] if error.args else ""
    return first.decode() if isinstance(first, bytes) else str(first)


def _exif_of(path: Path) -> Image.Exif:
    """What EXIF of a RAW file says of camera, lens, exposure and position."""
    try:
        with path.open("rb") as file:
            before = Image.Exif()
            before.load_from_fp(file)
            camera = (Base.Make, Base.Model)
            return taken_over(before, camera, _EXIF_TAGS, with_gps=True)
    except Exception:  # no TIFF, or damaged, where Pillow raises almost anything
        return Image.Exif()
