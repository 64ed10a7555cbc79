"""tracks.npz: poses, points and keypoints, and how sure of them the photographs are.

For trainers that go on refining poses and would rather keep to the tracks than drift
from them. `numpy.load` reads it without pickle:

    names                [V] names of the images here, in their order
    cam_from_world       [V, 3, 4]
    rotation_stddev_deg  [V] one sigma; NaN where it is not known
    position_stddev      [V] in units of the dataset; NaN where it is not known
    point_ids            [N] as in points3D.bin, of those that two images or more see
    xyz                  [N, 3]
    distance_stddev      [N] one sigma of the point over its distance
    starts               [N] row of the first observation of each point
    view                 [M] row of the image that saw it
    xy                   [M, 2] where, in pixels; the first pixel's centre is 0.5
    noise_px             one sigma of a coordinate of `xy`, by the residuals
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.geometry.uncertainty import (
    PoseUncertainty,
    noise_px,
    point_uncertainties,
)
from sfmprep.geometry.views import ModelArrays

TRACKS = "tracks.npz"


def write_tracks(
    path: Path,
    model: pycolmap.Reconstruction,
    uncertainties: Mapping[str, PoseUncertainty],
) -> None:
    """Writes the file; a model without points gives tables without rows.

    Args:
        path: The file.
        model: Of the dataset, in its frame and with the names of its images.
        uncertainties: Of the poses, by those names; may lack some.

    Raises:
        OSError: It cannot be written.
    """
    arrays = _seen_twice(ModelArrays.of(model))
    views, observations = arrays.views, arrays.observations
    order = np.argsort(np.array(views.names))
    rank = np.argsort(order)
    known = [uncertainties.get(views.names[row]) for row in order.tolist()]
    rotations = views.rotations[order]
    translations = -np.einsum("vij,vj->vi", rotations, views.centres[order])
    np.savez_compressed(
        path,
        names=np.array(views.names)[order],
        cam_from_world=np.dstack([rotations, translations[:, :, None]]),
        rotation_stddev_deg=[k.rotation_stddev_deg if k else np.nan for k in known],
        position_stddev=[k.position_stddev if k else np.nan for k in known],
        point_ids=arrays.point_ids,
        xyz=arrays.xyz,
        distance_stddev=list(point_uncertainties(arrays).values()),
        starts=observations.starts,
        view=rank[observations.view],
        xy=observations.xy,
        noise_px=noise_px(arrays),
    )


def _seen_twice(arrays: ModelArrays) -> ModelArrays:
    """Without points of depths, which one image sees and no residual tells of."""
    kept, seen = arrays.observations.counts() > 1, arrays.observations
    return replace(
        arrays,
        point_ids=arrays.point_ids[kept],
        xyz=arrays.xyz[kept],
        observations=seen.select(kept[seen.point]),
    )
