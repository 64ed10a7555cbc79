"""The exported images and masks: upright in all sizes, or byte by byte as stored."""

from __future__ import annotations

import logging
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from threading import Lock
from typing import Any

import numpy as np
from PIL import Image
from PIL.ExifTags import IFD, Base

from sfmprep.capture.exif import taken_over
from sfmprep.capture.image_file import decode, open_header, read_info
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import read_mask
from sfmprep.config import ExportConfig
from sfmprep.devices import num_cores
from sfmprep.errors import ImageError
from sfmprep.export.taken_over import EarlierImages
from sfmprep.export.targets import BESIDE, Layout
from sfmprep.geometry.undistort import Maps, Undistortion, reduce_mask, reduce_pixels
from sfmprep.threads import thread_pool
from sfmprep.types import Bytes, Mask

_log = logging.getLogger(__name__)

_COPIED = (".jpg", ".jpeg", ".png")
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
class Destination:
    """A folder that images are written to."""

    folder: Path
    layout: Layout
    names: Mapping[str, str]  # original name to that of the file
    made_from: Mapping[str, str] = field(default_factory=dict)  # see `taken_over`
    earlier: EarlierImages | None = None

    def image_folder(self, factor: int = 1) -> Path:
        """Where images go that are reduced by `factor`."""
        return self.folder / ("images" if factor == 1 else f"images_{factor}")

    def mask_folder(self, factor: int = 1) -> Path:
        """Where their masks go."""
        match self.layout.masks:
            case "appended":
                return self.folder / "colmap_masks"
            case "beside":
                return self.image_folder(factor)
        return self.folder / ("masks" if factor == 1 else f"masks_{factor}")

    def image_path(self, name: str, factor: int = 1) -> Path:
        """The file of the image with this original name."""
        return self.image_folder(factor) / self.names[name]

    def mask_path(self, name: str, factor: int = 1) -> Path:
        """The file of its mask."""
        file = PurePosixPath(self.names[name])
        match self.layout.masks:
            case "appended":
                stem = file.name
            case "beside":
                stem = file.stem + BESIDE
            case _:
                stem = file.stem
        return self.mask_folder(factor) / f"{stem}.png"

    def take_over(self, name: str, config: ExportConfig, *, with_masks: bool) -> bool:
        """Takes all files of an image from the earlier dataset, if they are alike."""
        if self.earlier is None or name not in self.made_from:
            return False
        if self.earlier.made_from.get(self.names[name]) != self.made_from[name]:
            return False
        files = self.files(name, config, with_masks=with_masks)
        return self.earlier.take({f.relative_to(self.folder): f for f in files})

    def files(self, name: str, config: ExportConfig, *, with_masks: bool) -> list[Path]:
        """All files of an image; masks of photographs as stored may be missing."""
        stored = self.layout.pixels == "stored"
        files = []
        for factor in (1,) if stored else (1, *config.downscales):
            files.append(self.image_path(name, factor))
            if with_masks and self.layout.masks != "alpha":
                files.append(self.mask_path(name, factor))
        return files


@dataclass(frozen=True, kw_only=True, eq=False)
class ImageWriter:
    """Writes images, and masks where any image has one, below its destinations."""

    images: ImageSet
    destinations: Sequence[Destination]
    config: ExportConfig
    with_masks: bool

    def write(
        self, names: Sequence[str], undistortions: Mapping[str, Undistortion]
    ) -> Iterator[str]:
        """Writes one image after the other in threads and yields the original names.

        Every photograph is decoded once. No more maps are in memory than threads.

        Args:
            names: Original names; may be empty.
            undistortions: By original name, all of `names`; empty if every destination
                takes the photographs as they are stored.

        Raises:
            ImageError: A file or a mask cannot be read, or has not the size it had.
            OSError: A file cannot be written.
        """
        self.make_folders()
        maps = _SharedMaps(undistortions.values())
        cameras = {name: view.target.camera_id for name, view in undistortions.items()}
        with thread_pool(min(_MAX_THREADS, num_cores())) as pool:
            yield from pool.map(
                lambda name: self._write_one(name, undistortions.get(name), maps),
                sorted(names, key=lambda name: cameras.get(name, 0)),
            )

    def make_folders(self) -> None:
        """Makes the folders that images and masks go into."""
        for destination in self.destinations:
            stored = destination.layout.pixels == "stored"
            for factor in (1,) if stored else (1, *self.config.downscales):
                destination.image_folder(factor).mkdir(parents=True, exist_ok=True)
                if self.with_masks and destination.layout.masks != "alpha":
                    destination.mask_folder(factor).mkdir(exist_ok=True)

    def files(self, name: str) -> list[Path]:
        """Where an image and its masks go; see `Destination.files`."""
        return [
            file
            for destination in self.destinations
            for file in destination.files(name, self.config, with_masks=self.with_masks)
        ]

    def not_taken_over(self, name: str) -> list[Destination]:
        """The destinations that cannot have an image from an earlier dataset."""
        return [
            destination
            for destination in self.destinations
            if not destination.take_over(name, self.config, with_masks=self.with_masks)
        ]

    def _write_one(
        self, name: str, view: Undistortion | None, maps: _SharedMaps
    ) -> str:
        missing = self.not_taken_over(name)
        if not missing:
            if view is not None:
                maps.drop(view)
            return name
        path = self.images.path(name)
        _expect_size(
            *(path, self.images.infos[name].size),
            keep_damaged=self.images.keep_damaged,
        )
        mask = read_mask(self.images, name) if self.with_masks else None
        upright = []
        for destination in missing:
            if destination.layout.pixels != "stored":
                upright.append(destination)
                continue
            shutil.copyfile(path, destination.image_path(name))
            if mask is not None:
                _save_png(_grey(mask), destination.mask_path(name))
        if upright and view is not None:
            self._write_upright(name, mask, view, maps, upright)
        elif view is not None:
            maps.drop(view)
        return name

    def _write_upright(
        self,
        name: str,
        mask: Mask | None,
        view: Undistortion,
        maps: _SharedMaps,
        destinations: Sequence[Destination],
    ) -> None:
        path = self.images.path(name)
        pixels, damage = self._decoded(name)
        used = np.ones(pixels.shape[:2], np.bool_) if mask is None else mask
        with maps.of(view) as view_maps:
            if view_maps is not None:
                pixels = view.warp(pixels, view_maps)
                used = view.warp_mask(used, view_maps)
        untouched = (
            view.is_identity
            and self.images.infos[name].orientation == 1
            and damage is None  # what is kept of it is not what trainers would read
            and self.images.infos[name].gps is None  # which a copy would tell
        )
        with path.open("rb") as file, open_header(file) as source:
            saved = _taken_over(source, path)
            copied = [s for s in _COPIED if _is_plain_rgb(source, path, s)]
        for factor in (1, *self.config.downscales):
            width, height = (side // factor for side in view.target_size)
            reduced = pixels if factor == 1 else reduce_pixels(pixels, (width, height))
            grey = _grey(reduce_mask(used, factor))
            for destination in destinations:
                target = destination.image_path(name, factor)
                if destination.layout.masks == "alpha":
                    _save_png(np.dstack([reduced, grey]), target, saved)
                    continue
                if untouched and factor == 1 and target.suffix.lower() in copied:
                    shutil.copyfile(path, target)
                else:
                    self._save(reduced, target, saved)
                if self.with_masks:
                    is_inverted = destination.layout.masks == "inverted"
                    mask_path = destination.mask_path(name, factor)
                    _save_png(255 - grey if is_inverted else grey, mask_path)

    def _decoded(self, name: str) -> tuple[Bytes, str | None]:
        path = self.images.path(name)
        try:
            found = decode(path, keep_damaged=self.images.keep_damaged)
        except ImageError as error:
            raise ImageError(f"{path}: {error}") from error
        return found.pixels, found.damage

    def _save(self, pixels: Bytes, path: Path, saved: Mapping[str, Any]) -> None:
        if path.suffix.lower() == ".png":
            _save_png(pixels, path, saved)
            return
        quality = self.config.jpeg_quality
        Image.fromarray(pixels).save(
            path, format="JPEG", quality=quality, subsampling="4:4:4", **saved
        )


class _SharedMaps:
    """The maps of cameras at work: each made once, and dropped after its last use."""

    def __init__(self, views: Iterable[Undistortion]) -> None:
        self._left = Counter(views)
        self._locks = {view: Lock() for view in self._left}
        self._maps: dict[Undistortion, Maps] = {}

    @contextmanager
    def of(self, view: Undistortion) -> Iterator[Maps | None]:
        """The maps of `view`, or None where its pixels stay where they are."""
        if view.is_identity:
            yield None
            return
        with self._locks[view]:
            if view not in self._maps:
                self._maps[view] = view.maps()
            maps = self._maps[view]
        yield maps
        self.drop(view)

    def drop(self, view: Undistortion) -> None:
        """Notes that one image of `view` is done; what nobody needs any more goes."""
        with self._locks[view]:
            self._left[view] -= 1
            if not self._left[view]:
                self._maps.pop(view, None)


def _expect_size(path: Path, size: tuple[int, int], *, keep_damaged: bool) -> None:
    """Raises ImageError unless the file still has the (W, H) `size` of its scan."""
    try:
        found = read_info(path, keep_damaged=keep_damaged).size
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    if found != size:
        raise ImageError(
            f"{path} is {found[0]} x {found[1]} pixels now but was {size[0]} x "
            f"{size[1]} before; the file changed since the reconstruction: run it again"
        )


def _grey(mask: Mask) -> Bytes:
    """White where a mask is used, black where it is not."""
    return mask.astype(np.uint8) * np.uint8(255)


def _save_png(
    pixels: Bytes, path: Path, saved: Mapping[str, Any] | None = None
) -> None:
    # Pillow's own 6 takes 2.5 times as long on photographs and saves 3 %.
    Image.fromarray(pixels).save(path, format="PNG", compress_level=4, **(saved or {}))


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
        after = taken_over(before, _CAMERA_TAGS, _EXPOSURE_TAGS)
    except Exception as error:  # damaged EXIF makes Pillow raise almost anything
        _log.warning("%s: damaged EXIF is not taken over: %s", path, error)
    else:
        if len(after) or len(after.get_ifd(IFD.Exif)):
            saved["exif"] = after
    # A profile of grey or CMYK values says nothing about the RGB they were turned to.
    if source.mode in ("RGB", "RGBA") and "icc_profile" in source.info:
        saved["icc_profile"] = source.info["icc_profile"]
    return saved
