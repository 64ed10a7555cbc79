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

from sfmprep.train.pairs.parallax_scene import (
    Cameras,
    Surface,
    crop,
    sample_cameras,
    sample_relief,
    sample_surfaces,
    to_canvas,
)
from sfmprep.train.pairs.views import Views, as_tensor_image
from sfmprep.types import Bytes, Float32, Float64

_CANVAS = 1.5  # side of the known part of the scene over that of the view
_LEAST_INVERSE_DEPTH = 0.05  # where the background's middle has 1; less is unknown
# Each reduces the error, at first some 15 pixels, by `MAX_SLOPE`.
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
    canvas, behind = (crop(rng, photograph, size + 2 * margin) for _ in range(2))
    cameras = sample_cameras(
        rng,
        size,
        margin,
        max_angle=np.deg2rad(max_angle_deg),
        max_roll=np.deg2rad(max_roll_deg),
        max_scale=max_scale,
    )
    surfaces = sample_surfaces(rng, canvas, behind[::-1], cameras)
    relief = sample_relief(rng, len(canvas), surfaces, cameras)
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


# -------------------------------------------------------------------------- rendering
def _look_straight(surfaces: list[Surface], relief: Float32) -> tuple[Float32, Bytes]:
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
    surfaces: list[Surface],
    relief: Float32,
    front: Bytes,
    textures: tuple[Bytes, Bytes],
    cameras: Cameras,
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
        back, epipole = to_canvas(surface.plane, cameras)
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
    surface: Surface, relief: Float32, cameras: Cameras, size: int
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
