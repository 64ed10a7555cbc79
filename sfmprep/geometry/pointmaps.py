"""Focal lengths and the relative pose of two images out of their points in space.

A network such as MASt3R gives each pixel of both images a point in the camera of the
first one. From the pair in both orders follow both focal lengths (Weiszfeld, 1937) and,
by resection, how the cameras lie: with no match at all, and with an error of degrees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pycolmap
from scipy.spatial import cKDTree

from sfmprep.coords import stored_pose, upright_pose
from sfmprep.types import Float32, Float64, Mask

_ROUNDS = 10  # of weighted least squares
_LEAST = 1e-8  # pixels; nearer residuals weigh no more
_MAX_ERROR_PX = 5.0  # of the network's input, as its authors have it
_MIN_POINTS = 15
_MAX_POINTS = 4096  # that the pose is found from
_DEVIATION = 1.4826  # of a normal distribution, for its median deviation


@dataclass(frozen=True, kw_only=True, eq=False)
class View:
    """What a pair says about one of its images; N is the pixels of the network."""

    points: Float32  # [N, 3] in the upright camera of the first image
    confidence: Float32  # [N] 1 and more
    is_sure: Mask  # [N] confident enough for the pose
    offsets: Float32  # [N, 2] from the middle of the upright image, pixels of the file
    pixel: float  # pixels of the file for one of the network
    orientation: int  # EXIF, of the file


@dataclass(frozen=True, kw_only=True, eq=False)
class Depths:
    """How far away what some pixels of an image show is; K may be 0."""

    xy: Float64  # [K, 2] COLMAP pixels of the file
    depth: Float64  # [K] along the axis of the camera, above 0, units of a model


@dataclass(frozen=True, kw_only=True, eq=False)
class Foreseen:
    """Where an image without a pose should be, by its pointmaps with one that has one.

    Lengths are those of the model that the first image is in.
    """

    first: str  # image with a pose
    second: str
    focal_px: float  # of the file of the second
    second_from_first: Float64  # [3, 4] of the cameras of the files
    share: float  # of the confident pixels that agree, 0..1
    spread: float  # by which share the depths of points differ from the network's


@dataclass(frozen=True, kw_only=True, eq=False)
class PointmapGeometry:
    """How the cameras of a pair are, by their points in space."""

    focal_px: tuple[float, float]  # of the files
    second_from_first: Float64 | None  # [3, 4] of the cameras of the files, or None
    share: float  # of the confident pixels that the pose agrees with, 0..1
    confidence: float  # geometric mean of the means of both images, 1 and more
    offsets: Float32  # [N, 2] of the pixels of the first image, as in `View`
    depth: Float32  # [N] that they have in its camera; the unit is that of the pose
    is_sure: Mask  # [N] of them, those that are confident

    def unit(self, offsets: Float64, depth: Float64) -> tuple[float, float]:
        """How long its unit of length is in that of a model; see `unit_of_depths`."""
        sure = self.is_sure
        return unit_of_depths(self.offsets[sure], self.depth[sure], offsets, depth)


def unit_of_depths(
    own_xy: Float32, own_depth: Float32, xy: Float64, depth: Float64
) -> tuple[float, float]:
    """How long the unit of a network's depths is in that of a model.

    Args:
        own_xy: [N, 2] pixels whose depth the network tells; N may be 0.
        own_depth: [N] what it tells.
        xy: [M, 2] where the image sees points of the model; M may be 0.
        depth: [M] that these have there, in units of the model, above 0.

    Returns:
        The median of the ratios of depths, and by what share they differ from it (1.48
        times the median of differences); NaN where fewer than 15 points fall on such
        pixels.
    """
    if len(own_xy) < _MIN_POINTS or not len(depth):
        return np.nan, np.nan
    tree = cKDTree(own_xy)
    reach = np.median(tree.query(own_xy[:100], k=2)[0][:, 1])
    away, rows = tree.query(xy, distance_upper_bound=2 * reach)
    there = np.flatnonzero(np.isfinite(away))
    told = own_depth[rows[there]]
    ratios = depth[there][told > 0] / told[told > 0]
    if len(ratios) < _MIN_POINTS:
        return np.nan, np.nan
    middle = float(np.median(ratios))
    return middle, float(_DEVIATION * np.median(np.abs(ratios / middle - 1)))


def pointmap_geometry(
    forward: tuple[View, View], backward: tuple[View, View], *, seed: int = 0
) -> PointmapGeometry:
    """Focal lengths and relative pose from a pair and the same in the other order.

    The pose is that of the order whose points are more confident; its unit of length is
    the network's, metres for MASt3R. It is None where too few pixels are confident or
    agree.

    Args:
        forward: Both images, points in the camera of the first.
        backward: The second image and the first, points in the camera of the second.
        seed: Of RANSAC.

    Raises:
        ValueError: an EXIF orientation is mirrored, which no camera pose can express.
    """
    focals = [
        focal_length(side[0].points, side[0].offsets) for side in (forward, backward)
    ]
    sure = [_mean_confidence(side) for side in (forward, backward)]
    is_forward = sure[0] >= sure[1]
    fixed, moved = forward if is_forward else backward
    pose, share = relative_pose(
        moved, focals[1] if is_forward else focals[0], seed=seed
    )
    first = fixed if is_forward else moved
    depth = first.points[:, 2]
    if not is_forward and pose is not None:
        depth = first.points @ pose[2, :3] + pose[2, 3]
    if pose is not None:
        turn = upright_pose(np.eye(3, 4), fixed.orientation)[:, :3]
        pose = stored_pose(pose, moved.orientation)
        pose = np.column_stack((pose[:, :3] @ turn, pose[:, 3]))
        if not is_forward:
            turn = pose[:, :3].T
            pose = np.column_stack((turn, -turn @ pose[:, 3]))
    return PointmapGeometry(
        focal_px=(focals[0], focals[1]),
        second_from_first=pose,
        share=share,
        confidence=max(sure),
        offsets=first.offsets,
        depth=depth.astype(np.float32),
        is_sure=first.is_sure,
    )


def focal_length(
    points: Float32,
    offsets: Float32,
    limits: tuple[float, float] = (0.0, np.inf),
) -> float:
    """The focal length that brings points to their pixels, by Weiszfeld's algorithm.

    It minimises the sum of distances, not of their squares, so that wrong points count
    little, unless they are very near to the camera.

    Args:
        points: [N, 3] in the image's own camera, N 1 or more.
        offsets: [N, 2] of their pixels from the principal point.
        limits: Between which it lies, in the unit of `offsets`.
    """
    with np.errstate(divide="ignore", invalid="ignore"):
        slopes = points[:, :2].astype(np.float64) / points[:, 2:]
    slopes[~np.isfinite(slopes)] = 0
    along = (slopes * offsets).sum(1)
    squared = (slopes**2).sum(1)
    focal = along.mean() / max(squared.mean(), np.finfo(float).tiny)
    for _ in range(_ROUNDS):
        distance = np.linalg.norm(offsets - focal * slopes, axis=1)
        weight = 1 / np.maximum(distance, _LEAST)
        total = (weight * squared).mean()
        focal = (weight * along).mean() / max(total, np.finfo(float).tiny)
    return float(np.clip(focal, *limits))


def relative_pose(
    view: View, focal_px: float, *, seed: int = 0
) -> tuple[Float64 | None, float]:
    """Where the camera of a second image is, from its points in that of the first.

    Args:
        view: The second image.
        focal_px: Its focal length, pixels of the file.
        seed: Of RANSAC.

    Returns:
        The pose [3, 4] of the upright second camera from the upright first, None where
        there is none, and the share of the confident pixels that agree with it.
    """
    rows = np.flatnonzero(view.is_sure)
    if len(rows) < _MIN_POINTS or not focal_px > 0:
        return None, 0.0
    chosen = np.random.default_rng(seed).permutation(rows)[:_MAX_POINTS]
    middle = np.abs(view.offsets).max(0) + view.pixel
    camera = pycolmap.Camera(
        model="SIMPLE_PINHOLE",
        width=int(np.ceil(2 * middle[0])),
        height=int(np.ceil(2 * middle[1])),
        params=[focal_px, *middle],
    )
    options = pycolmap.AbsolutePoseEstimationOptions()
    options.ransac.max_error = _MAX_ERROR_PX * view.pixel
    options.ransac.random_seed = seed
    found = pycolmap.estimate_and_refine_absolute_pose(
        (view.offsets[chosen] + middle).astype(np.float64),
        view.points[chosen].astype(np.float64),
        camera,
        options,
    )
    if found is None or found["num_inliers"] < _MIN_POINTS:
        return None, 0.0
    pose = np.asarray(found["cam_from_world"].matrix(), np.float64)
    return pose, found["num_inliers"] / len(chosen)


def _mean_confidence(side: tuple[View, View]) -> float:
    """The geometric mean of how sure both images of a pair are, 1 and more."""
    means = [float(view.confidence.mean()) for view in side]
    return float(np.sqrt(means[0] * means[1]))
