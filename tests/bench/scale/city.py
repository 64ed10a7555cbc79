"""A city of façades and a walk through its streets, as features; there are no pixels.

Blocks stand on a grid of streets. Their façades carry points, made when they are asked
for, so that a city may be of any size. The camera walks along the streets and takes
corners as people do; streets that were walked least come next, and as there are fewer
of them than it walks, it closes loops all the time.

A keypoint's score tells which point it shows, exactly, as a share of 2^24: it is what
the matcher answers from. Its descriptor is the point's, changed by the side that it is
seen from and by noise.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet
from sfmprep.evaluation.reference import CameraPose
from sfmprep.types import Features, Float64, Index

SIZE = (960, 720)
FOCAL = 700.0
_RADIAL = -0.03
_NOISE_PX = 0.6
_FOUND = 0.8  # share of the points in view that become keypoints
_MAX_KEYPOINTS = 400
_OUTLIERS = 40  # keypoints of an image that show nothing
_REACH_M = 32.0  # beyond which nothing is seen
_LEAST_COSINE = 0.2  # between a façade's normal and what it is seen from

_BLOCK_M, _STREET_M, _HIGH_M = 30.0, 14.0, 9.0
_PITCH_M = _BLOCK_M + _STREET_M
_PER_FACADE = 450
_STEP_M = 1.7  # between two photographs
_CORNER_M = 6.0  # radius of a turn
_WALKED = 1.5  # times each street, in each direction
_DIMENSIONS = 32
_SIDEWAYS = 0.9  # how much the side that a point is seen from changes its descriptor
_DESCRIPTOR_NOISE = 0.25
_ONE = 1 << 24
NOTHING = _ONE - (1 << 20)  # from here on a number is none of a point


@dataclass(frozen=True, kw_only=True)
class City:
    """So many blocks each way, and a walk of so many photographs."""

    num_images: int
    seed: int = 0

    @property
    def blocks(self) -> int:
        """Along each side of the city, such that streets are walked more than once."""
        edges = self.num_images * _STEP_M / _PITCH_M / _WALKED
        # n blocks have 2 n (n + 1) streets, each with two directions
        return max(round((np.sqrt(1 + edges) - 1) / 2), 1)

    @property
    def names(self) -> tuple[str, ...]:
        """Of the photographs, in the order of time."""
        return tuple(f"{k // 1000:03d}/{k:06d}.jpg" for k in range(self.num_images))

    def images(self, root: Path) -> ImageSet:
        """The capture, as if its files were there."""
        info = ImageInfo(
            size=SIZE,
            orientation=1,
            num_bytes=0,
            make="Made",
            model="City",
            focal_length_35mm=FOCAL / np.hypot(*SIZE) * np.hypot(36, 24),
        )
        return ImageSet(root, self.names, dict.fromkeys(self.names, info), {})

    def poses(self) -> tuple[Float64, Float64]:
        """The true rotations [N, 3, 3], camera from world, and centres [N, 3]; z up."""
        return _poses(self.num_images, self.blocks, self.seed)

    def reference(self) -> dict[str, CameraPose]:
        """The true poses by name."""
        return {
            name: CameraPose(rotation=rotation, centre=centre)
            for name, rotation, centre in zip(self.names, *self.poses(), strict=True)
        }

    def features(self) -> Iterator[tuple[str, Features]]:
        """The features of the photographs, one after the other."""
        rotations, centres = self.poses()
        for k, name in enumerate(self.names):
            yield name, _seen(self, k, rotations[k], centres[k])

    def xyz(self, ids: Index) -> Float64:
        """Where points [N], by rising number, lie [N, 3]."""
        places = np.empty((len(ids), 3))
        facades = ids // _PER_FACADE
        for number in np.unique(facades).tolist():
            (block, side), wide = divmod(number, 4), self.blocks + 2
            facade = _facade(
                self.seed, self.blocks, block % wide - 1, block // wide - 1, side
            )
            chosen = facades == number
            places[chosen] = facade.xyz[ids[chosen] - facade.ids[0]]
        return places


# ---------------------------------------------------------------------------- the walk
def _poses(num_images: int, blocks: int, seed: int) -> tuple[Float64, Float64]:
    rng = np.random.default_rng([seed, 1])
    path = _path(num_images * _STEP_M + 4 * _PITCH_M, blocks, rng)
    length = np.concatenate(
        ([0.0], np.linalg.norm(np.diff(path, axis=0), axis=1).cumsum())
    )

    def at(way: Float64) -> Float64:
        return np.column_stack([np.interp(way, length, path[:, k]) for k in range(2)])

    way = np.arange(num_images) * _STEP_M + rng.uniform(0, 0.4, num_images) + 1
    ahead = at(way + 2.5) - at(way - 2.5)
    heading = np.arctan2(ahead[:, 1], ahead[:, 0])
    turn = heading + np.radians(rng.normal(0, 6, num_images))
    pitch = np.radians(rng.normal(4, 3, num_images))
    xy = at(way) + rng.normal(0, 0.4, (num_images, 2))
    centres = np.column_stack([xy, 1.7 + rng.normal(0, 0.08, num_images)])
    forward = np.column_stack(
        [np.cos(turn) * np.cos(pitch), np.sin(turn) * np.cos(pitch), np.sin(pitch)]
    )
    right = np.cross(forward, [0, 0, 1])
    right /= np.linalg.norm(right, axis=1, keepdims=True)
    return np.stack([right, np.cross(forward, right), forward], axis=1), centres


def _path(length_m: float, blocks: int, rng: np.random.Generator) -> Float64:
    """A polyline [K, 2] along the streets, with round corners."""
    walked: Counter[tuple[int, ...]] = Counter()
    node, step = np.zeros(2, np.int64), np.array([1, 0])
    nodes = [node]
    while (len(nodes) - 1) * _PITCH_M < length_m:
        turns = [step, np.array([-step[1], step[0]]), np.array([step[1], -step[0]])]
        ways = [s for s in turns if min(node + s) >= 0 and max(node + s) <= blocks]
        counts = [walked[*node.tolist(), *s.tolist()] + rng.random() / 2 for s in ways]
        step = ways[int(np.argmin(counts))]
        walked[*node.tolist(), *step.tolist()] += 1
        node = node + step
        nodes.append(node)
    corners = np.array(nodes) * _PITCH_M
    points = [corners[:1].astype(float)]
    for before, here, after in zip(corners, corners[1:], corners[2:], strict=False):
        enter, leave = ((other - here) / _PITCH_M for other in (before, after))
        t = np.linspace(0, 1, 9)[:, None]
        start, end = here + _CORNER_M * enter, here + _CORNER_M * leave
        points.append((1 - t) ** 2 * start + 2 * t * (1 - t) * here + t**2 * end)
    return np.concatenate(points)


# -------------------------------------------------------------------------- the façades
@dataclass(frozen=True, kw_only=True, eq=False)
class _Facade:
    """The points of one side of a block."""

    ids: Index  # [P]
    xyz: Float64  # [P, 3]
    normal: Float64  # [3] outwards
    along: Float64  # [3]
    looks: Float64  # [P, 3, D] descriptor, and what the side seen from adds to it


@lru_cache(maxsize=512)
def _facade(seed: int, blocks: int, column: int, row: int, side: int) -> _Facade:
    """Side 0..3 of a block, counted from the south."""
    number = ((row + 1) * (blocks + 2) + column + 1) * 4 + side
    rng = np.random.default_rng([seed, 2, number])
    turn = np.array([[0, -1], [1, 0]])
    axes = np.linalg.matrix_power(turn, side)
    along, normal = axes @ [1, 0], axes @ [0, -1]
    middle = (np.array([column, row]) + 0.5) * _PITCH_M
    offset = rng.uniform(-_BLOCK_M / 2, _BLOCK_M / 2, _PER_FACADE)
    relief = rng.choice([0.0, 0.0, -0.3, 0.4], _PER_FACADE)  # windows and balconies
    xy = middle + offset[:, None] * along + (_BLOCK_M / 2 + relief)[:, None] * normal
    high = rng.uniform(0, _HIGH_M, _PER_FACADE)
    looks = rng.normal(size=(_PER_FACADE, 3, _DIMENSIONS)) / np.sqrt(_DIMENSIONS)
    return _Facade(
        ids=number * _PER_FACADE + np.arange(_PER_FACADE),
        xyz=np.column_stack([xy, high]),
        normal=np.append(normal, 0.0),
        along=np.append(along, 0.0),
        looks=looks,
    )


def _seen(city: City, view: int, rotation: Float64, centre: Float64) -> Features:
    rng = np.random.default_rng([city.seed, 3, view])
    blocks = city.blocks
    ids, xys, looks = [], [], []
    near = [
        (column, row)
        for column in _near(centre[0], blocks)
        for row in _near(centre[1], blocks)
    ]
    for column, row in near:
        for side in range(4):
            facade = _facade(city.seed, blocks, column, row, side)
            away = centre - facade.xyz
            far = np.linalg.norm(away, axis=1)
            ray = away / far[:, None]
            local = -away @ rotation.T
            with np.errstate(divide="ignore", invalid="ignore"):
                plane = local[:, :2] / local[:, 2:]
            squared = (plane**2).sum(axis=1, keepdims=True)
            xy = FOCAL * plane * (1 + _RADIAL * squared) + np.array(SIZE) / 2
            good = (local[:, 2] > 0.5) & (far < _REACH_M) & (squared[:, 0] < 1)
            good &= (xy > 0).all(axis=1) & (xy < SIZE).all(axis=1)
            good &= ray @ facade.normal > _LEAST_COSINE
            good &= rng.random(len(good)) < _FOUND
            rows = np.flatnonzero(good)
            if not len(rows):
                continue
            hidden = np.zeros(len(rows), bool)
            for block in near:
                hidden |= _hidden(facade.xyz[rows] + ray[rows], centre, block)
            rows = rows[~hidden]
            from_side = np.column_stack(
                [np.ones(len(rows)), *(_SIDEWAYS * ray[rows] @ axis for axis in
                                       (facade.along, np.array([0, 0, 1.0])))]
            )  # fmt: skip
            ids.append(facade.ids[rows])
            xys.append(xy[rows])
            looks.append(np.einsum("pk,pkd->pd", from_side, facade.looks[rows]))
    found = np.concatenate([np.empty(0, np.int64), *ids])
    chosen = rng.permutation(len(found))[:_MAX_KEYPOINTS]
    xy = np.concatenate([np.empty((0, 2)), *xys])[chosen]
    look = np.concatenate([np.empty((0, _DIMENSIONS)), *looks])[chosen]
    # what shows nothing has numbers behind those of all points
    nothing = NOTHING + rng.choice(_ONE - NOTHING, _OUTLIERS, replace=False)
    ids_here = np.concatenate([found[chosen], nothing])
    xy = np.concatenate([xy, rng.uniform(0, SIZE, (_OUTLIERS, 2))])
    stray = rng.normal(size=(_OUTLIERS, _DIMENSIONS)) / np.sqrt(_DIMENSIONS)
    look = np.concatenate([look, stray])
    look += rng.normal(0, _DESCRIPTOR_NOISE / np.sqrt(_DIMENSIONS), look.shape)
    look /= np.linalg.norm(look, axis=1, keepdims=True)
    order = np.argsort(-ids_here)
    return Features(
        xy=(xy + rng.normal(0, _NOISE_PX, xy.shape))[order].astype(np.float32),
        scores=(ids_here[order] / _ONE).astype(np.float32),
        descriptors=look[order].astype(np.float16),
        image_size=SIZE,
    )


def _near(where: float, blocks: int) -> range:
    """Columns, or rows, of blocks that may be seen; those around the city too."""
    own = int(np.floor(where / _PITCH_M))
    return range(max(own - 1, -1), min(own + 2, blocks + 1))


def _hidden(xyz: Float64, centre: Float64, block: tuple[int, int]) -> Index:
    """Which points a block hides from a camera; it is higher than both."""
    low = np.array(block) * _PITCH_M + _STREET_M / 2 + 0.5
    high = low + _BLOCK_M - 1
    ray = centre[:2] - xyz[:, :2]
    with np.errstate(divide="ignore", invalid="ignore"):
        ways = np.stack([(low - xyz[:, :2]) / ray, (high - xyz[:, :2]) / ray])
    enter, leave = ways.min(axis=0).max(axis=1), ways.max(axis=0).min(axis=1)
    return (enter < leave) & (leave > 0) & (enter < 1)


def point_ids(features: Features) -> Index:
    """Which point each keypoint shows; those that show none have high numbers."""
    return np.round(features.scores.astype(np.float64) * _ONE).astype(np.int64)
