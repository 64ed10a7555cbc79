"""How an adjustment is solved: on how many cores, and directly where that is best."""

from __future__ import annotations

import logging

import numpy as np
import pycolmap
from scipy.sparse import coo_matrix, diags
from scipy.sparse.linalg import splu

from sfmprep.devices import num_cores
from sfmprep.types import Index

logger = logging.getLogger(__name__)

_BLOCK_BYTES = 6 * 6 * 8  # of two images, in a factor of the Schur complement
_MOST_BYTES = 2 << 30  # of the factor; of 10,000 images of made streets it is 0.7 GB
_ROWS = 1000  # of the graph that are counted at once
# Residuals for each core. With 8,000 a second one takes 0.45 of the work for 1 to 10 %
# more of it, as with 65,000 (Ceres 2.2, 2 cores).
_RESIDUALS_A_CORE = 5_000
_MANY_RESIDUALS = 50_000  # from which COLMAP takes all cores, and none but one below


def least_residuals() -> int:
    """Of an adjustment that is done on all cores; smaller ones are on one."""
    return min(_RESIDUALS_A_CORE * num_cores(), _MANY_RESIDUALS)


def choose_solver(
    options: pycolmap.BundleAdjustmentOptions, model: pycolmap.Reconstruction
) -> None:
    """Has adjustments done on all cores, and those of many images directly.

    On all cores from `least_residuals` on; directly where memory allows that. Above
    1,000 images COLMAP iterates, whatever they see. Where views see what is next to
    them, as on any walk or flight, the factor is small and found at once: 300 made
    images, bent by 0.3 m, took 3 s of CPU directly, and more than a minute otherwise.

    Args:
        options: Of the adjustment; they are changed.
        model: What is adjusted.
    """
    options.ceres.min_num_residuals_for_cpu_multi_threading = least_residuals()
    num_images = model.num_reg_images()
    if num_images <= options.ceres.max_num_images_direct_sparse_cpu_solver:
        return
    needed = factor_bytes(model)
    if needed is None or needed > _MOST_BYTES:
        logger.info(
            "%d images see too much in common to be solved directly", num_images
        )
        return
    options.ceres.max_num_images_direct_sparse_cpu_solver = num_images


def factor_bytes(model: pycolmap.Reconstruction) -> int | None:
    """How large the Cholesky factor is of what registered images have in common.

    Returns:
        Bytes; None where what they have in common alone is above the limit.
    """
    view, point = _observations(model)
    num_images = int(view.max(initial=-1)) + 1
    shape = num_images, int(point.max(initial=-1)) + 1
    sees = coo_matrix((np.ones(len(view), np.float32), (view, point)), shape).tocsr()
    common = 0
    blocks = []
    for start in range(0, num_images, _ROWS):
        shared = (sees[start : start + _ROWS] @ sees.T).tocoo()
        common += shared.nnz
        if common // 2 * _BLOCK_BYTES > _MOST_BYTES:
            return None
        blocks.append(np.stack([shared.row + start, shared.col]))
    index = np.concatenate([np.empty((2, 0), np.int64), *blocks], axis=1)
    graph = coo_matrix((-np.ones(index.shape[1]), tuple(index)), (num_images,) * 2)
    count = np.asarray(-graph.sum(axis=1)).ravel() + 1
    # any numbers will do that need no pivoting
    factor = splu(
        (graph + 2 * diags(count)).tocsc(),
        permc_spec="MMD_AT_PLUS_A",
        diag_pivot_thresh=0.0,
        options={"SymmetricMode": True},
    )
    return int(factor.L.nnz) * _BLOCK_BYTES


def _observations(model: pycolmap.Reconstruction) -> tuple[Index, Index]:
    """Rows of images and of points, for all that sees something."""
    images, points = [], []
    for number, found in enumerate(model.points3D.values()):
        seen = [element.image_id for element in found.track.elements]
        images.append(np.array(seen, np.int64))
        points.append(np.full(len(seen), number))
    if not images:
        return np.empty(0, np.int64), np.empty(0, np.int64)
    _, view = np.unique(np.concatenate(images), return_inverse=True)
    return view, np.concatenate(points)
