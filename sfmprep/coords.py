"""Every half pixel, resize, quarter turn and axis flip of the project, and the earth.

COLMAP pixels put the centre of the first pixel at (0.5, 0.5), so a resize is one
multiplication and a flip is `W - x`. Each function here has its inverse here.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from sfmprep.types import Bytes, Float32, Float64, ImageBatch

# EXIF orientation -> the 2x2 integer matrix A and whether W and H swap, such that
# upright = A (stored - centre) + upright centre. Values from the EXIF 2.3 standard,
# tag 0x0112: 3 is half a turn, 6 is shown after a quarter turn clockwise.
_UPRIGHT: dict[int, tuple[tuple[int, int], tuple[int, int]]] = {
    1: ((1, 0), (0, 1)),
    2: ((-1, 0), (0, 1)),
    3: ((-1, 0), (0, -1)),
    4: ((1, 0), (0, -1)),
    5: ((0, 1), (1, 0)),
    6: ((0, -1), (1, 0)),
    7: ((0, -1), (-1, 0)),
    8: ((0, 1), (-1, 0)),
}


_ROUNDING = 1e-12  # of the largest coordinate

# WGS84's ellipsoid, from NIMA TR8350.2, third edition, table 3.1
_SEMI_MAJOR_M = 6_378_137.0
_FLATTENING = 1 / 298.257223563


def beyond_rounding(length: float, coordinates: Float64) -> float:
    """The length that was measured between coordinates of any shape, 0 or more.

    Exactly 0 where it is no more than rounding makes of places that are the same, so
    that a spread of zero can be told from one to divide by.
    """
    return length if length > rounding_of(coordinates) else 0.0


def rounding_of(coordinates: Float64) -> float:
    """The most that rounding sets places with coordinates of this size apart."""
    return float(_ROUNDING * np.abs(coordinates).max(initial=0))


def colmap_from_centre(xy: Float32) -> Float32:
    """Adds half a pixel: from pixel centres at integers to COLMAP pixels."""
    return np.asarray(xy, np.float32) + np.float32(0.5)


def centre_from_colmap(xy: Float32) -> Float32:
    """Takes half a pixel: from COLMAP pixels to pixel centres at integers."""
    return np.asarray(xy, np.float32) - np.float32(0.5)


def resize_xy(
    xy: Float32, from_size: tuple[int, int], to_size: tuple[int, int]
) -> Float32:
    """Maps COLMAP pixels of an image of (W, H) `from_size` to one of `to_size`."""
    scale = np.array(to_size, np.float64) / np.array(from_size, np.float64)
    return (np.asarray(xy, np.float64) * scale).astype(np.float32)


def upright_matrix(orientation: int) -> Float64:
    """The 2x2 matrix that turns stored pixel axes to upright ones.

    Raises:
        ValueError: `orientation` is not an EXIF orientation (1..8).
    """
    if orientation not in _UPRIGHT:
        raise ValueError(f"{orientation=} but expected an EXIF orientation, 1..8")
    return np.array(_UPRIGHT[orientation], np.float64)


def is_mirrored(orientation: int) -> bool:
    """Whether this EXIF orientation says that the stored pixels are mirrored."""
    return bool(np.linalg.det(upright_matrix(orientation)) < 0)


def upright_size(size: tuple[int, int], orientation: int) -> tuple[int, int]:
    """(W, H) after the pixels are turned upright; its own inverse."""
    return size if upright_matrix(orientation)[0, 0] else (size[1], size[0])


def upright_xy(xy: Float32, size: tuple[int, int], orientation: int) -> Float32:
    """Maps COLMAP pixels of the stored image of (W, H) `size` to the upright one."""
    matrix = upright_matrix(orientation)
    centre = np.array(size, np.float64) / 2
    upright_centre = np.array(upright_size(size, orientation), np.float64) / 2
    return ((np.asarray(xy, np.float64) - centre) @ matrix.T + upright_centre).astype(
        np.float32
    )


def stored_xy(xy: Float32, size: tuple[int, int], orientation: int) -> Float32:
    """The inverse of `upright_xy`; `size` is that of the stored image."""
    matrix = upright_matrix(orientation)
    centre = np.array(size, np.float64) / 2
    upright_centre = np.array(upright_size(size, orientation), np.float64) / 2
    return ((np.asarray(xy, np.float64) - upright_centre) @ matrix + centre).astype(
        np.float32
    )


def upright_pixels(pixels: Bytes, orientation: int) -> Bytes:
    """Turns stored pixels [H, W, ...] upright."""
    matrix = upright_matrix(orientation)
    swap = matrix[0, 0] == 0
    turned = np.swapaxes(pixels, 0, 1) if swap else pixels
    flip_x = matrix[0].sum() < 0
    flip_y = matrix[1].sum() < 0
    turned = turned[:, ::-1] if flip_x else turned
    turned = turned[::-1] if flip_y else turned
    return np.ascontiguousarray(turned)


def stored_pixels(pixels: Bytes, orientation: int) -> Bytes:
    """The inverse of `upright_pixels`."""
    return upright_pixels(pixels, {6: 8, 8: 6}.get(orientation, orientation))


def rotation_part(orientation: int) -> int:
    """The EXIF orientation (1, 3, 6 or 8) with this one's turn but no mirroring.

    A mirrored orientation is a turn followed by swapping left and right.
    """
    return {2: 1, 4: 3, 5: 6, 7: 8}.get(orientation, orientation)


def turned(orientation: int, quarter_turns: int) -> int:
    """The EXIF orientation that shows an image turned clockwise once more.

    Args:
        orientation: That it has, 1..8.
        quarter_turns: Of what is shown, any number.
    """
    shown = upright_matrix(orientation)
    matrix = np.linalg.matrix_power(upright_matrix(6), quarter_turns % 4) @ shown
    return next(k for k in _UPRIGHT if (upright_matrix(k) == matrix).all())


def upright_pose(cam_from_world: Float64, orientation: int) -> Float64:
    """Turns the camera of a [3, 4] pose as `upright_pixels` turns its image.

    Raises:
        ValueError: `orientation` is mirrored, which no camera pose can express.
    """
    return _turn(orientation) @ cam_from_world


def stored_pose(cam_from_world: Float64, orientation: int) -> Float64:
    """The inverse of `upright_pose`."""
    return _turn(orientation).T @ cam_from_world


def _turn(orientation: int) -> Float64:
    """The rotation about the optical axis of an orientation that is no mirroring."""
    if is_mirrored(orientation):
        raise ValueError(f"{orientation=} is mirrored but expected 1, 3, 6 or 8")
    turn = np.eye(3)
    turn[:2, :2] = upright_matrix(orientation)
    return turn


@dataclass(frozen=True, kw_only=True)
class Placed:
    """The way from one image of a network's batch to its file, without its pixels."""

    network_size: tuple[int, int]  # (W, H) of the batch
    size: tuple[int, int]  # (W, H) of the file on disk
    orientation: int  # EXIF

    @staticmethod
    def of(batch: ImageBatch, item: int) -> Placed:
        """That of image `item` of a batch."""
        width, height = batch.sizes[item].tolist()
        return Placed(
            network_size=batch.network_size,
            size=(width, height),
            orientation=int(batch.orientations[item]),
        )

    def stored(self, xy: Float32) -> Float32:
        """Maps COLMAP pixels of the batch to those of the file on disk."""
        upright = upright_size(self.size, self.orientation)
        xy = resize_xy(xy, self.network_size, upright)
        return stored_xy(xy, self.size, self.orientation)

    def stored_shape(self, scale: Float32, angle: Float32) -> tuple[Float32, Float32]:
        """Maps keypoints' scales and angles as `stored` maps their places.

        Angles are radians from +x towards +y, the result in -pi..pi. Scales grow by the
        geometric mean of the two resize factors, which rounding can make unequal.
        """
        upright = upright_size(self.size, self.orientation)
        factors = np.array(upright) / np.array(self.network_size)
        direction = np.stack((np.cos(angle), np.sin(angle)), axis=1) * factors
        direction = direction @ upright_matrix(self.orientation)
        return (
            (scale * np.sqrt(factors.prod())).astype(np.float32),
            np.arctan2(direction[:, 1], direction[:, 0]).astype(np.float32),
        )


def stored_from_network(xy: Float32, batch: ImageBatch, item: int) -> Float32:
    """Maps COLMAP pixels of item `item` of a network's batch to the file on disk."""
    return Placed.of(batch, item).stored(xy)


def opengl_from_opencv(world_from_cam: Float64) -> Float64:
    """Flips the camera's y and z axes of [..., 4, 4] poses; its own inverse.

    OpenCV and COLMAP cameras look along +z with y down, OpenGL's and nerfstudio's
    along -z with y up.
    """
    flipped: Float64 = world_from_cam * np.array([1.0, -1.0, -1.0, 1.0])
    return flipped


def earth_fixed(places: Float64) -> Float64:
    """Earth-centred, earth-fixed points [N, 3] in metres of places on WGS84.

    As `ellipsoid_to_ecef` of `pycolmap.GPSTransform`, which is 0.1 mm off by default
    (GRS80), for rooms that do without pycolmap; the formula is 4-14 of NIMA TR8350.2,
    third edition.

    Args:
        places: [N, 3] latitude and longitude in degrees, height above the ellipsoid in
            metres.
    """
    latitude, longitude = np.radians(places[:, :2]).T
    height = places[:, 2]
    squared_eccentricity = _FLATTENING * (2 - _FLATTENING)
    # the ellipsoid's radius of curvature from west to east
    radius = _SEMI_MAJOR_M / np.sqrt(1 - squared_eccentricity * np.sin(latitude) ** 2)
    level = (radius + height) * np.cos(latitude)
    along_axis = (radius * (1 - squared_eccentricity) + height) * np.sin(latitude)
    return np.stack(
        [level * np.cos(longitude), level * np.sin(longitude), along_axis], axis=1
    )
