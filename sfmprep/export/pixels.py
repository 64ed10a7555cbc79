"""The exported images: undistorted, upright, in full and reduced size."""

from __future__ import annotations

import logging
import math
import os
import shutil
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import IFD, Base

from sfmprep.config import ExportConfig
from sfmprep.errors import ImageError
from sfmprep.export.undistort import Maps, Undistortion, reduce_pixels
from sfmprep.image_file import open_header, read_pixels
from sfmprep.images import ImageSet

_log = logging.getLogger(__name__)

_PNG_DEPTH = 24  # where a PNG says how many bits a sample has
_MAX_THREADS = 8  # each holds a few images in memory
# What a trainer may compensate exposure with. Nothing else is taken over: sizes and
# orientation would be wrong, and GPS positions should not spread with a dataset.
_CAMERA_TAGS = (Base.Make, Base.Model)
_EXPOSURE_TAGS = (
    *(Base.ExposureTime, Base.FNumber, Base.ISOSpeedRatings, Base.ExposureBiasValue),
    *(Base.BrightnessValue, Base.FocalLength, Base.FocalLengthIn35mmFilm),
    Base.DateTimeOriginal,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageWriter:
    """Writes `images/` and `images_2/`, ... below `folder`, which need not exist."""

    folder: Path
    images: ImageSet
    names: Mapping[str, str]  # original to exported
    config: ExportConfig

    def write(self, undistortions: Mapping[str, Undistortion]) -> Iterator[str]:
        """Writes one image after the other in threads and yields the original names.

        Only one camera's map is in memory at a time.

        Args:
            undistortions: By original name; `names` has them all.

        Raises:
            ImageError: A file cannot be read or has not the size of its camera.
            OSError: A file cannot be written.
        """
        for factor in (1, *self.config.downscales):
            self._folder(factor).mkdir(parents=True)
        by_camera = sorted(
            undistortions, key=lambda name: undistortions[name].target.camera_id
        )
        with ThreadPoolExecutor(min(_MAX_THREADS, os.cpu_count() or 1)) as pool:
            for view, group in groupby(by_camera, key=undistortions.__getitem__):
                yield from self._write_group(pool, view, list(group))

    def _write_group(
        self, pool: ThreadPoolExecutor, view: Undistortion, names: list[str]
    ) -> Iterator[str]:
        maps = None if view.is_identity else view.maps()
        return pool.map(lambda name: self._write_one(name, view, maps), names)

    def _write_one(self, name: str, view: Undistortion, maps: Maps | None) -> str:
        path = self.images.path(name)
        target = self._folder(1) / self.names[name]
        stored = read_pixels(path)
        if stored.shape[:2] != (view.source.height, view.source.width):
            raise ImageError(
                f"{path} decodes to {stored.shape[1]} x {stored.shape[0]} pixels but "
                f"its camera has {view.source.width} x {view.source.height}; the file "
                "changed since the reconstruction: run it again"
            )
        with path.open("rb") as file, open_header(file) as source:
            plain = _is_plain_rgb(source, path, target.suffix)
            saved = _taken_over(source, path)
        if plain and view.is_identity and self.images.infos[name].orientation == 1:
            pixels = stored
            shutil.copyfile(path, target)
        else:
            pixels = stored if maps is None else view.warp(stored, maps)
            self._save(pixels, target, saved)
        for factor in self.config.downscales:
            width, height = (side // factor for side in view.target_size)
            reduced = reduce_pixels(pixels, (width, height))
            self._save(reduced, self._folder(factor) / self.names[name], saved)
        return name

    def _save(
        self, pixels: NDArray[np.uint8], path: Path, saved: Mapping[str, Any]
    ) -> None:
        if path.suffix.lower() == ".png":
            # Pillow's own 6 takes 2.5 times as long on photographs and saves 3 %.
            options: dict[str, Any] = {"format": "PNG", "compress_level": 4}
        else:
            options = {
                "format": "JPEG",
                "quality": self.config.jpeg_quality,
                "subsampling": "4:4:4",
            }
        Image.fromarray(pixels).save(path, **options, **saved)

    def _folder(self, factor: int) -> Path:
        return self.folder / ("images" if factor == 1 else f"images_{factor}")


def _is_plain_rgb(source: Image.Image, path: Path, suffix: str) -> bool:
    """Whether every trainer reads this file as 8-bit RGB under a name with `suffix`."""
    if source.mode != "RGB":
        return False
    if suffix.lower() != ".png":
        return source.format in ("JPEG", "MPO")
    with path.open("rb") as file:
        header = file.read(_PNG_DEPTH + 1)
    # Pillow calls 16-bit RGB "RGB" too.
    return source.format == "PNG" and header[_PNG_DEPTH] == 8


def _taken_over(source: Image.Image, path: Path) -> dict[str, Any]:
    """The exposure and the colour space of a file, as options of `Image.save`."""
    saved: dict[str, Any] = {}
    try:
        # Not `source.getexif()`, which decodes all pixels of a PNG without EXIF.
        before = Image.Image.getexif(source)
        exposure = before.get_ifd(IFD.Exif)
    except Exception as error:  # damaged EXIF makes Pillow raise almost anything
        _log.warning("%s: damaged EXIF is not taken over: %s", path, error)
    else:
        after = Image.Exif()
        for tags, old, new in (
            (_CAMERA_TAGS, before, after),
            (_EXPOSURE_TAGS, exposure, after.get_ifd(IFD.Exif)),
        ):
            new.update({tag: old[tag] for tag in tags if _can_be_saved(old.get(tag))})
        if len(after) or len(after.get_ifd(IFD.Exif)):
            saved["exif"] = after
    # A profile of grey or CMYK values says nothing about the RGB they were turned to.
    if source.mode in ("RGB", "RGBA") and "icc_profile" in source.info:
        saved["icc_profile"] = source.info["icc_profile"]
    return saved


def _can_be_saved(value: object) -> bool:
    """Whether this is a text or a number as EXIF holds it; damaged files have 1/0."""
    if isinstance(value, str):
        return True
    try:
        return math.isfinite(value)  # type: ignore[arg-type]
    except (TypeError, ValueError, ZeroDivisionError):
        return False
