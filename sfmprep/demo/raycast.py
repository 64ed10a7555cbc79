"""A small ray caster for matt, textured rectangles, cylinders and spheres.

It draws the demo scene. Since every surface is matt, the light is computed once and
multiplied into the textures (`with_light`); an image is then one exact intersection and
one mip-mapped lookup per sample, four samples a pixel. Pixels are COLMAP's: the centre
of the first one is (0.5, 0.5), so that a world point X is drawn at `K (R X + t)`.
World axes: z is up.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import cv2
import numpy as np

from sfmprep.types import Bytes, Float32, Float64

Texture = Bytes  # [H, W, 3] BGR as displayed, row 0 at v = 0
Hit = tuple[Float32, Float32, Float32]  # ray lengths (inf: missed), u, v

GAMMA = 2.2
SAMPLES = 2  # across and down a pixel


# --------------------------------------------------------------------------- cameras
@dataclass(frozen=True, kw_only=True, eq=False)
class Camera:
    """A pinhole camera at a pose: x_cam = rotation X + translation, OpenCV axes."""

    size: tuple[int, int]  # (W, H)
    intrinsics: Float64  # [3, 3] K, without skew, for COLMAP pixels
    rotation: Float64  # [3, 3]
    translation: Float64  # [3]

    @property
    def centre(self) -> Float64:
        """The camera centre in the world, [3]."""
        return np.asarray(-self.rotation.T @ self.translation)

    def project(self, points: Float64) -> tuple[Float64, Float64]:
        """Returns COLMAP pixels [N, 2] and depths [N] of world points [N, 3]."""
        rays = (points @ self.rotation.T + self.translation) @ self.intrinsics.T
        return rays[:, :2] / rays[:, 2:], rays[:, 2]


def look_at(
    centre: Float64, target: Float64, size: tuple[int, int], roll_deg: float = 0.0
) -> Camera:
    """A camera at `centre` that looks at `target` with a focal length of 0.85 widths.

    A positive roll turns the camera clockwise. The axis must not be vertical.
    """
    forward = (target - centre) / np.linalg.norm(target - centre)
    right = np.cross(forward, [0.0, 0.0, 1.0])
    right /= np.linalg.norm(right)
    level = np.stack([right, np.cross(forward, right), forward])
    cos, sin = np.cos(np.radians(roll_deg)), np.sin(np.radians(roll_deg))
    rotation = np.array([[cos, sin, 0], [-sin, cos, 0], [0, 0, 1]]) @ level
    width, height = size
    focal = 0.85 * width
    return Camera(
        size=size,
        intrinsics=np.array(
            [[focal, 0, width / 2], [0, focal, height / 2], [0, 0, 1]], np.float64
        ),
        rotation=rotation,
        translation=-rotation @ centre,
    )


# -------------------------------------------------------------------------- surfaces
# Over each u runs to the right and v down, from 0 to 1.
@dataclass(frozen=True, kw_only=True, eq=False)
class _Textured:
    texture: Texture

    @cached_property
    def pyramid(self) -> list[Texture]:
        """The texture and its successive halvings."""
        levels = [self.texture]
        while min(levels[-1].shape[:2]) > 1:
            height, width = levels[-1].shape[:2]
            half = (width // 2, height // 2)
            smaller = cv2.resize(levels[-1], half, interpolation=cv2.INTER_AREA)
            levels.append(np.asarray(smaller, np.uint8))
        return levels


@dataclass(frozen=True, kw_only=True, eq=False)
class Rectangle(_Textured):
    """A rectangle, or the ellipse in it; `down` x `right` points to its visible side.

    Intersections count from both sides.
    """

    corner: Float64  # [3] where u = v = 0
    right: Float64  # [3] the side along u
    down: Float64  # [3] the side along v, at right angles to it
    is_round: bool = False

    @cached_property
    def normal(self) -> Float64:
        """The unit normal of the visible side, [3]."""
        normal = np.cross(self.down, self.right)
        return np.asarray(normal / np.linalg.norm(normal))

    def hit(self, origin: Float32, rays: Float32) -> Hit:
        """Intersects rays [3, ...] from `origin` [3, ...] (broadcast) with the surface.

        Those in front count, and of round surfaces only the outside; u and v mean
        nothing where the ray misses.
        """
        start = _from(self.corner, origin)
        along_u = self.right / (self.right @ self.right)
        along_v = self.down / (self.down @ self.down)
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = -_dot(self.normal, start) / _dot(self.normal, rays)
            u = _dot(along_u, start) + depth * _dot(along_u, rays)
            v = _dot(along_v, start) + depth * _dot(along_v, rays)
            # a hair more than the surface: no gaps between those that share an edge
            if self.is_round:
                inside = (u - 0.5) ** 2 + (v - 0.5) ** 2 < 0.25 + 1e-5
            else:
                inside = np.maximum(np.abs(u - 0.5), np.abs(v - 0.5)) < 0.5 + 1e-5
            inside &= depth > 0
        return np.where(inside, depth, np.float32(np.inf)), u, v

    def sample(self, u: Float64, v: Float64) -> tuple[Float64, Float64]:
        """World points [3, N] at (u, v) [N] and unit outward normals [3, N]."""
        points = self.corner[:, None] + np.outer(self.right, u) + np.outer(self.down, v)
        return points, np.repeat(self.normal[:, None], len(u), axis=1)

    @property
    def extent(self) -> Float64:
        """The corners of a polyhedron that holds the surface, [N, 3]."""
        steps = ((0, 0), (1, 0), (0, 1), (1, 1))
        return np.stack(
            [self.corner + i * self.right + j * self.down for i, j in steps]
        )

    @property
    def area(self) -> tuple[float, float]:
        """Width and height of the unrolled surface."""
        return float(np.linalg.norm(self.right)), float(np.linalg.norm(self.down))


@dataclass(frozen=True, kw_only=True, eq=False)
class Cylinder(_Textured):
    """The side of an upright cylinder; u = 0 lies to the north-west (-x, +y)."""

    foot: Float64  # [3] centre of the lower end
    radius: float
    height: float

    def hit(self, origin: Float32, rays: Float32) -> Hit:
        """See `Rectangle.hit`."""
        start = _from(self.foot, origin)
        with np.errstate(divide="ignore", invalid="ignore"):
            depth = _entry(start[:2], rays[:2], self.radius)
            x, y, z = start + depth * rays
            v = 1 - z / self.height
            inside = (depth > 0) & (v >= 0) & (v <= 1)
        return np.where(inside, depth, np.float32(np.inf)), _turns(x, y), v

    def sample(self, u: Float64, v: Float64) -> tuple[Float64, Float64]:
        """See `Rectangle.sample`."""
        normal = _circle(u)
        up = np.outer([0.0, 0.0, self.height], 1 - v)
        return self.foot[:, None] + self.radius * normal + up, normal

    @property
    def extent(self) -> Float64:
        """See `Rectangle.extent`."""
        r = self.radius
        return self.foot + _corners((-r, -r, 0), (r, r, self.height))

    @property
    def area(self) -> tuple[float, float]:
        """See `Rectangle.area`."""
        return 2 * np.pi * self.radius, self.height


@dataclass(frozen=True, kw_only=True, eq=False)
class Sphere(_Textured):
    """A sphere with upright poles; u as on a `Cylinder`, v from the upper pole down."""

    centre: Float64  # [3]
    radius: float

    def hit(self, origin: Float32, rays: Float32) -> Hit:
        """See `Rectangle.hit`."""
        start = _from(self.centre, origin)
        with np.errstate(invalid="ignore"):
            depth = _entry(start, rays, self.radius)
            x, y, z = start + depth * rays
            v = np.arccos(np.clip(z / self.radius, -1, 1)) / np.float32(np.pi)
        return np.where(depth > 0, depth, np.float32(np.inf)), _turns(x, y), v

    def sample(self, u: Float64, v: Float64) -> tuple[Float64, Float64]:
        """See `Rectangle.sample`."""
        normal = np.sin(np.pi * v) * _circle(u)
        normal[2] = np.cos(np.pi * v)
        return self.centre[:, None] + self.radius * normal, normal

    @property
    def extent(self) -> Float64:
        """See `Rectangle.extent`."""
        r = self.radius
        return self.centre + _corners((-r, -r, -r), (r, r, r))

    @property
    def area(self) -> tuple[float, float]:
        """See `Rectangle.area`."""
        return 2 * np.pi * self.radius, np.pi * self.radius


Surface = Rectangle | Cylinder | Sphere


def _from(place: Float64, origin: Float32) -> Float32:
    """Where rays [3, ...] start, seen from a place [3]."""
    return np.asarray((origin.T - place.astype(np.float32)).T)


def _entry(start: Float32, rays: Float32, radius: float) -> Float32:
    """Ray lengths to where rays [2 or 3, ...] enter a circle or sphere around 0."""
    half = sum(x * ray for x, ray in zip(start, rays, strict=True))
    square = sum(ray**2 for ray in rays)
    outside = sum(x**2 for x in start) - radius**2
    return np.asarray((-half - np.sqrt(half**2 - square * outside)) / square)


def _turns(x: Float32, y: Float32) -> Float32:
    """From places around the z axis to u in 0..1."""
    return np.asarray(
        (np.arctan2(y, x) / np.float32(2 * np.pi) - np.float32(0.375)) % 1
    )


def _circle(u: Float64) -> Float64:
    """The inverse of `_turns`: places [3, N] on the unit circle around the z axis."""
    angle = 2 * np.pi * (u + 0.375)
    return np.stack([np.cos(angle), np.sin(angle), np.zeros_like(u)])


def _dot(vector: Float64, rays: Float32) -> Float32:
    """The dot product of one vector [3] with an array of vectors [3, ...]."""
    x, y, z = vector.astype(np.float32)
    return np.asarray(x * rays[0] + y * rays[1] + z * rays[2])


def _corners(low: Sequence[float], high: Sequence[float]) -> Float64:
    """The corners of an axis-aligned box, [8, 3]."""
    return np.stack(np.meshgrid(*zip(low, high, strict=True)), axis=-1).reshape(-1, 3)


# ----------------------------------------------------------------------------- light
@dataclass(frozen=True, kw_only=True, eq=False)
class Light:
    """Light from distant directions, and from everywhere."""

    directions: Float64  # [N, 3] unit vectors towards the light
    colours: Float64  # [N, 3] BGR, linear, falling on a surface that faces it
    ambient: Float64  # [3] BGR, linear, in all shadows too


def with_light(
    solids: Sequence[Sequence[Surface]], light: Light, cell: float
) -> list[Surface]:
    """Multiplies light and shadows into the textures of solids (groups of surfaces).

    The light is computed at points some `cell` apart and interpolated. It is clipped at
    1, which leaves a texture as it is.
    """
    surfaces = [surface for solid in solids for surface in solid]
    grids = [
        (max(2, round(height / cell)), max(2, round(width / cell)))
        for width, height in (surface.area for surface in surfaces)
    ]
    samples = [
        surface.sample(((column + 0.5) / columns).ravel(), ((row + 0.5) / rows).ravel())
        for surface, (rows, columns) in zip(surfaces, grids, strict=True)
        for row, column in [np.indices((rows, columns))]
    ]
    points, normals = (
        np.concatenate(part, axis=1).astype(np.float32)
        for part in zip(*samples, strict=True)
    )
    shade = _received(points, normals, solids, light).clip(0, 1) ** (1 / GAMMA)
    lit = []
    parts = np.split(shade, np.cumsum([rows * columns for rows, columns in grids]))
    for surface, grid, part in zip(surfaces, grids, parts[:-1], strict=True):
        size = surface.texture.shape[1::-1]
        texture = surface.texture * cv2.resize(part.reshape(*grid, 3), size)
        lit.append(replace(surface, texture=np.rint(texture).astype(np.uint8)))
    return lit


def _received(
    points: Float32,
    normals: Float32,
    solids: Sequence[Sequence[Surface]],
    light: Light,
) -> Float32:
    """The light [N, 3] on points [3, N] of the solids."""
    origin = points + np.float32(1e-3) * normals
    received = np.repeat(light.ambient[None], points.shape[1], 0).astype(np.float32)
    bounds = [_bounding_sphere(solid) for solid in solids]
    for direction, colour in zip(light.directions, light.colours, strict=True):
        cosine = _dot(direction, normals)
        facing = np.flatnonzero(cosine > 0)
        start = origin[:, facing]
        ray = direction.astype(np.float32)[:, None]
        # two axes across the ray: most solids are far from most rays
        across = np.linalg.svd(direction[None])[2][1:]
        x, y = across.astype(np.float32) @ start
        lit = np.ones(len(facing), bool)
        for solid, (middle, radius) in zip(solids, bounds, strict=True):
            x_middle, y_middle = (across @ middle).astype(np.float32)
            gap = (x - x_middle) ** 2 + (y - y_middle) ** 2
            near = np.flatnonzero(lit & (gap < radius**2))
            for blocker in solid:
                lit[near] &= np.isinf(blocker.hit(start[:, near], ray)[0])
        seen = facing[lit]
        received[seen] += np.multiply.outer(cosine[seen], colour.astype(np.float32))
    return received


def _bounding_sphere(solid: Sequence[Surface]) -> tuple[Float64, float]:
    """Centre [3] and radius of a sphere that holds the solid."""
    corners = np.concatenate([surface.extent for surface in solid])
    middle = (corners.min(axis=0) + corners.max(axis=0)) / 2
    return middle, float(np.linalg.norm(corners - middle, axis=1).max())


# ------------------------------------------------------------------------- rendering
def render_image(surfaces: Sequence[Surface], camera: Camera, sky: Texture) -> Float32:
    """Draws the surfaces as the camera sees them.

    Args:
        surfaces: In any order; may be empty.
        camera: Any size.
        sky: [H, 1, 3] from the zenith down to the horizon, seen where nothing is hit.

    Returns:
        [H, W, 3] BGR as displayed, 0..255, not rounded.
    """
    width, height = (SAMPLES * length for length in camera.size)
    rays = _rays(camera, width, height)
    origin = camera.centre.astype(np.float32)[:, None, None]
    length = np.sqrt(rays[0] ** 2 + rays[1] ** 2 + rays[2] ** 2)
    elevation = np.arcsin(np.clip(rays[2] / length, 0, 1))
    rows = (1 - elevation / np.float32(np.pi / 2)) * np.float32(len(sky) - 1)
    image = cv2.remap(sky, np.zeros_like(rows), rows, cv2.INTER_LINEAR)
    nearest = np.full((height, width), np.inf, np.float32)
    owner = np.full((height, width), -1, np.int16)
    u, v = np.empty_like(nearest), np.empty_like(nearest)
    windows = [
        (number, surface, window)
        for number, surface in enumerate(surfaces)
        if (window := _window(surface, camera)) is not None
    ]
    for number, surface, window in windows:
        depth, u_hit, v_hit = surface.hit(origin, rays[:, *window])
        closer = depth < nearest[window]
        for all_hits, hits in ((nearest, depth), (u, u_hit), (v, v_hit)):
            np.copyto(all_hits[window], hits, where=closer)
        owner[window][closer] = number
    for number, surface, window in windows:
        mine = owner[window] == number
        if not mine.any():
            continue
        footprint = nearest[window][mine] / (SAMPLES * camera.intrinsics[0, 0])
        if isinstance(surface, Rectangle):
            slant = np.abs(_dot(surface.normal, rays[:, *window]))[mine]
            # seen at a slant a sample covers more of one axis: the mean of both
            footprint = footprint * np.sqrt(length[window][mine] / slant)
        image[window][mine] = _look_up(
            surface, u[window][mine], v[window][mine], footprint
        )
    return np.asarray(
        cv2.resize(image.astype(np.float32), camera.size, interpolation=cv2.INTER_AREA)
    )


def _rays(camera: Camera, width: int, height: int) -> Float32:
    """World directions [3, height, width] of length 1 along the camera's axis."""
    (fx, _, cx), (_, fy, cy), _ = camera.intrinsics
    x = ((np.arange(width) + 0.5) * camera.size[0] / width - cx) / fx
    y = ((np.arange(height) + 0.5) * camera.size[1] / height - cy) / fy
    right, down, forward = camera.rotation.astype(np.float32)[:, :, None, None]
    x_rays = x.astype(np.float32)[None, :] * right
    y_rays = y.astype(np.float32)[:, None] * down
    return np.asarray(x_rays + (y_rays + forward), np.float32)


def _window(surface: Surface, camera: Camera) -> tuple[slice, slice] | None:
    """The rows and columns of samples that may show the surface; None if none do."""
    if isinstance(surface, Rectangle) and (
        surface.normal @ (camera.centre - surface.corner) <= 0
    ):
        return None
    xy, depth = camera.project(surface.extent)
    width, height = (SAMPLES * length for length in camera.size)
    if depth.max() <= 0:
        return None
    if depth.min() < 0.05:
        return slice(0, height), slice(0, width)
    low = np.floor(SAMPLES * xy.min(axis=0)).clip(0, (width, height)).astype(int)
    high = np.ceil(SAMPLES * xy.max(axis=0)).clip(0, (width, height)).astype(int)
    if (high <= low).any():
        return None
    return slice(int(low[1]), int(high[1])), slice(int(low[0]), int(high[0]))


def _look_up(surface: Surface, u: Float32, v: Float32, footprint: Float32) -> Bytes:
    """Trilinear texture lookup: colours [N, 3] at (u, v), for a sample's size there."""
    texels = surface.texture.shape[1] / surface.area[0]
    top = len(surface.pyramid) - 1
    level = np.log2(np.maximum(footprint * np.float32(texels), 1)).clip(0, top)
    colours = np.empty((len(u), 3), np.uint8)
    whole = np.minimum(level.astype(np.int8), max(top - 1, 0))
    for k in np.unique(whole):
        chosen = np.flatnonzero(whole == k)
        fine = _bilinear(surface.pyramid[k], u[chosen], v[chosen])
        coarse = _bilinear(surface.pyramid[min(k + 1, top)], u[chosen], v[chosen])
        weight = np.rint(256 * (level[chosen] - np.float32(k))).astype(np.int16)
        step = (coarse.astype(np.int16) - fine).astype(np.int32) * weight[:, None]
        colours[chosen] = fine + (step >> 8)
    return colours


def _bilinear(texture: Texture, u: Float32, v: Float32) -> Bytes:
    """Colours [N, 3] at (u, v) of one level, interpolated between texel centres."""
    height, width = texture.shape[:2]
    # cv2.remap takes no rows of more than 32767 samples
    table = (-(-len(u) // 1024), 1024)
    x, y = np.zeros(table, np.float32), np.zeros(table, np.float32)
    x.ravel()[: len(u)] = u * np.float32(width) - np.float32(0.5)
    y.ravel()[: len(u)] = v * np.float32(height) - np.float32(0.5)
    colours = cv2.remap(
        texture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(colours.reshape(-1, 3)[: len(u)])
