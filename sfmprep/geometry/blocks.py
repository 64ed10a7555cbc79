"""A large model in blocks: small models of views that see the same points."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pycolmap
from scipy.sparse import coo_matrix, triu

from sfmprep.geometry.partition import cut, widened
from sfmprep.geometry.views import ModelArrays
from sfmprep.types import Index

_MIN_TRACK = 2
_MIN_SHARED = 5  # points, for two views to hold each other
_OVERLAP = 0.1  # of the size of a block: views of each neighbour that are in it too


def blocks(
    arrays: ModelArrays, size: int
) -> Iterator[tuple[Index, pycolmap.Reconstruction]]:
    """Cuts a model into blocks of about so many views, and some around them.

    Args:
        arrays: Of any model.
        size: As for `cut`.

    Returns:
        Rows of the views that a block is made for, each view in one block at most, and
        the model of these, of others around them, and of the points that two of all of
        them see. Ids are those of the model; each image is in a frame of its own.
    """
    index, weights = covisible(arrays)
    count = len(arrays.views)
    cores = cut(count, index, weights, size=size)
    overlap = max(round(_OVERLAP * size), 1)
    wide = widened(cores, count, index, weights, overlap=overlap)
    for core, rows in zip(cores, wide, strict=True):
        yield core, part_of(arrays, rows)


def covisible(arrays: ModelArrays) -> tuple[Index, Index]:
    """Pairs of views [E, 2] that share five points or more, and how many [E]."""
    observations = arrays.observations
    ones = np.ones(len(observations), np.int32)
    ends = observations.view, observations.point
    shape = len(arrays.views), observations.num_points
    sees = coo_matrix((ones, ends), shape).tocsr()
    shared = triu(sees @ sees.T, 1).tocoo()
    kept = shared.data >= _MIN_SHARED
    index = np.stack([shared.row[kept], shared.col[kept]], axis=1).astype(np.int64)
    return index, shared.data[kept].astype(np.int64)


def part_of(arrays: ModelArrays, rows: Index) -> pycolmap.Reconstruction:
    """The model of some views, and of the points that two of them see.

    Args:
        arrays: Of the whole model.
        rows: Of its views.
    """
    views, observations = arrays.views, arrays.observations
    is_in = np.zeros(len(views), bool)
    is_in[rows] = True
    chosen = is_in[observations.view]
    counts = np.bincount(observations.point[chosen], minlength=observations.num_points)
    chosen &= counts[observations.point] >= _MIN_TRACK
    view, point = observations.view[chosen], observations.point[chosen]
    xy = observations.xy[chosen]
    model = pycolmap.Reconstruction()
    keypoint = np.empty(len(view), np.int64)
    for row in rows.tolist():
        camera = views.cameras[row]
        if camera.camera_id not in model.cameras:
            model.add_camera_with_trivial_rig(pycolmap.Camera(camera.todict()))
        own = np.flatnonzero(view == row)
        keypoint[own] = np.arange(len(own))
        image = pycolmap.Image(
            name=views.names[row],
            keypoints=xy[own],
            camera_id=camera.camera_id,
            image_id=int(views.ids[row]),
        )
        rotation = views.rotations[row]
        pose = np.column_stack([rotation, -rotation @ views.centres[row]])
        model.add_image_with_trivial_frame(image, pycolmap.Rigid3d(pose))
    image_ids = views.ids[view].tolist()
    starts = np.flatnonzero(np.diff(point, prepend=-1)).tolist()
    for start, stop in zip(starts, [*starts[1:], len(point)], strict=True):
        track = pycolmap.Track()
        for k in range(start, stop):
            track.add_element(image_ids[k], int(keypoint[k]))
        xyz = arrays.xyz[point[start]]
        model.add_point3D(xyz, track, np.zeros(3, np.uint8))
    return model
