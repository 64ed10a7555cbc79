"""A reconstruction as arrays: its views, its points, and which sees which where."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np
import pycolmap

from sfmprep.types import Float64, Ids, Index, Mask

# Whose rays are the pixels themselves: COLMAP gives those of many keypoints at once, in
# a fiftieth of the time that each alone takes.
_AS_IT_IS = pycolmap.Camera(
    model="SIMPLE_PINHOLE", width=1, height=1, params=[1.0, 0.0, 0.0]
)


def keypoints_xy(points: pycolmap.Point2DList) -> Float64:
    """The places [N, 2] of keypoints, COLMAP pixels."""
    xy = np.asarray(_AS_IT_IS.cam_from_img(points), np.float64)
    return xy.reshape(-1, 2)


def keypoints_ids(points: pycolmap.Point2DList) -> Ids:
    """The points [N] that keypoints see; `pycolmap.INVALID_POINT3D_ID` for none."""
    return np.fromiter((p.point3D_id for p in points), np.uint64, len(points))


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
    def of(model: pycolmap.Reconstruction, ids: Collection[int] | None = None) -> Views:
        """Reads poses and cameras; a model without registered images gives none.

        Args:
            model: Any.
            ids: Of registered images that are wanted; None for all.
        """
        wanted = model.reg_image_ids() if ids is None else ids
        images = [model.images[i] for i in sorted(wanted)]
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


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelArrays:
    """A reconstruction as arrays: made once a model, and passed on.

    It is what the model was then, not what it becomes.
    """

    views: Views
    point_ids: Ids  # [N] rising, of the points that registered images see
    xyz: Float64  # [N, 3]
    observations: Observations

    @staticmethod
    def of(model: pycolmap.Reconstruction) -> ModelArrays:
        """Reads a model; one without points or registered images gives empty arrays.

        Keypoints at which a camera sees nothing, far outside of a fisheye's image, are
        no observations.
        """
        views = Views.of(model)
        # columns of one size from the beginning: pieces, joined, would be there twice
        most = sum(model.images[i].num_points3D for i in views.ids.tolist())
        ids, view = np.empty(most, np.uint64), np.empty(most, np.int64)
        keypoint = np.empty(most, np.int64)
        xy, ray = np.empty((most, 2)), np.empty((most, 3))
        stop = 0
        for row, image_id in enumerate(views.ids.tolist()):
            image = model.images[image_id]
            seen = image.get_observation_points2D()
            own = keypoints_xy(seen)
            rays = views.rays(row, own)
            inside = np.isfinite(rays).all(axis=1)
            start, stop = stop, stop + int(inside.sum())
            ids[start:stop] = keypoints_ids(seen)[inside]
            idxs = np.array(image.get_observation_point2D_idxs(), np.int64)
            view[start:stop], keypoint[start:stop] = row, idxs[inside]
            xy[start:stop], ray[start:stop] = own[inside], rays[inside]
        point_ids, point = np.unique(ids[:stop], return_inverse=True)
        order = np.argsort(point, kind="stable")
        # one after the other, so that only one of them is there twice
        view = view[order]
        keypoint = keypoint[order]
        xy = xy[order]
        ray = ray[order]
        xyz = np.empty((len(point_ids), 3))
        for row, point_id in enumerate(point_ids.tolist()):
            xyz[row] = model.points3D[point_id].xyz
        return ModelArrays(
            views=views,
            point_ids=point_ids,
            xyz=xyz,
            observations=Observations(
                point=point[order], view=view, keypoint=keypoint, xy=xy, ray=ray
            ),
        )
