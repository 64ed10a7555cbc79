"""Two views of a photograph that was given a random depth: parallax with known truth.

A scene is a few surfaces, each a tilted plane with the same smooth relief on it and a
mask on the photograph: a background behind everything, segments that end at the
photograph's own edges, and objects cut from elsewhere. In pixels p of the photograph
the inverse depth of a surface is n . (p, 1) + relief(p), so that the other camera sees
it through a homography and a shift along the epipolar line (plane plus parallax, as in
Irani and Anandan, ECCV 1996), which is inverted for every pixel there: no holes, no
splats. Positions have pixel centres at integers.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sfmprep.coords import Float64
from sfmprep.train.views import Views, as_tensor_image
from sfmprep.types import Float32

Bytes = NDArray[np.uint8]

_CANVAS = 1.5  # side of the known part of the scene over that of the view
_LEAST_CROP = 0.5  # of the photograph's shorter side
_LEAST_INVERSE_DEPTH = 0.05  # where the background's middle has 1; less is unknown
_SEGMENT_SIDE = 96  # pixels; segments are found at this resolution
_SEEDS = 16  # of the segments
_MAX_RELIEF = 0.08  # of the inverse depth in the middle
# Of relief along epipolar lines. Below 1 no surface hides itself, and each step of the
# inversion reduces its error, which is at most some 15 pixels at first, by as much.
_MAX_SLOPE = 0.2
_NUM_STEPS = 4
_DEPTH_STEP = 4.0  # relative change over half a pixel, times S: less is one surface


@dataclass(frozen=True, kw_only=True, eq=False)
class ParallaxView:
    """Two images of S by S pixels of one scene, with depth and cameras."""

    image0: Float32  # [3, S, S] in 0..1
    image1: Float32
    depth0: Float32  # [S, S] along the optical axis, 0 where unknown
    depth1: Float32
    K0: Float64  # [3, 3] pixel centres at integers
    K1: Float64
    cam1_from_cam0: Float64  # [3, 4]

    def views(self) -> Views:
        """The same as places in the other image, NaN where hidden or outside."""
        motion = self.cam1_from_cam0
        to1, inverse1 = _project(self.depth0, self.K0, motion, self.K1)
        to0, inverse0 = _project(self.depth1, self.K1, _inverse(motion), self.K0)
        return Views(
            image0=self.image0,
            image1=self.image1,
            to1=_where_visible(to1, inverse1, self.depth1),
            to0=_where_visible(to0, inverse0, self.depth0),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Cameras:
    """The camera of the canvas, from which view 0 is cut, and that of view 1."""

    K: Float64  # of the canvas
    K1: Float64
    rotation: Float64  # [3, 3] cam1_from_cam0
    translation: Float64  # [3]

    @property
    def centre1(self) -> Float64:
        """Where camera 1 is, seen from camera 0."""
        centre: Float64 = -self.rotation.T @ self.translation
        return centre


@dataclass(frozen=True, eq=False)
class _Surface:
    plane: Float64  # [3] inverse depth = plane . (x, y, 1), canvas pixels
    mask: Bytes | None  # [C, C] 0 or 255; None is everywhere


def sample_parallax(
    rng: np.random.Generator,
    photograph: Bytes,
    size: int,
    *,
    max_angle_deg: float = 45,
    max_roll_deg: float = 30,
    max_scale: float = 1.5,
) -> ParallaxView:
    """Gives a photograph a random depth and looks at it with two cameras.

    Camera 1 looks at the middle of the scene from another direction, turned about its
    axis, from another distance, with another focal length. What no camera of the
    photograph could know, behind a surface, shows another part of the photograph. The
    depth in the middle of view 0 is about 1.

    Args:
        rng: The only source of chance.
        photograph: [H, W, 3] uint8 RGB of any size.
        size: S, side of the views in pixels.
        max_angle_deg: Largest angle between the viewing directions; uniform from 0.
        max_roll_deg: Largest turn about the optical axis, either way.
        max_scale: Largest ratio of the scales of the two views, either way.

    Raises:
        ValueError: the photograph is empty or not [H, W, 3] uint8, or `size` is below
            16.
    """
    if photograph.ndim != 3 or photograph.shape[2] != 3 or photograph.dtype != np.uint8:
        raise ValueError(
            f"photograph is {photograph.shape} {photograph.dtype} but expected"
            " [H, W, 3] uint8"
        )
    if photograph.size == 0 or size < 16:
        raise ValueError(f"{photograph.shape=}, {size=} but expected pixels and >= 16")
    margin = round(size * (_CANVAS - 1) / 2)
    canvas, behind = (_crop(rng, photograph, size + 2 * margin) for _ in range(2))
    cameras = _sample_cameras(
        rng,
        size,
        margin,
        max_angle=np.deg2rad(max_angle_deg),
        max_roll=np.deg2rad(max_roll_deg),
        max_scale=max_scale,
    )
    surfaces = _sample_surfaces(rng, canvas, behind[::-1], cameras)
    relief = _sample_relief(rng, len(canvas), surfaces, cameras)
    inverse_depth, front = _look_straight(surfaces, relief)
    image1, inverse1 = _look_from_other(
        surfaces, relief, front, (canvas, behind), cameras, size
    )

    view0 = slice(margin, margin + size)
    K0 = cameras.K - np.array([[0, 0, margin], [0, 0, margin], [0, 0, 0]])
    motion = np.column_stack((cameras.rotation, cameras.translation))
    view = ParallaxView(
        image0=as_tensor_image(canvas[view0, view0]),
        image1=as_tensor_image(image1),
        depth0=_depth(inverse_depth[view0, view0]),
        depth1=_depth(inverse1),
        K0=K0,
        K1=cameras.K1,
        cam1_from_cam0=motion,
    )
    # one of the two is resampled once more, which must not tell them apart
    return view if rng.random() < 0.5 else _swapped(view)


# --------------------------------------------------------------------------- sampling
def _crop(rng: np.random.Generator, photograph: Bytes, side: int) -> Bytes:
    """A random square of a photograph, resized to [side, side, 3]."""
    height, width = photograph.shape[:2]
    shorter = min(height, width)
    cut = max(1, round(rng.uniform(_LEAST_CROP, 1) * shorter))
    x, y = rng.integers(width - cut + 1), rng.integers(height - cut + 1)
    how = cv2.INTER_AREA if cut > side else cv2.INTER_LINEAR
    part = photograph[y : y + cut, x : x + cut]
    return np.array(cv2.resize(part, (side, side), interpolation=how), np.uint8)


def _sample_cameras(
    rng: np.random.Generator,
    size: int,
    margin: int,
    *,
    max_angle: float,
    max_roll: float,
    max_scale: float,
) -> _Cameras:
    focal = size * rng.uniform(0.8, 1.6)
    focal1 = focal * np.exp(rng.uniform(-0.2, 0.2))
    scale = np.exp(rng.uniform(-1, 1) * np.log(max_scale))
    distance = focal1 / focal / scale
    angle, azimuth = rng.uniform(0, max_angle), rng.uniform(0, 2 * np.pi)
    sideways = np.array([np.cos(azimuth), np.sin(azimuth), 0])
    away = np.sin(angle) * sideways - np.array([0, 0, np.cos(angle)])
    centre = np.array([0, 0, 1]) + distance * away
    target = np.array([*rng.uniform(-0.15, 0.15, 2), 1])
    axis = (target - centre) / np.linalg.norm(target - centre)
    turn = np.cross([0, 0, 1], axis)
    sine = float(np.linalg.norm(turn))
    turn *= np.arctan2(sine, axis[2]) / max(sine, 1e-12)
    cam0_from_cam1 = cv2.Rodrigues(turn)[0]
    roll = cv2.Rodrigues(np.array([0, 0, rng.uniform(-max_roll, max_roll)]))[0]
    rotation = np.asarray(roll @ cam0_from_cam1.T, np.float64)
    middle = (size - 1) / 2
    return _Cameras(
        K=_intrinsics(focal, middle + margin),
        K1=_intrinsics(focal1, middle),
        rotation=rotation,
        translation=-rotation @ centre,
    )


def _intrinsics(focal: float, middle: float) -> Float64:
    return np.array([[focal, 0, middle], [0, focal, middle], [0, 0, 1]], np.float64)


def _sample_surfaces(
    rng: np.random.Generator, canvas: Bytes, other: Bytes, cameras: _Cameras
) -> list[_Surface]:
    """The background first; objects are painted onto `canvas` as `other` looks."""
    side = len(canvas)
    middle = np.full(2, (side - 1) / 2)
    background = _sample_plane(rng, middle, 1.0, 25, cameras)
    surfaces = [_Surface(background, None)]

    def add(mask: Bytes, nearer: tuple[float, float]) -> None:
        box = cv2.boundingRect(mask)
        if box[2] and box[3]:
            centre = np.array([box[0] + box[2] / 2, box[1] + box[3] / 2])
            there = max(float(background @ [*centre, 1]), 0.2)
            inverse_depth = there * np.exp(rng.uniform(*nearer))
            plane = _sample_plane(rng, centre, inverse_depth, 35, cameras)
            surfaces.append(_Surface(plane, mask))

    for mask in _segments(rng, canvas, int(rng.integers(1, 5))):
        add(mask, (0.0, 0.5))
    for _ in range(rng.integers(0, 3)):
        mask = _blob(rng, side)
        np.copyto(canvas, other, where=mask[..., None] > 0)
        add(mask, (0.2, 0.7))
    return surfaces


def _sample_plane(
    rng: np.random.Generator,
    xy: Float64,
    inverse_depth: float,
    max_tilt_deg: float,
    cameras: _Cameras,
) -> Float64:
    """A plane through the point seen at `xy` that both cameras see from the front.

    Its normal is tilted against the mean of the directions towards the cameras.
    """
    point = np.linalg.solve(cameras.K, [*xy, 1]) / inverse_depth
    towards0, towards1 = -point, cameras.centre1 - point
    normal = towards0 / np.linalg.norm(towards0) + towards1 / np.linalg.norm(towards1)
    normal /= np.linalg.norm(normal)
    tilt = np.cross(normal, rng.normal(size=3))
    tilt *= np.tan(np.deg2rad(rng.uniform(0, max_tilt_deg))) / np.linalg.norm(tilt)
    normal += tilt
    return np.asarray(np.linalg.solve(cameras.K.T, normal / (normal @ point)))


def _segments(rng: np.random.Generator, canvas: Bytes, number: int) -> list[Bytes]:
    """Masks of connected parts whose borders follow the edges of the image."""
    side = _SEGMENT_SIDE
    small = cv2.resize(canvas, (side, side), interpolation=cv2.INTER_AREA)
    seeds = rng.integers(1, side - 1, (_SEEDS, 2))
    markers = np.zeros((side, side), np.int32)
    markers[seeds[:, 1], seeds[:, 0]] = np.arange(1, _SEEDS + 1)
    cells = np.maximum(cv2.watershed(small, markers), 0).astype(np.uint8)
    # watershed leaves the lines between cells empty
    cells = np.where(cells, cells, cv2.dilate(cells, np.ones((3, 3), np.uint8)))
    anchors = seeds[: number + 1]
    away = ((seeds[:, None] - anchors) ** 2).sum(axis=2)
    part_of_cell = np.concatenate(([0], away.argmin(axis=1)))
    parts = part_of_cell[cells]
    return [_enlarged(parts == part, len(canvas)) for part in range(1, number + 1)]


def _enlarged(mask: NDArray[np.bool_], side: int) -> Bytes:
    smooth = cv2.resize(mask.astype(np.uint8) * 255, (side, side))
    return np.asarray(cv2.threshold(smooth, 127, 255, cv2.THRESH_BINARY)[1], np.uint8)


def _blob(rng: np.random.Generator, side: int) -> Bytes:
    """The mask of a round or a jagged object."""
    corners = int(rng.integers(4, 24))
    angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
    radii = side * rng.uniform(0.05, 0.15) * rng.uniform(0.6, 1.4, corners)
    rim = rng.uniform(0.15, 0.85, 2) * side + radii[:, None] * np.column_stack(
        (np.cos(angles), np.sin(angles))
    )
    mask = np.zeros((side, side), np.uint8)
    cv2.fillPoly(mask, [rim.astype(np.int32)], (255,))
    return mask


def _sample_relief(
    rng: np.random.Generator, side: int, surfaces: list[_Surface], cameras: _Cameras
) -> Float32:
    """Smooth bumps of the inverse depth [C, C], too flat to hide each other."""
    coarse = int(rng.integers(3, 9))
    knots = rng.normal(size=(coarse, coarse)).astype(np.float32)
    bumps = cv2.resize(knots, (side, side), interpolation=cv2.INTER_CUBIC)
    slope = max(float(np.abs(np.diff(bumps, axis=axis)).max()) for axis in (0, 1))
    # the epipolar displacement per unit of inverse depth, over the canvas
    corners = np.array(
        [[x, y] for x in (0, side / 2, side) for y in (0, side / 2, side)]
    )
    farthest = 1.0
    for surface in surfaces:
        back, epipole = _to_canvas(surface.plane, cameras)
        seen = _transform(np.asarray(np.linalg.inv(back), np.float64), corners)
        shift = epipole[2] * _transform(back, seen) - epipole[:2]
        farthest = max(farthest, float(np.hypot(*shift.T).max()))
    most = min(_MAX_RELIEF, _MAX_SLOPE / (np.sqrt(2) * max(slope, 1e-6) * farthest))
    return np.asarray(bumps * np.float32(rng.uniform(0, most)), np.float32)


# -------------------------------------------------------------------------- rendering
def _to_canvas(plane: Float64, cameras: _Cameras) -> tuple[Float64, Float64]:
    """The homography [3, 3] from view 1 to the canvas, and the epipole through it.

    A canvas pixel p with relief r is seen at q where, up to scale and with h the
    homography's image of q, p = h + r (e[2] h - e[:2]).
    """
    epipole = cameras.K1 @ cameras.translation
    forth = cameras.K1 @ cameras.rotation @ np.linalg.inv(cameras.K)
    back: Float64 = np.linalg.inv(forth + np.outer(epipole, plane)).astype(np.float64)
    return back, back @ epipole


def _transform(homography: Float64, xy: Float64) -> Float64:
    lifted = xy @ homography[:, :2].T + homography[:, 2]
    mapped: Float64 = lifted[:, :2] / lifted[:, 2:]
    return mapped


def _look_straight(surfaces: list[_Surface], relief: Float32) -> tuple[Float32, Bytes]:
    """What camera 0 sees: inverse depth and number of the front surface, [C, C]."""
    side = len(relief)
    inverse_depth = np.zeros((side, side), np.float32)
    front = np.zeros((side, side), np.uint8)
    for number, surface in enumerate(surfaces):
        left, top, width, height = 0, 0, side, side
        if surface.mask is not None:
            left, top, width, height = cv2.boundingRect(surface.mask)
        box = slice(top, top + height), slice(left, left + width)
        here = _affine(surface.plane, left, left + width, top, top + height)
        here += relief[box]
        is_nearer = here > inverse_depth[box]
        if surface.mask is not None:
            is_nearer &= surface.mask[box] > 0
        np.copyto(inverse_depth[box], here, where=is_nearer)
        np.copyto(front[box], np.uint8(number), where=is_nearer)
    return inverse_depth, front


def _look_from_other(
    surfaces: list[_Surface],
    relief: Float32,
    front: Bytes,
    textures: tuple[Bytes, Bytes],
    cameras: _Cameras,
    size: int,
) -> tuple[Bytes, Float32]:
    """What camera 1 sees.

    Args:
        surfaces: All of the scene.
        relief: [C, C] inverse depth on top of that of the planes.
        front: [C, C] which surface camera 0 sees.
        textures: The canvas, and what surfaces look like where it does not show them.
        cameras: Both.
        size: S.

    Returns:
        1. The image [S, S, 3].
        2. The inverse depth [S, S], 0 where nothing is known.
    """
    nearest = np.zeros((size, size), np.float32)
    source = np.zeros((2, size, size), np.float32)  # canvas pixel that is seen
    seen = np.zeros((size, size), np.uint8)
    for number, surface in enumerate(surfaces):
        back, epipole = _to_canvas(surface.plane, cameras)
        left, right, top, bottom = _extent(surface, relief, cameras, size)
        if left >= right or top >= bottom:
            continue
        box = slice(top, bottom), slice(left, right)
        x, y, z = (_affine(row, left, right, top, bottom) for row in back)
        is_seen = z > 0
        np.divide(1, z, out=z, where=is_seen)
        x, y = x * z, y * z
        e = epipole.astype(np.float32)  # float64 scalars would widen the arrays
        shift_x, shift_y = e[2] * x - e[0], e[2] * y - e[1]
        bump = _at(relief, x, y)
        for _ in range(_NUM_STEPS - 1):
            bump = _at(relief, x + bump * shift_x, y + bump * shift_y)
        x += bump * shift_x
        y += bump * shift_y
        n = surface.plane.astype(np.float32)
        inverse0 = n[0] * x + n[1] * y + (n[2] + bump)
        inverse1 = inverse0 / (z * (1 + e[2] * bump))
        is_seen &= (inverse0 > _LEAST_INVERSE_DEPTH) & (inverse1 > nearest[box])
        if surface.mask is not None:
            is_seen &= cv2.remap(surface.mask, x, y, cv2.INTER_LINEAR) > 127
        np.copyto(nearest[box], inverse1, where=is_seen)
        for kept, new in zip(source, (x, y), strict=True):
            np.copyto(kept[box], new, where=is_seen)
        np.copyto(seen[box], np.uint8(number), where=is_seen)
    x, y = source
    known = cv2.remap(front, x, y, cv2.INTER_NEAREST, borderMode=cv2.BORDER_REFLECT_101)
    sharp, hidden = (_draw(texture, source) for texture in textures)
    np.copyto(sharp, hidden, where=(known != seen)[..., None])
    return sharp, nearest


def _affine(row: Float64, left: int, right: int, top: int, bottom: int) -> Float32:
    """Values of row . (x, y, 1) over a rectangle of pixels."""
    x = row[0] * np.arange(left, right)
    y = row[1] * np.arange(top, bottom) + row[2]
    values: Float32 = y.astype(np.float32)[:, None] + x.astype(np.float32)
    return values


def _at(values: Float32, x: Float32, y: Float32) -> Float32:
    sampled = cv2.remap(values, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
    return np.asarray(sampled, np.float32)


def _extent(
    surface: _Surface, relief: Float32, cameras: _Cameras, size: int
) -> tuple[int, int, int, int]:
    """The rectangle of view 1 that a surface can be in: left, right, top, bottom."""
    whole = 0, size, 0, size
    if surface.mask is None:
        return whole
    x, y, width, height = cv2.boundingRect(surface.mask)
    ends = (x - 1, x + width), (y - 1, y + height), cv2.minMaxLoc(relief)[:2]
    points = np.stack(np.meshgrid(*ends), axis=-1).reshape(-1, 3)
    inverse_depth = points[:, :2] @ surface.plane[:2] + surface.plane[2] + points[:, 2]
    forth = cameras.K1 @ cameras.rotation @ np.linalg.inv(cameras.K)
    lifted = np.column_stack((points[:, :2], np.ones(len(points)))) @ forth.T
    lifted += inverse_depth[:, None] * (cameras.K1 @ cameras.translation)
    if (lifted[:, 2] <= 0).any():
        return whole
    seen = lifted[:, :2] / lifted[:, 2:]
    (left, top), (right, bottom) = (
        np.clip(side, 0, size).astype(int)
        for side in (np.floor(seen.min(axis=0)), np.ceil(seen.max(axis=0)) + 1)
    )
    return int(left), int(right), int(top), int(bottom)


def _draw(texture: Bytes, source: Float32) -> Bytes:
    """The pixels of `texture`, mirrored beyond its border, at `source` [2, S, S]."""
    x, y = source
    drawn = cv2.remap(
        texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101
    )
    return np.asarray(drawn, np.uint8)


def _depth(inverse_depth: Float32) -> Float32:
    is_known = inverse_depth > _LEAST_INVERSE_DEPTH
    return np.divide(1, inverse_depth, out=np.zeros_like(inverse_depth), where=is_known)


# --------------------------------------------------------------------------- geometry
def _inverse(pose: Float64) -> Float64:
    """The inverse of a rigid motion [3, 4]."""
    rotation = pose[:, :3].T
    return np.column_stack((rotation, -rotation @ pose[:, 3]))


def _swapped(view: ParallaxView) -> ParallaxView:
    return ParallaxView(
        image0=view.image1,
        image1=view.image0,
        depth0=view.depth1,
        depth1=view.depth0,
        K0=view.K1,
        K1=view.K0,
        cam1_from_cam0=_inverse(view.cam1_from_cam0),
    )


def _project(
    depth: Float32, K: Float64, motion: Float64, K_there: Float64
) -> tuple[Float32, Float32]:
    """Where pixels with a depth lie in the other image, and how near they are there.

    Returns:
        1. Places [S, S, 2]; NaN where the depth is unknown or the point is behind.
        2. Inverse depth [S, S] there.
    """
    height, width = depth.shape
    forth = K_there @ motion[:, :3] @ np.linalg.inv(K)
    inverse = np.divide(1, depth, out=np.zeros_like(depth), where=depth > 0)
    x, y, z = (
        _affine(row, 0, width, 0, height) + np.float32(offset) * inverse
        for row, offset in zip(forth, K_there @ motion[:, 3], strict=True)
    )
    is_ahead = (inverse > 0) & (z > 0)
    z = np.divide(1, z, out=np.full_like(z, np.nan), where=is_ahead)
    places = np.stack((x * z, y * z), axis=-1).astype(np.float32, copy=False)
    return places, (inverse * z).astype(np.float32, copy=False)


def _where_visible(places: Float32, inverse: Float32, depth: Float32) -> Float32:
    """Replaces places outside of, or behind what is seen in, the other image by NaN."""
    height, width = depth.shape
    x, y = np.ascontiguousarray(places.transpose(2, 0, 1))
    with np.errstate(invalid="ignore"):
        is_visible = (x >= 0) & (x <= width - 1) & (y >= 0) & (y <= height - 1)
        seen = cv2.remap(depth, x, y, cv2.INTER_NEAREST)
        is_visible &= np.abs(seen * inverse - 1) < _DEPTH_STEP / width
    return np.where(is_visible[..., None], places, np.float32(np.nan))
