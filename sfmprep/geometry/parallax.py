"""How much the camera moved, as its photographs show it: what no turn explains.

A triangulation angle cannot tell: where the camera only turned, the mapper invents a
small step and a depth that go together.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable

import numpy as np
import pycolmap

from sfmprep.geometry.views import ModelArrays
from sfmprep.types import Float64, Index

MIN_PARALLAX_DEG = 0.5  # a turn by hand gives 0.2, a step to the side 1.5 to 10
_MAX_IMAGES = 100  # of a model
_FEW_IMAGES = 10  # that tell whether there is any
_MAX_PARTNERS = 20  # of an image, from those that share most points to few
_MIN_SHARED = 15  # points, as COLMAP asks of a pair
_ROUNDS = 5


def only_turns(
    models: Iterable[pycolmap.Reconstruction], names: Collection[str]
) -> bool:
    """Whether some images are all in models whose cameras only turned.

    No depth can be had of them then, whatever is tried. Of each model ten images at
    most are asked.

    Args:
        models: Any; without any, False.
        names: Of the images.
    """
    models = list(models)
    if not set(names) <= {m.images[k].name for m in models for k in m.reg_image_ids()}:
        return False
    found = [
        list(parallax_deg(ModelArrays.of(model), max_images=_FEW_IMAGES).values())
        for model in models
    ]
    return bool(found) and all(
        each and float(np.median(each)) < MIN_PARALLAX_DEG for each in found
    )


def parallax_deg(
    arrays: ModelArrays, *, max_images: int = _MAX_IMAGES
) -> dict[str, float]:
    """The parallax of images against the partner that shows most of it, degrees.

    Of two images: the median angle that the best rotation (least absolute angles, by
    reweighted Kabsch) leaves between the rays of the points that both see.

    Returns:
        By image name, of at most `max_images`, evenly spread; those that share 15
        points with no other are left out.
    """
    views, seen = arrays.views, arrays.observations
    rows_of = seen.by_view(len(views))
    found = {}
    for view in range(0, len(views), -(-len(views) // max_images) or 1):
        angles = []
        for other in _partners(arrays, view, rows_of[view]):
            _, rows0, rows1 = np.intersect1d(
                seen.point[rows_of[view]],
                seen.point[rows_of[other]],
                return_indices=True,
            )
            rays0 = seen.ray[rows_of[view][rows0]]
            angles.append(_unturned_deg(rays0, seen.ray[rows_of[other][rows1]]))
        if angles:
            found[views.names[view]] = max(angles)
    return found


def _partners(arrays: ModelArrays, view: int, rows: Index) -> Index:
    """Views that share enough points with one, evenly from those with most to few."""
    seen = arrays.observations
    is_shared = np.zeros(seen.num_points, bool)
    is_shared[seen.point[rows]] = True
    shared = np.bincount(seen.view[is_shared[seen.point]], minlength=len(arrays.views))
    shared[view] = 0
    able = np.argsort(-shared, kind="stable")[: (shared >= _MIN_SHARED).sum()]
    kept = np.linspace(0, len(able) - 1, min(len(able), _MAX_PARTNERS)).astype(int)
    return np.asarray(able[kept], np.int64)


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
