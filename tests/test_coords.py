"""Coordinates: each mapping with its inverse, and with what it does to real pixels."""

from __future__ import annotations

import math

import cv2
import numpy as np
import pycolmap
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from PIL import Image, ImageOps

from sfmprep import coords
from sfmprep.types import ImageBatch

SIDE = 20_000
TOLERANCE_PX = 0.01  # float32 steps are 0.002 at 20,000 px

orientations = st.integers(1, 8)
sizes = st.tuples(st.integers(1, SIDE), st.integers(1, SIDE))
points = arrays(
    np.float32,
    st.tuples(st.integers(0, 20), st.just(2)),
    elements=st.floats(0, SIDE, width=32),
)
stored_images = arrays(
    np.uint8, st.tuples(st.integers(1, 7), st.integers(1, 7), st.just(3))
)


def batch_of(
    size: tuple[int, int], orientation: int, network_size: tuple[int, int]
) -> ImageBatch:
    """Two images; the second is the one under test."""
    width, height = network_size
    return ImageBatch(
        pixels=np.zeros((2, 3, height, width), np.float32),
        sizes=np.array([(5, 5), size], np.int32),
        orientations=np.array([1, orientation], np.int32),
    )


@given(points)
def test_half_pixel_and_back(xy: NDArray[np.float32]) -> None:
    there = coords.colmap_from_centre(xy)
    assert there.dtype == np.float32
    assert np.allclose(coords.centre_from_colmap(there), xy, atol=TOLERANCE_PX)


def test_first_pixel_has_its_centre_at_one_half() -> None:
    zero = np.zeros((1, 2), np.float32)
    assert coords.colmap_from_centre(zero).tolist() == [[0.5, 0.5]]
    assert coords.centre_from_colmap(zero).tolist() == [[-0.5, -0.5]]


@given(points, sizes, sizes)
def test_resize_and_back(
    xy: NDArray[np.float32], size: tuple[int, int], other: tuple[int, int]
) -> None:
    there = coords.resize_xy(xy, size, other)
    assert there.dtype == np.float32
    back = coords.resize_xy(there, other, size)
    assert np.allclose(back, xy, atol=TOLERANCE_PX, rtol=1e-6)


@given(sizes, sizes)
def test_resize_maps_corners_to_corners(
    size: tuple[int, int], other: tuple[int, int]
) -> None:
    corners = np.array([(0, 0), size], np.float32)
    mapped = coords.resize_xy(corners, size, other)
    assert np.allclose(mapped, [(0, 0), other], atol=TOLERANCE_PX)


@given(st.integers(0, 9), st.integers(0, 7), st.integers(2, 5), st.integers(2, 5))
def test_resize_follows_the_pixels(x: int, y: int, across: int, down: int) -> None:
    large = np.zeros((8 * down, 10 * across), np.float32)
    large[y * down : (y + 1) * down, x * across : (x + 1) * across] = 1
    small = cv2.resize(large, (10, 8), interpolation=cv2.INTER_AREA)
    rows, columns = np.nonzero(large)
    centre = coords.colmap_from_centre(np.array([[columns.mean(), rows.mean()]]))
    mapped = coords.resize_xy(centre, (10 * across, 8 * down), (10, 8))
    assert small[y, x] == pytest.approx(1, abs=1e-6)
    assert np.allclose(mapped, [[x + 0.5, y + 0.5]], atol=1e-4)


# ----------------------------------------------------------------------- orientation
@given(orientations)
def test_upright_matrices_are_signed_quarter_turns(orientation: int) -> None:
    matrix = coords.upright_matrix(orientation)
    assert (matrix @ matrix.T == np.eye(2)).all()
    assert coords.is_mirrored(orientation) == (orientation in (2, 4, 5, 7))


@pytest.mark.parametrize("orientation", [0, 9, -1])
def test_invalid_orientation_is_refused(orientation: int) -> None:
    with pytest.raises(ValueError, match=f"orientation={orientation} but expected"):
        coords.upright_matrix(orientation)


@given(sizes, orientations)
def test_upright_size_is_its_own_inverse(
    size: tuple[int, int], orientation: int
) -> None:
    upright = coords.upright_size(size, orientation)
    assert coords.upright_size(upright, orientation) == size
    assert (upright == size) == (orientation < 5 or size[0] == size[1])


@given(points, sizes, orientations)
def test_upright_and_back(
    xy: NDArray[np.float32], size: tuple[int, int], orientation: int
) -> None:
    upright = coords.upright_xy(xy, size, orientation)
    assert upright.dtype == np.float32
    back = coords.stored_xy(upright, size, orientation)
    assert np.allclose(back, xy, atol=TOLERANCE_PX)


@given(stored_images, orientations)
def test_upright_pixels_and_back(pixels: NDArray[np.uint8], orientation: int) -> None:
    upright = coords.upright_pixels(pixels, orientation)
    assert upright.flags.c_contiguous
    assert np.array_equal(coords.stored_pixels(upright, orientation), pixels)


@given(stored_images, orientations)
def test_upright_pixels_agree_with_pillow(
    pixels: NDArray[np.uint8], orientation: int
) -> None:
    image = Image.fromarray(pixels)
    image.getexif()[0x112] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image))
    assert np.array_equal(coords.upright_pixels(pixels, orientation), expected)


@given(st.integers(1, 9), st.integers(1, 9), orientations)
def test_upright_xy_agrees_with_upright_pixels(
    width: int, height: int, orientation: int
) -> None:
    pixels = np.arange(width * height, dtype=np.uint8).reshape(height, width)
    upright = coords.upright_pixels(pixels, orientation)
    assert upright.shape[::-1] == coords.upright_size((width, height), orientation)
    rows, columns = np.indices(pixels.shape).reshape(2, -1)
    centres = coords.colmap_from_centre(np.stack((columns, rows), axis=1))
    xy = coords.upright_xy(centres, (width, height), orientation)
    x, y = coords.centre_from_colmap(xy).T.astype(int)
    assert np.array_equal(upright[y, x], pixels[rows, columns])


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_image_is_shown_as_pixels_are_turned(orientation: int) -> None:
    stored = np.arange(6, dtype=np.uint8).reshape(2, 3, 1)
    shown = coords.upright_pixels(stored, orientation)
    for turns in range(-1, 5):
        turned = coords.upright_pixels(stored, coords.turned(orientation, turns))
        assert (turned == np.rot90(shown, -turns)).all()


@given(orientations)
def test_rotation_part_leaves_a_swap_of_left_and_right(orientation: int) -> None:
    turn = coords.rotation_part(orientation)
    assert not coords.is_mirrored(turn)
    swap = np.diag((-1.0 if coords.is_mirrored(orientation) else 1.0, 1.0))
    expected = swap @ coords.upright_matrix(turn)
    assert (coords.upright_matrix(orientation) == expected).all()


# ------------------------------------------------------------------------------ poses
@given(st.sampled_from([1, 3, 6, 8]), st.integers(0, 2**32 - 1))
def test_upright_pose_projects_to_upright_pixels(orientation: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    rotation = np.linalg.qr(rng.normal(size=(3, 3)))[0]
    pose = np.column_stack((rotation * np.linalg.det(rotation), rng.normal(size=3)))
    point = np.append(rng.normal(size=3), 1)
    x, y, z = pose @ point
    upright_x, upright_y, upright_z = coords.upright_pose(pose, orientation) @ point
    assert np.allclose(
        (upright_x, upright_y), coords.upright_matrix(orientation) @ (x, y)
    )
    assert upright_z == pytest.approx(z)
    turned = coords.upright_pose(pose, orientation)
    assert np.allclose(coords.stored_pose(turned, orientation), pose)


@pytest.mark.parametrize("orientation", [2, 4, 5, 7])
def test_no_pose_is_mirrored(orientation: int) -> None:
    with pytest.raises(ValueError, match="is mirrored but expected 1, 3, 6 or 8"):
        coords.upright_pose(np.eye(4)[:3], orientation)
    with pytest.raises(ValueError, match="is mirrored but expected 1, 3, 6 or 8"):
        coords.stored_pose(np.eye(4)[:3], orientation)


def test_opengl_cameras_look_backwards_with_y_up() -> None:
    pose = np.random.default_rng(0).normal(size=(5, 4, 4))
    flipped = coords.opengl_from_opencv(pose)
    assert np.array_equal(flipped[..., :3, 3], pose[..., :3, 3])
    assert np.array_equal(flipped[..., 0], pose[..., 0])
    assert np.array_equal(flipped[..., 1:3], -pose[..., 1:3])
    assert np.array_equal(coords.opengl_from_opencv(flipped), pose)


# --------------------------------------------------------------------------- networks
@given(points, sizes, orientations, st.tuples(st.integers(1, 9), st.integers(1, 9)))
def test_network_pixels_map_back_to_the_file(
    xy: NDArray[np.float32],
    size: tuple[int, int],
    orientation: int,
    network_size: tuple[int, int],
) -> None:
    xy = np.minimum(xy, np.array(size, np.float32))
    upright = coords.upright_size(size, orientation)
    seen = coords.resize_xy(
        coords.upright_xy(xy, size, orientation), upright, network_size
    )
    batch = batch_of(size, orientation, network_size)
    back = coords.stored_from_network(seen, batch, 1)
    assert back.dtype == np.float32
    assert np.allclose(back, xy, atol=TOLERANCE_PX)


@given(orientations, st.floats(-3.125, 3.125, width=32))
def test_scale_and_angle_follow_the_places(orientation: int, angle: float) -> None:
    size, network_size = (80, 60), coords.upright_size((40, 30), orientation)
    batch = batch_of(size, orientation, network_size)
    start = np.array([[10.0, 12.0]], np.float32)
    step = np.array([[math.cos(angle), math.sin(angle)]], np.float32)
    moved = coords.stored_from_network(start + step, batch, 1)
    along = (moved - coords.stored_from_network(start, batch, 1))[0]
    scale, turned = coords.Placed.of(batch, 1).stored_shape(
        np.ones(1, np.float32), np.array([angle], np.float32)
    )
    assert scale[0] == pytest.approx(math.hypot(*along), abs=1e-4)
    expected = along / math.hypot(*along)
    assert np.allclose((np.cos(turned[0]), np.sin(turned[0])), expected, atol=1e-4)


def test_no_points_stay_no_points() -> None:
    none = np.empty((0, 2), np.float32)
    batch = batch_of((80, 60), 6, (30, 40))
    assert coords.upright_xy(none, (80, 60), 6).shape == (0, 2)
    assert coords.stored_from_network(none, batch, 1).shape == (0, 2)


def test_places_on_the_earth_are_those_of_pycolmap() -> None:
    places = np.array(
        [
            *((0.0, 0.0, 0.0), (90.0, 0.0, 0.0), (-90.0, 45.0, 12.0)),
            *((52.52, 13.405, 34.0), (-33.86, 151.21, -420.0), (47.0, -179.9, 8848.0)),
        ]
    )
    earth = pycolmap.GPSTransform(pycolmap.GPSTransformEllipsoid.WGS84)
    expected = earth.ellipsoid_to_ecef(places)
    np.testing.assert_allclose(coords.earth_fixed(places), expected, rtol=0, atol=1e-6)
    assert coords.earth_fixed(np.empty((0, 3))).shape == (0, 3)
