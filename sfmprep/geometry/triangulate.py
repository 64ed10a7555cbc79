"""Points from rays of known cameras, vectorised: where they meet, and how well.

All rays are unit vectors in world axes and poses are never changed. A point minimises
the squared distances to its rays, each divided by the distance to that camera: the
angles between the rays and the directions to the point, in pixels after multiplying
with the focal length. That is linear but for the distances, so a few rounds with those
of the round before give the least-squares point, and the matrix of the last round is
the inverse of its covariance at a noise of one pixel.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfmprep.coords import Float64

Index = NDArray[np.int64]
Mask = NDArray[np.bool_]

_ROUNDS = 3
_ROWS, _COLUMNS = np.triu_indices(3)
_NEAREST = 1e-100  # a point at the very centre of a camera: its weight is finite
_RIDGE = 1e-12  # of the trace: parallel rays give a far point instead of an error


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """The registered images of a model, in the order of their ids."""

    ids: Index  # [V] image ids
    names: tuple[str, ...]
    cameras: tuple[pycolmap.Camera, ...]
    rotations: Float64  # [V, 3, 3] camera from world
    centres: Float64  # [V, 3] world
    focals: Float64  # [V] pixels

    def __len__(self) -> int:
        return len(self.ids)

    @staticmethod
    def of(model: pycolmap.Reconstruction) -> Views:
        """Reads poses and cameras; a model without registered images gives none."""
        images = [model.images[i] for i in sorted(model.reg_image_ids())]
        cameras = tuple(model.cameras[image.camera_id] for image in images)
        poses = np.array([i.cam_from_world().matrix() for i in images]).reshape(
            -1, 3, 4
        )
        return Views(
            ids=np.array([image.image_id for image in images], np.int64),
            names=tuple(image.name for image in images),
            cameras=cameras,
            rotations=poses[:, :, :3],
            centres=-np.einsum("vji,vj->vi", poses[:, :, :3], poses[:, :, 3]),
            focals=np.array([camera.mean_focal_length() for camera in cameras]),
        )

    def rays(self, view: int, xy: Float64) -> Float64:
        """World directions [N, 3] of pixels [N, 2]; NaN where a camera sees nothing."""
        rays = np.asarray(self.cameras[view].cam_ray_from_img(xy), np.float64)
        turned: Float64 = rays.reshape(-1, 3) @ self.rotations[view]
        return turned


@dataclass(frozen=True, kw_only=True, eq=False)
class Observations:
    """Which view sees which point where; sorted by point, every point has some."""

    point: Index  # [M] rows of the points, 0, 0, 1, 1, 1, 2, ...
    view: Index  # [M] rows of the views
    keypoint: Index  # [M] rows of that image's keypoints
    xy: Float64  # [M, 2] COLMAP pixels
    ray: Float64  # [M, 3] unit, world axes

    def __len__(self) -> int:
        return len(self.point)

    @property
    def num_points(self) -> int:
        """How many points there are."""
        return int(self.point[-1]) + 1 if len(self) else 0

    @property
    def starts(self) -> Index:
        """The first observation of every point [N]."""
        return np.searchsorted(self.point, np.arange(self.num_points))

    def counts(self) -> Index:
        """How many observations every point has [N]."""
        return np.bincount(self.point, minlength=self.num_points)

    def by_view(self, num_views: int) -> list[Index]:
        """The rows of every view's observations."""
        order = np.argsort(self.view, kind="stable")
        ends = np.searchsorted(self.view[order], np.arange(1, max(num_views, 1)))
        return np.split(order, ends)[:num_views]

    def select(self, rows: Mask | Index) -> Observations:
        """Some of the observations, points numbered anew without gaps."""
        point = self.point[rows]
        if len(point):
            point = np.concatenate(([0], np.cumsum(np.diff(point) != 0)))
        return replace(
            self,
            point=point,
            view=self.view[rows],
            keypoint=self.keypoint[rows],
            xy=self.xy[rows],
            ray=self.ray[rows],
        )


def observations_of(
    model: pycolmap.Reconstruction, views: Views
) -> tuple[NDArray[np.uint64], Float64, Observations]:
    """The points of a model that registered images see, and their observations.

    Returns:
        Point ids [N] in rising order, positions [N, 3], and the observations; all
        empty for a model without points.
    """
    ids, rows, keypoints, xys, rays = [], [], [], [], []
    for row, image_id in enumerate(views.ids.tolist()):
        image = model.images[image_id]
        seen = image.get_observation_points2D()
        xy = np.array([p.xy for p in seen], np.float64).reshape(-1, 2)
        ray = views.rays(row, xy)
        inside = np.isfinite(ray).all(axis=1)
        ids.append(np.array([p.point3D_id for p in seen], np.uint64)[inside])
        rows.append(np.full(int(inside.sum()), row, np.int64))
        idxs = np.array(image.get_observation_point2D_idxs(), np.int64)
        keypoints.append(idxs[inside])
        xys.append(xy[inside])
        rays.append(ray[inside])
    if not ids:
        ids = [np.empty(0, np.uint64)]
        rows = keypoints = [np.empty(0, np.int64)]
        xys, rays = [np.empty((0, 2))], [np.empty((0, 3))]
    point_ids, point = np.unique(np.concatenate(ids), return_inverse=True)
    order = np.argsort(point, kind="stable")
    observations = Observations(
        point=point[order],
        view=np.concatenate(rows)[order],
        keypoint=np.concatenate(keypoints)[order],
        xy=np.concatenate(xys)[order],
        ray=np.concatenate(rays)[order],
    )
    xyz = np.array([model.points3D[i].xyz for i in point_ids.tolist()], np.float64)
    return point_ids, xyz.reshape(-1, 3), observations


def triangulate(views: Views, observations: Observations) -> Float64:
    """The points [N, 3] that fit their rays best; far off where rays are parallel."""
    xyz: Float64 = np.empty((0, 3))
    distances: Float64 = np.ones(len(observations))
    ray, centres = observations.ray, views.centres[observations.view]
    nearest = centres - np.einsum("mi,mi->m", ray, centres)[:, None] * ray
    for _ in range(_ROUNDS if len(observations) else 0):
        weights = _weights(views, observations, distances)
        left = _information(observations, weights)
        left += _RIDGE * np.trace(left, axis1=1, axis2=2)[:, None, None] * np.eye(3)
        right = _sum_by_point(observations, weights[:, None] * nearest)
        xyz = np.asarray(np.linalg.solve(left, right[:, :, None])[:, :, 0], np.float64)
        distances = _distances(views, observations, xyz)
    return xyz


def relative_stddev(
    views: Views, observations: Observations, xyz: Float64, noise_px: float
) -> Float64:
    """How uncertain every point is [N], at this noise of keypoints and fixed poses.

    The standard deviation along the most uncertain axis, as a share of the distance to
    the nearest camera that sees the point; infinite where its rays are parallel.
    """
    if not len(observations):
        return np.empty(0)
    distances = _distances(views, observations, xyz)
    weights = _weights(views, observations, distances)
    information = np.linalg.eigvalsh(_information(observations, weights))[:, 0]
    nearest = np.minimum.reduceat(distances, observations.starts)
    precision = np.sqrt(np.maximum(information, 0)) * nearest
    stddev = np.full(len(precision), np.inf)
    np.divide(noise_px, precision, out=stddev, where=precision > 0)
    return stddev


def reprojection_errors(
    views: Views, observations: Observations, xyz: Float64
) -> Float64:
    """Pixels [M] between observation and projection; infinite behind the camera."""
    view = observations.view
    errors = np.full(len(observations), np.inf)
    offsets = xyz[observations.point] - views.centres[view]
    in_front = np.einsum("mi,mi->m", offsets, observations.ray) > 0
    for each, seen in enumerate(observations.by_view(len(views))):
        rows = seen[in_front[seen]]
        if not len(rows):
            continue
        in_camera = offsets[rows] @ views.rotations[each].T
        projected = np.asarray(views.cameras[each].img_from_cam(in_camera))
        errors[rows] = np.linalg.norm(projected - observations.xy[rows], axis=1)
    return np.where(np.isfinite(errors), errors, np.inf)


def largest_angles_deg(
    views: Views, observations: Observations, xyz: Float64
) -> Float64:
    """The angle [N] under which the cameras furthest apart see a point, degrees.

    From the first camera to that at the largest angle, and from there again: exact for
    two cameras and for cameras in a row, else at least half of the largest angle.
    """
    if not len(observations):
        return np.empty(0)
    rays = xyz[observations.point] - views.centres[observations.view]
    rays /= np.maximum(np.linalg.norm(rays, axis=1, keepdims=True), 1e-300)
    starts = observations.starts
    end = starts
    for _ in range(2):
        cosines = np.einsum("mi,mi->m", rays, rays[end][observations.point])
        order = np.lexsort((cosines, observations.point))
        end = order[starts]
    angles: Float64 = np.degrees(np.arccos(np.clip(cosines[end], -1, 1)))
    return angles


def _distances(views: Views, observations: Observations, xyz: Float64) -> Float64:
    offsets = xyz[observations.point] - views.centres[observations.view]
    distances: Float64 = np.linalg.norm(offsets, axis=1)
    return distances


def _weights(views: Views, observations: Observations, distances: Float64) -> Float64:
    """Squared pixels [M] that a step of one unit across the ray makes."""
    focals = views.focals[observations.view]
    weights: Float64 = (focals / np.maximum(distances, _NEAREST)) ** 2
    return weights


def _information(observations: Observations, weights: Float64) -> Float64:
    """The sums [N, 3, 3] of the planes across the rays, times their weights."""
    ray = observations.ray
    # Six columns and not nine: this is most of the time of triangulating.
    terms = weights[:, None] * ray[:, _ROWS] * ray[:, _COLUMNS]
    sums = np.empty((observations.num_points, 3, 3))
    sums[:, _ROWS, _COLUMNS] = -_sum_by_point(observations, terms)
    sums[:, _COLUMNS, _ROWS] = sums[:, _ROWS, _COLUMNS]
    # Rays have length 1, so the trace of their squares is the sum of the weights.
    sums -= np.trace(sums, axis1=1, axis2=2)[:, None, None] * np.eye(3)
    return sums


def _sum_by_point(observations: Observations, values: Float64) -> Float64:
    sums: Float64 = np.add.reduceat(values, observations.starts, axis=0)
    return sums
