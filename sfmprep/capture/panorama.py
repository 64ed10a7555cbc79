"""A 360° photograph becomes views of an ordinary lens, which share a point.

The rig's axes are those of a camera that looks at the middle of the picture: x right,
y down, z forward. Longitude grows to the right, latitude up.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from PIL.ExifTags import IFD, Base

from sfmprep.capture.exif import Area, sphere_area, taken_over
from sfmprep.capture.image_file import ImageInfo, decode, open_header, read_info
from sfmprep.capture.round_picture import closes, shows_two_lenses
from sfmprep.errors import ImageError
from sfmprep.files import not_written
from sfmprep.types import Bytes, Float32, Float64, Mask

Kind = TypeVar("Kind", np.uint8, np.bool_)
Cut = Literal["auto", "always", "never"]
Layout = Literal["mono", "top-bottom", "left-right"]  # of spheres for two eyes

# EXIF holds focal lengths on 35 mm film as whole numbers: this one is told exactly.
FOCAL_35MM = 15
_FOCAL_SIDES = FOCAL_35MM * math.sqrt(2) / math.hypot(36, 24)  # in sides of the view
_MULTIPLE = 8  # of the side, for reduced copies
_MIN_WIDTH = 2048  # of a picture that nothing but its shape calls a panorama
_MAX_SIDE = 32767  # of a picture that OpenCV can warp
_QUALITY = 97
_WHOLE = Area(0.0, 0.0, 1.0, 1.0)
_MAX_STRETCH = 0.02  # of a sphere's shape of 2:1
_LEAST_SHARE = 0.2  # of a view that a part of a sphere reaches
_EDGE = 2  # pixels at its border, into which cubic interpolation mixes the other one
_EXIF_TAGS = (  # no serial number: each view has its own walk, by its folder
    *(Base.ExposureTime, Base.FNumber, Base.ISOSpeedRatings),
    *(Base.DateTimeOriginal, Base.SubsecTimeOriginal, Base.OffsetTimeOriginal),
)


@dataclass(frozen=True)
class View:
    """One of the views that every panorama is cut into."""

    yaw_deg: float  # to the right
    pitch_deg: float  # up

    @property
    def name(self) -> str:
        """Its folder, such as `y090p-20`."""
        return f"y{self.yaw_deg:03.0f}p{self.pitch_deg:+03.0f}"

    @property
    def rig_from_view(self) -> Float64:
        """The rotation [3, 3] of its directions into those of the rig."""
        yaw, pitch = math.radians(self.yaw_deg), math.radians(self.pitch_deg)
        turned = np.array(
            [
                (math.cos(yaw), 0, math.sin(yaw)),
                (0, 1, 0),
                (-math.sin(yaw), 0, math.cos(yaw)),
            ]
        )
        raised = np.array(
            [
                (1, 0, 0),
                (0, math.cos(pitch), -math.sin(pitch)),
                (0, math.sin(pitch), math.cos(pitch)),
            ]
        )
        both: Float64 = turned @ raised
        return both


@dataclass(frozen=True, kw_only=True)
class Panorama:
    """A 360° photograph, and the photographs that were cut from it."""

    name: str
    side: int  # pixels of each view
    views: tuple[str, ...]  # names, in the order of `views_of`; of a part not all
    directions: tuple[tuple[float, float], ...] = ()  # of each, yaw and pitch, degrees
    film: str | None = None  # of which it is a frame

    def to_json(self) -> dict[str, Any]:
        """As JSON can hold it; `from_json` reads it back."""
        return asdict(self)

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Panorama:
        """What `to_json` has written."""
        directions = tuple((yaw, pitch) for yaw, pitch in data.get("directions", ()))
        lists = {"views": tuple(data["views"]), "directions": directions}
        return cls(**{**data, **lists})


def views_of(pitches_deg: Sequence[float], per_row: int) -> list[View]:
    """The views, row by row; every other row is turned by half a step."""
    step = 360 / per_row
    return [
        View((number + row % 2 / 2) * step, pitch)
        for row, pitch in enumerate(pitches_deg)
        for number in range(per_row)
    ]


def focal_px(side: int) -> float:
    """The focal length of a view with so many pixels a side."""
    return _FOCAL_SIDES * side


def is_cut(path: Path, which: Cut) -> bool:
    """Whether an image is a sphere or a told part of one, to be cut.

    One that nothing but its shape of 2:1 calls so is looked at, if it has no focal
    length: see `closes`. So are the two lenses of a 360° camera, which `cut_panorama`
    names. False for one that is damaged.
    """
    if which == "never":
        return False
    try:
        with path.open("rb") as file, open_header(file) as header:
            width, height = header.size
            if width != 2 * height and sphere_area(header) is None:
                return False
        info = read_info(path)
    except (ImageError, OSError):
        return False  # whoever reads it says what is wrong
    if _area(info) is None:
        return False
    if which == "always" or info.is_panorama or info.area is not None:
        return True
    if width < _MIN_WIDTH or info.focal_length_mm or info.focal_length_35mm:
        return False
    try:
        pixels = decode(path).pixels
    except ImageError:
        return False
    return closes(pixels) or shows_two_lenses(pixels)


def cut_panorama(
    path: Path,
    name: str,
    folder: Path,
    views: Sequence[View],
    *,
    layout: Layout | None = None,
    mask: Mask | None = None,
    keep_damaged: bool = False,
) -> Panorama:
    """Writes the views of a panorama as `panorama-SIDE/VIEW/NAME`, replacing old ones.

    They are sharp as the panorama is in its middle. Exposure, time and GPS position are
    taken over. With a mask, and of a part of a sphere, they are PNG whose transparency
    says what is used, else JPEG. Views that a part hardly reaches are left out.

    Args:
        path: An equirectangular picture of the whole sphere, or of a part by its XMP.
        name: What it is called, POSIX.
        folder: Where photographs go.
        views: Which.
        layout: Where the spheres for two eyes lie; that of the left eye is used. None
            where nobody has seen yet that it is a sphere.
        mask: [H, W] of the picture, True = use; None to use all of it.
        keep_damaged: Use what is left of a damaged file.

    Raises:
        ImageError: it cannot be decoded, is turned by EXIF, shows no part of a sphere
            that any view reaches, shows two lenses, or is too large to be warped; the
            message is the bare reason.
        StoreError: the views cannot be written.
    """
    pixels = _left_eye(decode(path, keep_damaged=keep_damaged).pixels, layout or "mono")
    mask = mask if mask is None else _left_eye(mask, layout or "mono")
    height, width = pixels.shape[:2]
    info = read_info(path, keep_damaged=keep_damaged)
    if info.orientation != 1:
        raise ImageError(
            "a 360° panorama that EXIF turns, which no camera writes; save it upright"
        )
    if layout is None and not info.is_panorama and shows_two_lenses(pixels):
        raise ImageError(
            "it shows the two lenses of a 360° camera, not joined yet; export it as a"
            " 360° photograph with the camera's program"
        )
    if width > _MAX_SIDE:
        raise ImageError(
            f"a 360° panorama of {width} pixels, where {_MAX_SIDE} are the most that"
            " can be cut; reduce it"
        )
    area = part_of_sphere(info)
    full_width, full_height = width / area.width, height / area.height
    side = int(full_width / (2 * math.pi * _FOCAL_SIDES)) // _MULTIPLE * _MULTIPLE
    if side < _MULTIPLE:
        raise ImageError(f"a 360° panorama of {width} x {height} pixels is too small")
    if area != _WHOLE and mask is None:
        mask = np.ones((height, width), np.bool_)
    suffix = ".jpg" if mask is None else ".png"
    file = PurePosixPath(name).with_suffix(suffix)
    exif = _exif_of(path)
    written, directions = list[str](), list[tuple[float, float]]()
    for view in views:
        place = f"panorama-{side}/{view.name}/{file}"
        columns, rows = _maps(view, side, full_width, full_height)
        columns -= area.left * full_width
        rows -= area.top * full_height
        inside = _inside(columns, rows, (width, height), area)
        if inside.mean() < _LEAST_SHARE:
            continue
        cut = _warp(pixels, columns, rows, smooth=True)
        if mask is not None:
            grey = mask.astype(np.uint8) * np.uint8(255)
            shown = _warp(grey, columns, rows, smooth=False)
            cut = np.dstack([cut, np.where(inside, shown, np.uint8(0))])
        _save(cut, folder / place, exif)
        written.append(place)
        directions.append((view.yaw_deg, view.pitch_deg))
    if not written:
        raise ImageError(
            "a part of a 360° panorama that no view reaches; let views look there, for"
            " example --set panorama.pitches_deg=[60,0,-60]"
        )
    return Panorama(
        name=name, side=side, views=tuple(written), directions=tuple(directions)
    )


def _left_eye(pixels: NDArray[Kind], layout: Layout) -> NDArray[Kind]:
    """The half [H, W] or [H, W, 3] of a picture that the left eye sees."""
    height, width = pixels.shape[:2]
    match layout:
        case "mono":
            return pixels
        case "top-bottom":
            return pixels[: height // 2]
        case "left-right":
            return pixels[:, : width // 2]


def part_of_sphere(info: ImageInfo) -> Area:
    """Which part of a sphere a panorama shows; all of it where that is not told."""
    return _area(info) or _WHOLE


def _area(info: ImageInfo) -> Area | None:
    """Which part of a sphere a picture shows; None where its shape contradicts that."""
    width, height = info.size
    area = info.area or _WHOLE
    shape = (width / area.width) / (2 * height / area.height)
    return area if abs(shape - 1) < _MAX_STRETCH else None


def _inside(columns: Float32, rows: Float32, size: tuple[int, int], area: Area) -> Mask:
    """Which pixels of a view a panorama shows, but for those next to its border."""
    (width, height), edge = size, _EDGE
    is_there = np.ones(rows.shape, np.bool_)
    if area.height < 1:
        is_there &= (rows >= edge) & (rows <= height - 1 - edge)
    if area.width < 1:
        is_there &= (columns >= edge) & (columns <= width - 1 - edge)
    return is_there


def panorama_rigs(
    panoramas: Sequence[Panorama], views: Sequence[View]
) -> list[dict[str, Any]]:
    """The rigs of views as COLMAP's `rig_config.json` has them, one for each size.

    Args:
        panoramas: Cut into these views, or some of them; may be empty.
        views: One or more; the first that any panorama of a size reaches is the camera
            that the others are relative to.
    """
    rigs: list[dict[str, Any]] = []
    for side in sorted({panorama.side for panorama in panoramas}):
        cameras: list[dict[str, Any]] = []
        reached = {
            PurePosixPath(name).parts[1]
            for panorama in panoramas
            if panorama.side == side
            for name in panorama.views
        }
        first, *_ = used = [view for view in views if view.name in reached]
        for view in used:
            view_from_first = view.rig_from_view.T @ first.rig_from_view
            camera: dict[str, Any] = {
                "image_prefix": f"panorama-{side}/{view.name}/",
                "camera_model_name": "SIMPLE_PINHOLE",
                "camera_params": [focal_px(side), side / 2, side / 2],
            }
            if view is first:
                camera["ref_sensor"] = True
            else:
                camera["cam_from_rig_rotation"] = _quaternion(view_from_first)
                camera["cam_from_rig_translation"] = [0.0, 0.0, 0.0]
            cameras.append(camera)
        rigs.append({"cameras": cameras})
    return rigs


def _quaternion(rotation: Float64) -> list[float]:
    """A rotation as w, x, y, z."""
    # here, so that a folder can be scanned without it
    from scipy.spatial.transform import Rotation

    x, y, z, w = Rotation.from_matrix(rotation).as_quat().tolist()
    return [w, x, y, z]


def _maps(
    view: View, side: int, width: float, height: float
) -> tuple[Float32, Float32]:
    """Where each pixel of a view lies in the panorama, in OpenCV's pixels."""
    centres = (np.arange(side) + 0.5 - side / 2) / focal_px(side)
    x, y = np.meshgrid(centres, centres)
    rays = np.dstack([x, y, np.ones_like(x)]) @ view.rig_from_view.T
    longitude = np.arctan2(rays[..., 0], rays[..., 2])
    latitude = np.arctan2(-rays[..., 1], np.hypot(rays[..., 0], rays[..., 2]))
    columns = (longitude / (2 * np.pi) + 0.5) * width - 0.5
    rows = (0.5 - latitude / np.pi) * height - 0.5
    return columns.astype(np.float32), rows.astype(np.float32)


def _warp(pixels: Bytes, columns: Float32, rows: Float32, *, smooth: bool) -> Bytes:
    import cv2  # here, so that a folder can be scanned without it

    how = cv2.INTER_CUBIC if smooth else cv2.INTER_NEAREST
    # The left and the right border are neighbours; no view reaches the other two, or
    # what lies beyond a border is left out.
    warped = cv2.remap(pixels, columns, rows, how, borderMode=cv2.BORDER_WRAP)
    return warped.astype(np.uint8, copy=False)


def _save(pixels: Bytes, path: Path, exif: Image.Exif) -> None:
    part = path.with_name(f"{path.name}.part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(pixels)
        if path.suffix == ".png":
            picture.save(part, format="PNG", compress_level=4, exif=exif)
        else:
            picture.save(
                part, format="JPEG", quality=_QUALITY, subsampling="4:4:4", exif=exif
            )
        part.replace(path)
    except OSError as error:
        raise not_written(path, error) from error


def _exif_of(path: Path) -> Image.Exif:
    """What EXIF of a panorama says of exposure, time and place, and the views' lens."""
    try:
        with path.open("rb") as file, open_header(file) as header:
            before = Image.Image.getexif(header)
            after = taken_over(before, (), _EXIF_TAGS, with_gps=True)
    except Exception:  # damaged EXIF makes Pillow raise almost anything
        after = Image.Exif()
    after[Base.Make], after[Base.Model] = "sfmprep", "view of a panorama"
    after.get_ifd(IFD.Exif)[Base.FocalLengthIn35mmFilm] = FOCAL_35MM
    return after
