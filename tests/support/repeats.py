"""Captures of scenes that repeat themselves, made of points: no pixels, known poses.

A point looks like every other point of its `look`, as a window looks like the same
window of the next house. Which of them a keypoint is matched with is left to chance and
to the side it is seen from, as descriptors do.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.config import DatabaseConfig
from sfmprep.evaluation.reference import CameraPose
from sfmprep.mapping.verify import verify_matches
from sfmprep.pairing.pairs import exhaustive_pairs
from sfmprep.types import Float64, Index

SIZE = (960, 720)
_FOCAL = 820.0
_NOISE_PX = 0.6
_FOUND = 0.75  # share of the points in view that become keypoints
_SAME_DEG = 25.0  # how far a look survives a change of the direction it is seen from
_WRONG = 0.04  # matches that are nothing


@dataclass(frozen=True, kw_only=True, eq=False)
class Scene:
    """Points on the walls of boxes, on the ground and behind, and what sees them."""

    xyz: Float64  # [N, 3]
    normal: Float64  # [N, 3] unit, outwards
    frame: Float64  # [N, 3, 3] axes in which points of one look are seen alike
    look: Index  # [N]
    boxes: Float64  # [B, 2, 3] lower and upper corners, which hide what is behind
    rotations: Float64  # [V, 3, 3] camera from world
    centres: Float64  # [V, 3]


def facades(seed: int) -> Scene:
    """A house with the same front on two opposite sides, and a walk around it."""
    rng = np.random.default_rng([seed, 11])
    wide, deep, high = rng.uniform(7, 10), rng.uniform(5, 9), rng.uniform(4, 6)
    parts = _Parts(rng)
    box = np.array([[-wide / 2, -deep / 2, 0], [wide / 2, deep / 2, high]])
    # y = -deep / 2 and its copy, turned by half a turn about the vertical
    fronts = int(rng.integers(350, 600))
    parts.wall(fronts, wide, high, deep / 2, turns=(0, 180), same=True)
    parts.wall(int(rng.integers(200, 400)), deep, high, wide / 2, turns=(90,))
    parts.wall(int(rng.integers(200, 400)), deep, high, wide / 2, turns=(270,))
    size = max(wide, deep)
    parts.ground(int(rng.integers(500, 1100)), 1.9 * size, box)
    parts.surroundings(int(rng.integers(150, 400)), 4 * size, 1.5 * high)
    radius = rng.uniform(1.25, 1.5) * size
    return parts.scene([box], *_ring(rng, int(rng.integers(40, 56)), radius, high / 2))


def fourfold(seed: int) -> Scene:
    """A square pillar with four equal sides on a floor that is not, and a turn."""
    rng = np.random.default_rng([seed, 13])
    wide, high = rng.uniform(1.6, 2.4), rng.uniform(2, 3.5)
    parts = _Parts(rng)
    box = np.array([[-wide / 2, -wide / 2, 0], [wide / 2, wide / 2, high]])
    sides = int(rng.integers(250, 400))
    parts.wall(sides, wide, high, wide / 2, turns=(0, 90, 180, 270), same=True)
    parts.ground(int(rng.integers(250, 700)), 2.6 * wide, box)
    parts.surroundings(int(rng.integers(100, 300)), 7 * wide, 2 * high)
    radius = rng.uniform(2.3, 3.0) * wide
    return parts.scene([box], *_ring(rng, int(rng.integers(40, 56)), radius, high / 2))


def plain(seed: int) -> Scene:
    """The house without repetition: what must stay whole."""
    scene = facades(seed)
    return Scene(**{**scene.__dict__, "look": np.arange(len(scene.look))})


class _Parts:
    """Points that are being gathered."""

    def __init__(self, rng: np.random.Generator) -> None:
        self._rng = rng
        self._columns: list[tuple[Float64, Float64, Float64, Index]] = []
        self._looks = 0

    def wall(
        self,
        count: int,
        wide: float,
        high: float,
        away: float,
        *,
        turns: tuple[int, ...],
        same: bool = False,
    ) -> None:
        """Points on upright walls, `away` from the middle; all alike, or each anew."""
        local = np.column_stack(
            [
                self._rng.uniform(-wide / 2, wide / 2, count),
                np.full(count, -away),
                self._rng.uniform(0, high, count),
            ]
        )
        for turn in turns:
            axes = _about_z(turn)
            if turn == turns[0] or not same:
                look = self._new_looks(count)
            normal = np.tile(axes @ [0, -1, 0], (count, 1))
            frame = np.tile(axes, (count, 1, 1))
            self._columns.append((local @ axes.T, normal, frame, look))

    def ground(self, count: int, reach: float, box: Float64) -> None:
        """Points on the level ground outside of a box, and some a little above it."""
        xy = self._rng.uniform(-reach, reach, (3 * count, 2))
        free = (np.abs(xy) > box[1, :2]).any(axis=1) & (np.hypot(*xy.T) < reach)
        xy = xy[free][:count]
        count = len(xy)
        high = self._rng.exponential(0.05 * reach / 4, count)
        local = np.column_stack([xy, high])
        up = np.tile([0.0, 0.0, 1.0], (count, 1))
        frame = np.tile(np.eye(3), (count, 1, 1))
        self._columns.append((local, up, frame, self._new_looks(count)))

    def surroundings(self, count: int, away: float, high: float) -> None:
        """Points of things far behind the cameras, all around."""
        angle = self._rng.uniform(0, 2 * np.pi, count)
        far = away * self._rng.uniform(0.8, 1.5, count)
        inwards = -np.column_stack([np.cos(angle), np.sin(angle), 0 * angle])
        local = -far[:, None] * inwards
        local[:, 2] = self._rng.uniform(0, high, count)
        frame = np.tile(np.eye(3), (count, 1, 1))
        self._columns.append((local, inwards, frame, self._new_looks(count)))

    def _new_looks(self, count: int) -> Index:
        self._looks += count
        return np.arange(self._looks - count, self._looks)

    def scene(
        self, boxes: list[Float64], rotations: Float64, centres: Float64
    ) -> Scene:
        """All of it."""
        xyz, normal, frame, look = (
            np.concatenate(column) for column in zip(*self._columns, strict=True)
        )
        return Scene(
            xyz=xyz,
            normal=normal,
            frame=frame,
            look=look,
            boxes=np.array(boxes),
            rotations=rotations,
            centres=centres,
        )


def _about_z(degrees: float) -> Float64:
    cos, sin = np.cos(np.radians(degrees)), np.sin(np.radians(degrees))
    return np.array([[cos, -sin, 0], [sin, cos, 0], [0, 0, 1.0]])


def _ring(
    rng: np.random.Generator, count: int, radius: float, middle: float
) -> tuple[Float64, Float64]:
    """Cameras of a walk once around, by hand."""
    rotations, centres = [], []
    for way in np.arange(count) / count:
        angle = 2 * np.pi * way + rng.normal(0, 0.02)
        away = radius * (1 + rng.normal(0, 0.05))
        height = middle * (1.1 + 0.3 * np.sin(5 * angle)) + rng.normal(0, 0.05)
        centre = np.array([away * np.cos(angle), away * np.sin(angle), height])
        target = np.array([0, 0, 0.6 * middle]) + rng.normal(0, 0.04 * radius, 3)
        forward = (target - centre) / np.linalg.norm(target - centre)
        right = np.cross(forward, [0, 0, 1])
        right /= np.linalg.norm(right)
        rotations.append(np.array([right, np.cross(forward, right), forward]))
        centres.append(centre)
    return np.array(rotations), np.array(centres)


def photograph(
    scene: Scene, path: Path, *, seed: int, focal_off: float = 1.04
) -> dict[str, CameraPose]:
    """Writes the verified database of all pairs of these cameras; returns the truth.

    Args:
        scene: What is photographed.
        path: The database, a new file.
        seed: Of keypoints and matches.
        focal_off: The focal length that is guessed, in units of the true one.
    """
    rng = np.random.default_rng([seed, 17])
    width, height = SIZE
    names = [f"{k:03d}.jpg" for k in range(len(scene.centres))]
    seen = [_seen(scene, view, rng) for view in range(len(names))]
    with pycolmap.Database.open(path) as database:
        camera = pycolmap.Camera.create_from_model_name(
            0, "SIMPLE_RADIAL", focal_off * _FOCAL, width, height
        )
        camera.camera_id = database.write_camera(camera)
        rig = pycolmap.Rig()
        rig.add_ref_sensor(camera.sensor_id)
        rig.rig_id = database.write_rig(rig)
        ids = []
        for name, (xy, _) in zip(names, seen, strict=True):
            image = pycolmap.Image(name=name, camera_id=camera.camera_id)
            image.image_id = database.write_image(image)
            frame = pycolmap.Frame()
            frame.rig_id = rig.rig_id
            frame.add_data_id(image.data_id)
            database.write_frame(frame)
            database.write_keypoints(image.image_id, xy.astype(np.float32))
            ids.append(image.image_id)
        for i in range(len(names)):
            for j in range(i + 1, len(names)):
                rows = _matches(scene, (i, seen[i][1]), (j, seen[j][1]), rng)
                if len(rows) >= 8:
                    database.write_matches(ids[i], ids[j], rows.astype(np.uint32))
    config = DatabaseConfig(max_error_px=3.0)
    verify_matches(path, exhaustive_pairs(names), config, num_threads=1)
    return {
        name: CameraPose(rotation=rotation, centre=centre)
        for name, rotation, centre in zip(
            names, scene.rotations, scene.centres, strict=True
        )
    }


def _seen(scene: Scene, view: int, rng: np.random.Generator) -> tuple[Float64, Index]:
    """Keypoints [K, 2] of one camera and the points [K] that they show."""
    rotation, centre = scene.rotations[view], scene.centres[view]
    local = (scene.xyz - centre) @ rotation.T
    xy = _FOCAL * local[:, :2] / local[:, 2:] + np.array(SIZE) / 2
    ray = centre - scene.xyz
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    good = (local[:, 2] > 0) & (xy > 0).all(axis=1) & (xy < SIZE).all(axis=1)
    good &= np.einsum("ni,ni->n", ray, scene.normal) > 0.12
    good &= rng.random(len(good)) < _FOUND
    for box in scene.boxes:
        good &= ~_hidden(scene.xyz + 1e-3 * scene.normal, centre, box)
    rows = np.flatnonzero(good)
    return xy[rows] + rng.normal(0, _NOISE_PX, (len(rows), 2)), rows


def _hidden(xyz: Float64, centre: Float64, box: Float64) -> Index:
    """Which points a box hides from a camera."""
    ray = centre - xyz
    with np.errstate(divide="ignore", invalid="ignore"):
        ways = (box[:, None] - xyz) / ray
    enter, leave = ways.min(axis=0).max(axis=1), ways.max(axis=0).min(axis=1)
    return (enter < leave) & (leave > 0) & (enter < 1)


def _matches(
    scene: Scene,
    side0: tuple[int, Index],
    side1: tuple[int, Index],
    rng: np.random.Generator,
) -> Index:
    """Mutual nearest neighbours [M, 2] between two views."""
    (view0, rows0), (view1, rows1) = side0, side1
    looks0, looks1 = scene.look[rows0], scene.look[rows1]
    order = np.argsort(looks1, kind="stable")
    low = np.searchsorted(looks1[order], looks0, "left")
    high = np.searchsorted(looks1[order], looks0, "right")
    counts = high - low
    first = np.repeat(np.arange(len(rows0)), counts)
    inner = np.arange(len(first)) - np.repeat(np.cumsum(counts) - counts, counts)
    second = order[np.repeat(low, counts) + inner]
    ray0 = _local_rays(scene, view0, rows0[first])
    ray1 = _local_rays(scene, view1, rows1[second])
    angle = np.degrees(np.arccos(np.einsum("ni,ni->n", ray0, ray1).clip(-1, 1)))
    cost = angle / _SAME_DEG + rng.normal(0, 0.4, len(angle))
    accepted = rng.random(len(angle)) < np.exp(-((angle / _SAME_DEG) ** 2))
    best0 = np.full(len(rows0), np.inf)
    best1 = np.full(len(rows1), np.inf)
    np.minimum.at(best0, first, cost)
    np.minimum.at(best1, second, cost)
    mutual = (cost == best0[first]) & (cost == best1[second]) & accepted
    found = np.column_stack([first[mutual], second[mutual]])
    wrong = min(int(_WRONG * len(found)) + 3, len(rows0), len(rows1))
    noise = np.column_stack(
        [rng.choice(len(rows0), wrong, False), rng.choice(len(rows1), wrong, False)]
    )
    both = np.concatenate([found, noise])
    _, keep0 = np.unique(both[:, 0], return_index=True)
    both = both[np.sort(keep0)]
    _, keep1 = np.unique(both[:, 1], return_index=True)
    return both[np.sort(keep1)]


def _local_rays(scene: Scene, view: int, rows: Index) -> Float64:
    """From points to a camera, in the frames in which points of one look are alike."""
    ray = scene.centres[view] - scene.xyz[rows]
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    return np.einsum("nji,nj->ni", scene.frame[rows], ray)


def wrong_share(
    model: pycolmap.Reconstruction, truth: dict[str, CameraPose], limit_deg: float = 8
) -> float:
    """Share, 0..1, of the pairs of registered images turned by more than a limit."""
    images = [model.images[k] for k in model.reg_image_ids()]
    found = np.array([i.cam_from_world().rotation.matrix() for i in images])
    known = np.array([truth[i.name].rotation for i in images])
    world = np.einsum("vji,vjk->vik", known, found)  # one rotation, were all right
    first, second = np.triu_indices(len(images), 1)
    between = np.einsum("pij,pkj->pik", world[first], world[second])
    cosine = (np.trace(between, axis1=1, axis2=2) - 1) / 2
    return float(np.mean(np.degrees(np.arccos(cosine.clip(-1, 1))) > limit_deg))
