"""From stored, distorted pixels to upright ones of a pinhole camera, and back.

`Undistortion` owns both directions of the map, so pixels, observations and the camera
that is written cannot disagree. Coordinates are COLMAP pixels in float64.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfmprep import coords
from sfmprep.coords import Float64
from sfmprep.errors import ReconstructionError

_log = logging.getLogger(__name__)

Maps = tuple[NDArray[np.int16], NDArray[np.uint16]]

_CENTRED_PX = 0.01  # a principal point this close to the middle counts as there
_STRAIGHT_PX = 0.001  # less distortion than this anywhere is none
_INVERTED_PX = 0.01
_MIN_KEPT = 0.5  # of width and of height, when a view is cropped to be centred
_CHUNK = 1 << 18  # pixels whose map is evaluated at once: some 20 MB


@dataclass(frozen=True, kw_only=True, eq=False)
class Undistortion:
    """One camera's map to the upright pinhole camera that it is exported as."""

    source: pycolmap.Camera  # of the file on disk, any perspective model
    target: pycolmap.Camera  # PINHOLE, of the exported image
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
            and _is_pinhole(self.source)
            and self.target_size == (self.source.width, self.source.height)
            and np.allclose(
                self.source.calibration_matrix(),
                self.target.calibration_matrix(),
                rtol=0,
                atol=_CENTRED_PX,
            )
        )

    def target_xy(self, xy: Float64) -> Float64:
        """Maps stored pixels [N, 2] to exported ones; NaN where there are none.

        pycolmap returns some ray even where a distortion cannot be inverted, such as
        90 degrees off a fisheye's axis; those that do not lead back are NaN here.
        """
        points = np.asarray(xy, np.float64).reshape(-1, 2)
        rays = np.asarray(self.source.cam_ray_from_img(points))
        off = np.abs(np.asarray(self.source.img_from_cam(rays)) - points)
        rays[~(off < _INVERTED_PX).all(axis=1)] = np.nan
        turn = coords.upright_matrix(self.orientation)
        turned: Float64 = (rays[:, :2] / rays[:, 2:]) @ turn.T
        return turned * self._focal + self._principal

    def source_xy(self, xy: Float64) -> Float64:
        """The inverse of `target_xy`; NaN where the source camera sees nothing."""
        points = np.asarray(xy, np.float64).reshape(-1, 2)
        turn = coords.upright_matrix(self.orientation)
        rays = np.ones((len(points), 3))
        # Not `@`: a matrix product this thin waits for BLAS threads most of the time.
        rays[:, :2] = np.einsum(
            "ni,ij->nj", (points - self._principal) / self._focal, turn
        )
        return np.asarray(self.source.img_from_cam(rays))

    def warp(self, pixels: NDArray[np.uint8], maps: Maps) -> NDArray[np.uint8]:
        """Resamples stored pixels [H, W, 3] to exported ones, bicubic."""
        step = self._reduction
        if step > 1:
            height, width = (side // step for side in pixels.shape[:2])
            whole = pixels[: height * step, : width * step]
            pixels = reduce_pixels(whole, (width, height))
        flags, border = cv2.INTER_CUBIC, cv2.BORDER_REPLICATE
        return np.asarray(cv2.remap(pixels, *maps, flags, borderMode=border), np.uint8)

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
    def _focal(self) -> Float64:
        return np.array([self.target.focal_length_x, self.target.focal_length_y])

    @cached_property
    def _principal(self) -> Float64:
        return np.array([self.target.principal_point_x, self.target.principal_point_y])


def reduce_pixels(
    pixels: NDArray[np.uint8], size: tuple[int, int]
) -> NDArray[np.uint8]:
    """Averages pixels [H, W, 3] down to (W, H) `size`, whole blocks at a time."""
    return np.asarray(cv2.resize(pixels, size, interpolation=cv2.INTER_AREA), np.uint8)


def undistortion(
    camera: pycolmap.Camera,
    orientation: int,
    *,
    camera_id: int,
    multiple: int = 1,
    max_size: int | None = None,
) -> Undistortion:
    """Chooses the pinhole camera that `camera` is exported as.

    It shows no blank pixel, its principal point is the middle of the image (INRIA's
    3DGS assumes so), and its sides are multiples of `multiple`, so that every reduced
    copy covers exactly the same view. Where centring would cost more than half of a
    side the principal point stays, with a warning.

    Args:
        camera: Of the file on disk.
        orientation: EXIF orientation, 1..8; mirroring is left as it is.
        camera_id: Of the exported camera.
        multiple: What width and height are divisible by.
        max_size: Longest side of the exported image in pixels, or None.

    Raises:
        ReconstructionError: The camera is a panorama, or smaller than `multiple`.
    """
    if camera.is_spherical():
        raise ReconstructionError(
            f"camera {camera.camera_id} is {camera.model_name}, which no single "
            "pinhole image can show; cut the panoramas into perspective views first"
        )
    flat = camera
    if not _is_pinhole(camera):
        flat = pycolmap.undistort_camera(pycolmap.UndistortCameraOptions(), camera)
    scale = min(1.0, (max_size or np.inf) / max(flat.width, flat.height))
    matrix = flat.calibration_matrix()
    focal = (matrix[0, 0] * scale, matrix[1, 1] * scale)
    sides = (flat.width * scale, flat.height * scale)
    principal = (matrix[0, 2] * scale, matrix[1, 2] * scale)
    centred = [2 * min(p, side - p) for p, side in zip(principal, sides, strict=True)]
    if any(c < _MIN_KEPT * side for c, side in zip(centred, sides, strict=True)):
        _log.warning(
            "camera %d: the principal point (%.0f, %.0f) of %d x %d is kept off "
            "centre; INRIA's 3DGS will take it as centred",
            *(camera.camera_id, *matrix[:2, 2], flat.width, flat.height),
        )
        width, height = (_floor(side, multiple) for side in sides)
    else:
        width, height = (_floor(side, multiple) for side in centred)
        principal = (width / 2, height / 2)
    if not width or not height:
        raise ReconstructionError(
            f"camera {camera.camera_id}: {flat.width} x {flat.height} pixels are too "
            f"few to be reduced by {multiple}; leave that factor out of the downscales"
        )
    turn = coords.rotation_part(orientation)
    size = coords.upright_size((width, height), turn)
    if size != (width, height):
        focal = focal[::-1]
    middle = coords.upright_xy(np.array([principal], np.float32), (width, height), turn)
    return Undistortion(
        source=camera,
        target=pycolmap.Camera(
            model="PINHOLE",
            width=size[0],
            height=size[1],
            params=[*focal, *middle[0].tolist()],
            camera_id=camera_id,
        ),
        orientation=turn,
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
