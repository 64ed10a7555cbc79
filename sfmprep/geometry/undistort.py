"""From stored, distorted pixels to the upright ones that are exported, and back.

`Undistortion` owns both directions of the map, so pixels, masks, observations and the
camera that is written cannot disagree. The exported camera is a pinhole; or, where
the lens is kept, COLMAP's OPENCV or OPENCV_FISHEYE with the distortion of the source,
turned with the image. Coordinates are COLMAP pixels in float64.
"""

from __future__ import annotations

import logging
import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfmprep import coords
from sfmprep.errors import ConfigError, ReconstructionError
from sfmprep.types import Bytes, Float64, Mask

_log = logging.getLogger(__name__)

Maps = tuple[NDArray[np.int16], NDArray[np.uint16]]

_CENTRED_PX = 0.01  # a principal point this close to the middle counts as there
_STRAIGHT_PX = 0.001  # less distortion than this anywhere is none
_INVERTED_PX = 0.01
_MIN_KEPT = 0.5  # of width and of height, when a view is cropped to be centred
_SUBPIXELS = cv2.INTER_TAB_SIZE  # of OpenCV's fixed-point maps, each way
_CHUNK = 1 << 18  # pixels whose map is evaluated at once: some 20 MB
# Beyond 60 degrees off the axis a pinhole image is stretched more than fourfold.
_MAX_HALF_VIEW = math.radians(60)
_MUCH_LOST = 0.2  # share of the stored pixels
_FISHEYE = "OPENCV_FISHEYE"
# What the distortion of each model is called by trainers. Those that are missing have
# terms that OPENCV and OPENCV_FISHEYE have not.
_KEPT_AS = {
    **dict.fromkeys(("SIMPLE_PINHOLE", "PINHOLE", "SIMPLE_RADIAL"), "OPENCV"),
    **dict.fromkeys(("RADIAL", "OPENCV", "FULL_OPENCV"), "OPENCV"),
    **dict.fromkeys(("SIMPLE_FISHEYE", "FISHEYE", "SIMPLE_RADIAL_FISHEYE"), _FISHEYE),
    **dict.fromkeys(("RADIAL_FISHEYE", "OPENCV_FISHEYE"), _FISHEYE),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Undistortion:
    """One camera's map to the upright camera that it is exported as."""

    source: pycolmap.Camera  # of the file on disk, any perspective model
    target: pycolmap.Camera  # PINHOLE, OPENCV or OPENCV_FISHEYE
    orientation: int  # the turn from source to target: EXIF 1, 3, 6 or 8

    @property
    def target_size(self) -> tuple[int, int]:
        """(W, H) of the exported image."""
        return self.target.width, self.target.height

    @cached_property
    def is_identity(self) -> bool:
        """Whether the exported pixels are the stored ones."""
        return (
            self.orientation == 1
            and (self.keeps_lens or _is_pinhole(self.source))
            and self.target_size == (self.source.width, self.source.height)
            and np.allclose(
                self.source.calibration_matrix(),
                self.target.calibration_matrix(),
                rtol=0,
                atol=_CENTRED_PX,
            )
        )

    @cached_property
    def keeps_lens(self) -> bool:
        """Whether the exported image has the distortion of the stored one."""
        return self.target.model_name != "PINHOLE"

    @cached_property
    def shown_share(self) -> float:
        """The share of the stored pixels that the exported image shows, 0..1."""
        width, height = self.source.width, self.source.height
        x, y = ((np.arange(64) + 0.5) / 64 * side for side in (width, height))
        xy = self.target_xy(np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2))
        return float(((xy >= 0) & (xy <= self.target_size)).all(axis=1).mean())

    def target_xy(self, xy: Float64) -> Float64:
        """Maps stored pixels [N, 2] to exported ones; NaN where there are none.

        pycolmap returns some ray even where a distortion cannot be inverted, such as
        90 degrees off a fisheye's axis; those that do not lead back are NaN here.
        """
        points = np.asarray(xy, np.float64).reshape(-1, 2)
        turn = coords.upright_matrix(self.orientation)
        if self.keeps_lens:
            off_axis = (points - self._source_principal) @ turn.T
            kept: Float64 = off_axis * self._scale + self._principal
            return kept
        rays = np.asarray(self.source.cam_ray_from_img(points))
        off = np.abs(np.asarray(self.source.img_from_cam(rays)) - points)
        rays[~(off < _INVERTED_PX).all(axis=1)] = np.nan
        turned: Float64 = (rays[:, :2] / rays[:, 2:]) @ turn.T
        return turned * self._focal + self._principal

    def source_xy(self, xy: Float64) -> Float64:
        """The inverse of `target_xy`; NaN where the source camera sees nothing."""
        points = np.asarray(xy, np.float64).reshape(-1, 2)
        turn = coords.upright_matrix(self.orientation)
        scale = self._scale if self.keeps_lens else self._focal
        # Not `@`: a matrix product this thin waits for BLAS threads most of the time.
        off_axis: Float64 = np.einsum(
            "ni,ij->nj", (points - self._principal) / scale, turn
        )
        if self.keeps_lens:
            return off_axis + self._source_principal
        rays = np.column_stack([off_axis, np.ones(len(points))])
        return np.asarray(self.source.img_from_cam(rays))

    def warp(self, pixels: Bytes, maps: Maps) -> Bytes:
        """Resamples stored pixels [H, W, 3] to exported ones, bicubic."""
        step = self._reduction
        if step > 1:
            height, width = (side // step for side in pixels.shape[:2])
            whole = pixels[: height * step, : width * step]
            pixels = reduce_pixels(whole, (width, height))
        flags, border = cv2.INTER_CUBIC, cv2.BORDER_REPLICATE
        return np.asarray(cv2.remap(pixels, *maps, flags, borderMode=border), np.uint8)

    def warp_mask(self, mask: Mask, maps: Maps) -> Mask:
        """Resamples a stored mask [H, W] as `warp` does pixels, to the nearest one."""
        reduced = reduce_mask(mask, self._reduction)
        whole, fraction = maps
        # Not `cv2.remap`: with such maps its INTER_NEAREST takes another pixel.
        column = whole[..., 0] + (fraction % _SUBPIXELS >= _SUBPIXELS // 2)
        row = whole[..., 1] + (fraction // _SUBPIXELS >= _SUBPIXELS // 2)
        height, width = reduced.shape
        nearest: Mask = reduced[row.clip(0, height - 1), column.clip(0, width - 1)]
        return nearest

    def maps(self) -> Maps:
        """Which stored pixel each exported one shows, for `warp`; 6 bytes a pixel."""
        width, height = self.target_size
        table = np.empty((height, width, 2), np.float32)
        rows = max(1, _CHUNK // width)
        columns = np.arange(width) + 0.5
        for top in range(0, height, rows):
            lines = np.arange(top, min(top + rows, height)) + 0.5
            xy = np.stack(np.meshgrid(columns, lines), axis=-1)
            stored = self.source_xy(xy) / self._reduction
            # cv2.remap has the centre of the first pixel at 0, COLMAP at 0.5.
            table[top : top + rows] = stored.reshape(xy.shape) - 0.5
        fixed, fraction = cv2.convertMaps(table, np.empty(0, np.float32), cv2.CV_16SC2)
        return np.asarray(fixed, np.int16), np.asarray(fraction, np.uint16)

    @cached_property
    def _reduction(self) -> int:
        """The whole factor to average stored pixels by before they are sampled."""
        return max(1, int(self.source.mean_focal_length() / self._focal.mean()))

    @cached_property
    def _scale(self) -> float:
        """Exported over stored pixels, where the lens is kept."""
        return float(self._focal.mean() / self.source.mean_focal_length())

    @cached_property
    def _source_principal(self) -> Float64:
        principal: Float64 = self.source.calibration_matrix()[:2, 2]
        return principal

    @cached_property
    def _focal(self) -> Float64:
        return np.array([self.target.focal_length_x, self.target.focal_length_y])

    @cached_property
    def _principal(self) -> Float64:
        return np.array([self.target.principal_point_x, self.target.principal_point_y])


def reduce_pixels(pixels: Bytes, size: tuple[int, int]) -> Bytes:
    """Averages pixels [H, W, 3] down to (W, H) `size`, whole blocks at a time."""
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def reduce_mask(mask: Mask, factor: int) -> Mask:
    """Takes the pixel nearest to the middle of each whole block of a mask [H, W]."""
    height, width = (side // factor * factor for side in mask.shape)
    middle = slice(factor // 2, None, factor)
    return np.ascontiguousarray(mask[:height, :width][middle, middle])


def undistortion(
    camera: pycolmap.Camera,
    orientation: int,
    *,
    camera_id: int,
    multiple: int = 1,
    max_size: int | None = None,
    keep_lens: bool = False,
) -> Undistortion:
    """Chooses the camera that `camera` is exported as.

    Its sides are multiples of `multiple`, so that every reduced copy covers exactly
    the same view. A pinhole shows no blank pixel and at most 120 degrees, and its
    principal point is the middle of the image (INRIA's 3DGS assumes so). Where centring
    would cost more than half of a side the principal point stays, with a warning;
    another one says if more than a fifth of the stored pixels is not shown.

    A kept lens is only turned, scaled and cut. A kept fisheye's principal point is the
    middle too, also in the reduced copies (gsplat assumes so).

    Args:
        camera: Of the file on disk.
        orientation: EXIF orientation, 1..8; mirroring is left as it is.
        camera_id: Of the exported camera.
        multiple: What width and height are divisible by.
        max_size: Longest side of the exported image in pixels, or None.
        keep_lens: Whether the exported image keeps the distortion.

    Raises:
        ConfigError: The lens is to be kept, but has terms that no trainer reads.
        ReconstructionError: The camera is a panorama, or smaller than `multiple`.
    """
    if camera.is_spherical():
        raise ReconstructionError(
            f"camera {camera.camera_id} is {camera.model_name}, which no single "
            "pinhole image can show; cut the panoramas into perspective views first"
        )
    turn = coords.rotation_part(orientation)
    flat, model, coefficients = camera, "PINHOLE", np.empty(0)
    if keep_lens:
        model, coefficients = _kept_distortion(camera, turn)
        # Its half must be whole in every reduced copy: gsplat rounds it.
        multiple *= 2 if model == _FISHEYE else 1
    elif not _is_pinhole(camera):
        flat = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
    width, height, focal, principal = _frame(
        flat,
        multiple=multiple,
        max_size=max_size,
        centred=model != "OPENCV",
        max_half_view=math.pi / 2 if flat is camera else _MAX_HALF_VIEW,
    )
    size = coords.upright_size((width, height), turn)
    if size != (width, height):
        focal = focal[::-1]
    middle = np.array([width, height]) / 2
    upright = coords.upright_matrix(turn) @ (principal - middle) + np.array(size) / 2
    view = Undistortion(
        source=camera,
        target=pycolmap.Camera(
            model=model,
            width=size[0],
            height=size[1],
            params=[*focal, *upright, *coefficients],
            camera_id=camera_id,
        ),
        orientation=turn,
    )
    if not keep_lens and view.shown_share < 1 - _MUCH_LOST:
        _warn_of_lost_view(view)
    return view


def _frame(
    flat: pycolmap.Camera,
    *,
    multiple: int,
    max_size: int | None,
    centred: bool,
    max_half_view: float,
) -> tuple[int, int, Float64, Float64]:
    """The part of an image that is exported: its size, focal length, principal point.

    All in exported pixels, but before the image is turned upright.
    """
    matrix = flat.calibration_matrix()
    focal, principal = matrix.diagonal()[:2], matrix[:2, 2]
    whole = np.array([flat.width, flat.height], np.float64)
    half = np.minimum(principal, whole - principal)
    if centred and (half < _MIN_KEPT / 2 * whole).any():
        _log.warning(
            "camera %d: the principal point (%.0f, %.0f) of %d x %d is kept off "
            "centre; INRIA's 3DGS, and gsplat for a fisheye, will take it as centred",
            *(flat.camera_id, *principal, flat.width, flat.height),
        )
        centred = False
    widest = focal * math.tan(max_half_view)
    sides = 2 * np.minimum(half, widest) if centred else whole
    scale = min(1.0, (max_size or math.inf) / sides.max())
    width, height = (_floor(side * scale, multiple) for side in sides)
    if not width or not height:
        raise ReconstructionError(
            f"camera {flat.camera_id}: {flat.width} x {flat.height} pixels are too "
            f"few to be reduced by {multiple}; leave that factor out of the downscales"
        )
    size = np.array([width, height])
    if centred:
        return width, height, focal * scale, size / 2
    # Cut by whole pixels, so that they need not be resampled.
    cut = np.floor((whole * scale - size) / 2 + _CENTRED_PX)
    return width, height, focal * scale, principal * scale - cut


def _kept_distortion(camera: pycolmap.Camera, turn: int) -> tuple[str, Float64]:
    """The model that trainers know a lens by, and its four coefficients, turned."""
    extra = camera.params[camera.extra_params_idxs()]
    model = _KEPT_AS.get(camera.model_name)
    if model is None or np.any(extra[4:]):
        raise ConfigError(
            f"export.camera=original: camera {camera.camera_id} is "
            f"{camera.model_name}, whose distortion no trainer reads; expected one of "
            f"{', '.join(_KEPT_AS)} (FULL_OPENCV only without k3 to k6). Leave out "
            "export.camera=original"
        )
    coefficients = np.zeros(4)
    coefficients[: len(extra[:4])] = extra[:4]
    if model == "OPENCV":
        # (p2, p1) is a vector in the image plane; k1 and k2 know no direction.
        p1, p2 = coefficients[2:]
        coefficients[3], coefficients[2] = coords.upright_matrix(turn) @ (p2, p1)
    return model, coefficients


def _warn_of_lost_view(view: Undistortion) -> None:
    camera, target = view.source, view.target
    shown = (
        2 * math.degrees(math.atan(side / 2 / focal))
        for side, focal in (
            (target.width, target.focal_length_x),
            (target.height, target.focal_length_y),
        )
    )
    _log.warning(
        "camera %d (%s): its pinhole images show %.0f x %.0f degrees, and %.0f %% of "
        "the photographs' pixels are lost; export.camera=original keeps them, for "
        "trainers that read this lens",
        *(camera.camera_id, camera.model_name, *shown),
        100 * (1 - view.shown_share),
    )


def _is_pinhole(camera: pycolmap.Camera) -> bool:
    """Whether no pixel is distorted by a thousandth; false for every fisheye.

    `Camera.is_undistorted` is true for a fisheye without further distortion.
    """
    x = np.linspace(0, camera.width, 9)
    y = np.linspace(0, camera.height, 9)
    xy = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    matrix = camera.calibration_matrix()
    rays = np.asarray(camera.cam_ray_from_img(xy))
    pinhole = np.column_stack([xy, np.ones(len(xy))]) @ np.linalg.inv(matrix).T
    focal = matrix.diagonal()[:2]
    off = (rays[:, :2] / rays[:, 2:] - pinhole[:, :2]) * focal
    return bool((np.abs(off) < _STRAIGHT_PX).all())


def _floor(side: float, multiple: int) -> int:
    """The largest multiple that is no longer than `side`, give or take rounding."""
    return int((side + 2 * _CENTRED_PX) // multiple) * multiple
