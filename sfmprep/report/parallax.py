"""How much the camera moved, as its photographs show it: what no turn explains.

A triangulation angle cannot tell: where the camera only turned, the mapper invents a
small step and a depth that go together.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pycolmap
from numpy.typing import NDArray

from sfmprep.report.measure import observations

Float64 = NDArray[np.float64]

_MAX_IMAGES = 100  # of a model, evenly spread
_MAX_PARTNERS = 20  # of an image, from those that share most points to few
_MIN_SHARED = 15  # points, as COLMAP asks of a pair
_ROUNDS = 5


def parallax_deg(model: pycolmap.Reconstruction) -> dict[str, float]:
    """The parallax of images against the partner that shows most of it, degrees.

    Of two images: the median angle that the best rotation (least absolute angles, by
    reweighted Kabsch) leaves between the rays of the points that both see.

    Returns:
        By image name, of at most 100 images; those that share 15 points with no other
        are left out.
    """
    ids = sorted(model.reg_image_ids())
    step = -(-len(ids) // _MAX_IMAGES) or 1
    rays: dict[int, tuple[NDArray[np.uint64], Float64]] = {}

    def rays_of(image_id: int) -> tuple[NDArray[np.uint64], Float64]:
        if image_id not in rays:
            rays[image_id] = _rays(model, image_id)
        return rays[image_id]

    found = {}
    for image_id in ids[::step]:
        angles = []
        for other in _partners(model, image_id):
            (points0, rays0), (points1, rays1) = rays_of(image_id), rays_of(other)
            _, rows0, rows1 = np.intersect1d(points0, points1, return_indices=True)
            if len(rows0) >= _MIN_SHARED:
                angles.append(_unturned_deg(rays0[rows0], rays1[rows1]))
        if angles:
            found[model.images[image_id].name] = max(angles)
    return found


def _partners(model: pycolmap.Reconstruction, image_id: int) -> list[int]:
    shared = Counter(
        element.image_id
        for point_id in observations(model.images[image_id])[1].tolist()
        for element in model.points3D[point_id].track.elements
    )
    del shared[image_id]
    able = [other for other, n in shared.most_common() if n >= _MIN_SHARED]
    rows = np.linspace(0, len(able) - 1, min(len(able), _MAX_PARTNERS)).astype(int)
    return [able[row] for row in rows]


def _rays(
    model: pycolmap.Reconstruction, image_id: int
) -> tuple[NDArray[np.uint64], Float64]:
    """Points that an image sees [N], and unit rays to them [N, 3] in its frame."""
    image = model.images[image_id]
    xy, point_ids = observations(image)
    plane = np.asarray(model.cameras[image.camera_id].cam_from_img(xy))
    rays = np.column_stack([plane, np.ones(len(plane))])
    rays /= np.linalg.norm(rays, axis=1, keepdims=True)
    known = np.isfinite(rays).all(axis=1)
    return point_ids[known], rays[known]


def _unturned_deg(rays0: Float64, rays1: Float64) -> float:
    """The median angle between rays when the best rotation has turned the first."""
    weights = np.ones(len(rays0))
    for _ in range(_ROUNDS):
        u, _, vt = np.linalg.svd((rays0 * weights[:, None]).T @ rays1)
        proper = np.diag([1, 1, np.sign(np.linalg.det(u @ vt))])
        turned = rays0 @ u @ proper @ vt
        chord = np.minimum(np.linalg.norm(turned - rays1, axis=1), 2)
        angles = np.degrees(2 * np.arcsin(chord / 2))
        weights = 1 / np.maximum(angles, 0.01)
    return float(np.median(angles))
