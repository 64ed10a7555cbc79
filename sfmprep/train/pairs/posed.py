"""Pairs of real photographs with known poses and, at some points, known depth.

A reconstruction knows where its points are in both photographs, no more. What follows
for a keypoint beside such points is in `PosedPair.places`; all others stay unknown, so
that nothing is taught that nobody measured. Positions have pixel centres at integers.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import cv2
import numpy as np
import pycolmap
from scipy.sparse import csr_array
from scipy.spatial import cKDTree

from sfmprep import coords
from sfmprep.capture.image_file import read_info, read_pixels
from sfmprep.errors import ImageError, ReconstructionError
from sfmprep.geometry.undistort import Maps, Undistortion, undistortion
from sfmprep.train.pairs.views import as_tensor_image
from sfmprep.types import Bytes, Float32, Float64, Index, Mask

_MIN_TRACK = 3  # photographs of a point; two can agree on a wrong match
_MAX_ERROR_PX = 2.0
_MIN_SHARED = 24  # points of a pair
_MAX_ANGLE_DEG = 60
_ANGLE_STEP_DEG = 15

_MIN_POINTS = 12  # that a pair of crops shares, if the photographs do
_MAX_SCALE = 1.5  # of what one crop shows against the other
_GROWTH = 1.4  # of crops that share fewer

_NUM_NEIGHBOURS = 4
_REACH_PX = 16.0  # as far as the depth of points is taken to hold, if they agree
_MIN_AGREEING = 3
_BESIDE_PX = 2.0  # so near to a point, its depth holds without others
_MAX_SPREAD_PX = 3.0  # of the places that the neighbours' depths lead to


@dataclass(frozen=True, kw_only=True, eq=False)
class PosedImage:
    """One photograph, upright and without distortion, and the points seen in it."""

    pixels: Bytes  # [H, W, 3] RGB
    K: Float64  # [3, 3] pixel centres at integers
    cam_from_world: Float64  # [3, 4]
    point_ids: Index  # [Q] ascending
    xy: Float32  # [Q, 2] where the points are projected to
    depth: Float32  # [Q] along the optical axis


@dataclass(frozen=True, kw_only=True, eq=False)
class PosedPair:
    """Two square crops of photographs of one scene, with cameras and points."""

    image0: Float32  # [3, S, S] in 0..1
    image1: Float32
    points0: Float32  # [P, 2] points observed in both crops, where they are projected
    points1: Float32  # [P, 2] the same points in image 1
    seen0: Float32  # [Q, 3] x, y, depth of points observed in or around crop 0
    seen1: Float32
    K0: Float64  # [3, 3] of the crops, pixel centres at integers
    K1: Float64
    cam1_from_cam0: Float64  # [3, 4]

    def places(self, xy: Float32, image: int) -> tuple[Float32, Mask]:
        """Tells where keypoints are in the other image, as far as that is known.

        It is if a point within 2 pixels gives the depth, or if at least three of the
        four nearest points within 16 pixels do and agree: the depths of all of them
        lead to the same place within 3 pixels. What hides the place is not known.

        Args:
            xy: [N, 2] keypoints of `image`; N may be 0.
            image: 0 or 1.

        Returns:
            1. The places [N, 2], NaN where unknown or outside of the other image.
            2. Whether the place is known, be it outside, [N] bool.
        """
        seen = self.seen1 if image else self.seen0
        if not len(seen) or not len(xy):
            return np.full((len(xy), 2), np.nan, np.float32), np.zeros(
                len(xy), np.bool_
            )
        distance, row = cKDTree(seen[:, :2]).query(
            xy, k=_NUM_NEIGHBOURS, distance_upper_bound=_REACH_PX
        )
        is_beside = distance[:, :1] <= _BESIDE_PX
        is_used = distance <= np.where(is_beside, _BESIDE_PX, _REACH_PX)
        inverse_depth = 1 / seen[np.minimum(row, len(seen) - 1), 2]
        weight = is_used / (1 + np.where(is_used, distance, 0))
        mean = (weight * inverse_depth).sum(axis=1) / np.maximum(
            weight.sum(axis=1), 1e-9
        )
        ends = (
            np.where(is_used, inverse_depth, np.inf).min(axis=1),
            np.where(is_used, inverse_depth, 0).max(axis=1),
        )
        is_known = is_beside[:, 0] | (is_used.sum(axis=1) >= _MIN_AGREEING)
        place = self._project(xy, mean, image)
        first, last = (
            self._project(xy, np.where(is_known, end, mean), image) for end in ends
        )
        # NaN, behind the camera, compares false
        is_known &= np.linalg.norm(first - last, axis=1) <= _MAX_SPREAD_PX
        is_inside = ((place >= 0) & (place <= self.image0.shape[1] - 1)).all(axis=1)
        place[~(is_known & is_inside)] = np.nan
        return place.astype(np.float32), is_known

    def _project(self, xy: Float32, inverse_depth: Float64, image: int) -> Float64:
        """Places [N, 2] in the other image, NaN behind its camera."""
        rotation, translation = self.cam1_from_cam0[:, :3], self.cam1_from_cam0[:, 3]
        K, K_there = self.K0, self.K1
        if image:
            rotation, translation = rotation.T, -rotation.T @ translation
            K, K_there = self.K1, self.K0
        forth = K_there @ rotation @ np.linalg.inv(K)
        lifted = xy @ forth[:, :2].T + forth[:, 2]
        lifted += inverse_depth[:, None] * (K_there @ translation)
        ahead = np.where(lifted[:, 2:] > 0, lifted[:, 2:], np.nan)
        return np.asarray(lifted[:, :2] / ahead, np.float64)


@dataclass(frozen=True, eq=False)
class Capture:
    """A reconstructed capture in memory: its photographs, and pairs that overlap."""

    images: tuple[PosedImage, ...]
    pairs: tuple[Index, ...]
    """[P, 2] rows of `images`, one array for each step of 15 degrees between viewing
    directions; none is empty."""

    @classmethod
    def read(
        cls, folder: Path, model: pycolmap.Reconstruction, *, max_size: int = 1024
    ) -> Capture:
        """Decodes the photographs of a model, upright and without distortion.

        Points count that three or more photographs see and that fit within 2 pixels;
        pairs count that share 24 of these and look at most 60 degrees apart.

        Args:
            folder: The folder that the names in the model are relative to.
            model: Poses and points of the photographs as they are in `folder`.
            max_size: Longer side in pixels that photographs are reduced to; 2.4
                megabytes of memory each at 1024.

        Raises:
            ImageError: a photograph is missing or cannot be decoded.
            ReconstructionError: no two photographs share enough points.
        """
        xyz = {
            number: point.xyz
            for number, point in model.points3D.items()
            if point.track.length() >= _MIN_TRACK and point.error <= _MAX_ERROR_PX
        }
        posed = sorted(
            (image for image in model.images.values() if image.has_pose),
            key=lambda image: (image.camera_id, image.name),
        )
        read: dict[str, PosedImage] = {}
        for _, of_camera in groupby(posed, key=lambda image: image.camera_id):
            views: dict[int, tuple[Undistortion, Maps]] = {}  # of this camera alone
            for image in of_camera:
                read[image.name] = _read_image(
                    folder, model, image, xyz, views, max_size
                )
        images = tuple(read[name] for name in sorted(read))
        pairs = _overlapping(images)
        if not pairs:
            raise ReconstructionError(
                f"no two of the {len(images)} posed photographs in {folder} share"
                f" {_MIN_SHARED} points that {_MIN_TRACK} photographs see, so there is"
                " nothing to train with. Leave this capture out."
            )
        return cls(images, pairs)


def sample_posed(rng: np.random.Generator, capture: Capture, size: int) -> PosedPair:
    """Cuts two crops around a point that two photographs of a capture share.

    All steps of 15 degrees between viewing directions that the capture has are equally
    likely. Crops that share fewer than 12 points grow, at most to the photographs'
    shorter side. What both show differs in scale by up to 1.5, either way.

    Args:
        rng: The only source of chance.
        capture: A reconstructed capture.
        size: S, side of the crops in pixels after they are resized.
    """
    group = capture.pairs[rng.integers(len(capture.pairs))]
    rows = rng.permutation(group[rng.integers(len(group))])
    first, second = (capture.images[row] for row in rows)
    _, *shared = np.intersect1d(
        first.point_ids, second.point_ids, assume_unique=True, return_indices=True
    )
    middle = int(rng.integers(len(shared[0])))
    sides = _sample_sides(rng, (first, second), [rows[middle] for rows in shared], size)
    shifts = rng.uniform(-0.25, 0.25, (2, 2))
    while True:
        boxes = [
            _box(image, image.xy[rows[middle]] + shift * side, side)
            for image, rows, shift, side in zip(
                (first, second), shared, shifts, sides, strict=True
            )
        ]
        crops = [
            _crop_xy(image.xy[rows], box, size)
            for image, rows, box in zip((first, second), shared, boxes, strict=True)
        ]
        is_inside = np.all([_is_inside(xy, size) for xy in crops], axis=0)
        shorter = [min(image.pixels.shape[:2]) for image in (first, second)]
        is_whole = all(box[2] == most for box, most in zip(boxes, shorter, strict=True))
        if is_inside.sum() >= _MIN_POINTS or is_whole:
            break
        sides = [side * _GROWTH for side in sides]
    motion = _square(second.cam_from_world) @ np.linalg.inv(
        _square(first.cam_from_world)
    )
    return PosedPair(
        image0=_cut(first, boxes[0], size),
        image1=_cut(second, boxes[1], size),
        points0=crops[0][is_inside],
        points1=crops[1][is_inside],
        seen0=_seen(first, boxes[0], size),
        seen1=_seen(second, boxes[1], size),
        K0=_crop_matrix(boxes[0], size) @ first.K,
        K1=_crop_matrix(boxes[1], size) @ second.K,
        cam1_from_cam0=motion[:3],
    )


# ---------------------------------------------------------------------------- reading
def _read_image(
    folder: Path,
    model: pycolmap.Reconstruction,
    image: pycolmap.Image,
    xyz: dict[int, Float64],
    views: dict[int, tuple[Undistortion, Maps]],  # of its camera, by orientation
    max_size: int,
) -> PosedImage:
    path = folder / image.name
    if not path.is_file():
        raise ImageError(
            f"{path} is missing, but the model names {image.name!r}. Give the folder of"
            " photographs that was reconstructed."
        )
    try:
        orientation = read_info(path).orientation
    except ImageError as error:
        raise ImageError(f"{path}: {error}") from error
    if orientation not in views:
        camera = model.cameras[image.camera_id]
        view = undistortion(
            camera, orientation, camera_id=image.camera_id, max_size=max_size
        )
        views[orientation] = view, view.maps()
    view, maps = views[orientation]
    pixels = read_pixels(path)
    stored = view.source.width, view.source.height
    if pixels.shape[1::-1] != stored:
        raise ImageError(
            f"{path} is {pixels.shape[1]} x {pixels.shape[0]} pixels but the model"
            f" expects {stored[0]} x {stored[1]}. Give the folder of photographs that"
            " was reconstructed."
        )
    K = view.target.calibration_matrix()
    K[:2, 2] -= 0.5
    pose = coords.upright_pose(image.cam_from_world().matrix(), view.orientation)
    ids = np.array(
        sorted({p.point3D_id for p in image.points2D if p.point3D_id in xyz}), np.int64
    )
    world = np.array([xyz[number] for number in ids.tolist()]).reshape(-1, 3)
    lifted = (world @ pose[:, :3].T + pose[:, 3]) @ K.T
    depth = lifted[:, 2]
    xy = lifted[:, :2] / depth[:, None]
    is_seen = (depth > 0) & (xy >= 0).all(axis=1)
    is_seen &= (xy <= np.array(view.target_size) - 1).all(axis=1)
    return PosedImage(
        pixels=view.warp(pixels, maps),
        K=K,
        cam_from_world=pose,
        point_ids=ids[is_seen],
        xy=xy[is_seen].astype(np.float32),
        depth=depth[is_seen].astype(np.float32),
    )


def _overlapping(images: tuple[PosedImage, ...]) -> tuple[Index, ...]:
    """Pairs of images that share points, grouped by the angle between them."""
    if not images:
        return ()
    columns = np.concatenate([image.point_ids for image in images])
    rows = np.repeat(np.arange(len(images)), [len(i.point_ids) for i in images])
    numbers = np.unique(columns, return_inverse=True)[1]
    sees = csr_array((np.ones(len(rows), np.int64), (rows, numbers)))
    axes = np.stack([image.cam_from_world[2, :3] for image in images])
    angle = np.rad2deg(np.arccos(np.clip(axes @ axes.T, -1, 1)))
    pairs = np.argwhere(np.triu((sees @ sees.T).toarray() >= _MIN_SHARED, 1))
    angles = angle[pairs[:, 0], pairs[:, 1]]
    groups = (
        pairs[(angles >= least) & (angles < least + _ANGLE_STEP_DEG)]
        for least in range(0, _MAX_ANGLE_DEG, _ANGLE_STEP_DEG)
    )
    return tuple(group for group in groups if len(group))


# -------------------------------------------------------------------------- the crops
_Box = tuple[int, int, int]  # left, top, side


def _sample_sides(
    rng: np.random.Generator,
    images: tuple[PosedImage, PosedImage],
    rows: list[int],
    size: int,
) -> list[float]:
    """Sides of the crops in pixels of the photographs, so that they show as much."""
    shorter = min(images[0].pixels.shape[:2])
    side = np.exp(rng.uniform(np.log(min(size, shorter)), np.log(shorter)))
    first, second = (
        image.K[0, 0] / image.depth[row]
        for image, row in zip(images, rows, strict=True)
    )
    scale = np.exp(rng.uniform(-1, 1) * np.log(_MAX_SCALE))
    return [float(side), float(max(side * second / first * scale, size / 2))]


def _box(image: PosedImage, middle: Float32, side: float) -> _Box:
    """A square around `middle` of whole pixels that lies on the image."""
    height, width = image.pixels.shape[:2]
    whole = max(1, min(round(side), height, width))
    left, top = (
        int(np.clip(round(float(at) - whole / 2), 0, most - whole))
        for at, most in zip(middle, (width, height), strict=True)
    )
    return left, top, whole


def _cut(image: PosedImage, box: _Box, size: int) -> Float32:
    left, top, side = box
    part = image.pixels[top : top + side, left : left + side]
    how = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
    resized = cv2.resize(part, (size, size), interpolation=how)
    return as_tensor_image(np.asarray(resized, np.uint8))


def _crop_matrix(box: _Box, size: int) -> Float64:
    """From pixels of the photograph to those of the crop, centres at integers."""
    left, top, side = box
    scale = size / side
    return np.array(
        [
            [scale, 0, (0.5 - left) * scale - 0.5],
            [0, scale, (0.5 - top) * scale - 0.5],
            [0, 0, 1],
        ]
    )


def _crop_xy(xy: Float32, box: _Box, size: int) -> Float32:
    matrix = _crop_matrix(box, size)
    return np.asarray(xy * matrix[0, 0] + matrix[:2, 2], np.float32)


def _is_inside(xy: Float32, size: int, margin: float = 0) -> Mask:
    return np.asarray(((xy >= -margin) & (xy <= size - 1 + margin)).all(axis=1))


def _seen(image: PosedImage, box: _Box, size: int) -> Float32:
    xy = _crop_xy(image.xy, box, size)
    is_near = _is_inside(xy, size, _REACH_PX)
    return np.column_stack((xy, image.depth))[is_near]


def _square(pose: Float64) -> Float64:
    return np.vstack((pose, [0, 0, 0, 1]))
