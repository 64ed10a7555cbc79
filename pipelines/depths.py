"""Depths of images by pointmaps, for initial points where no feature was."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Sequence

import numpy as np
import pycolmap
from scipy.sparse import csr_matrix

from sfmprep.geometry.pointmaps import Depths
from sfmprep.geometry.views import ModelArrays
from sfmprep.models.build import build_pointmaps
from sfmprep.pipelines.foreseen import depths_seen
from sfmprep.pipelines.run import Run
from sfmprep.progress import Progress, silent
from sfmprep.semidense.depths import read_depths, write_depths

logger = logging.getLogger(__name__)


def find_depths(
    run: Run,
    models: Sequence[pycolmap.Reconstruction],
    *,
    device: str = "cpu",
    progress: Progress = silent,
) -> list[dict[str, Depths]]:
    """Does what is missing, and returns the depths of the images of each model.

    Each image is looked at with the view that shares most points with it. One that is
    in several models has depths in the first.

    Args:
        run: The run.
        models: Largest first.
        device: Where the network runs; of several, the first.
        progress: Wraps the loop over pairs.

    Returns:
        Nothing for any model where the recipe asks for none.

    Raises:
        SfmprepError: see `write_depths` and `read_depths`.
    """
    config, folder = run.recipe.export.seed.pointmaps, run.workspace.depths
    if config is None:
        return [{} for _ in models]
    owner: dict[str, int] = {}
    seen: dict[str, Depths] = {}
    partners: dict[str, str] = {}
    for number, model in enumerate(models):
        arrays = ModelArrays.of(model)
        chosen = _partners(arrays)
        new = [name for name in arrays.views.names if name not in owner]
        owner |= dict.fromkeys(new, number)
        told = depths_seen(arrays)
        seen |= {name: told[name] for name in new}
        partners |= {name: chosen[name] for name in new if name in chosen}
    if not run.ledger.is_done("depths"):
        if not run.ledger.can_grow("depths"):
            shutil.rmtree(folder, ignore_errors=True)
        run.begin("depths")
        engine = run.recipe.engine
        where = device.split(",")[0]
        unreadable = write_depths(
            *(run.images, partners),
            build_pointmaps(config, device=where, precision=engine.precision),
            *(seen, folder),
            stride=config.stride,
            max_size=config.max_size,
            cache_gb=engine.cache_gb,
            num_workers=engine.num_workers,
            progress=progress,
        )
        for name, reason in unreadable.items():
            logger.warning("%s has no depths: %s", run.images.path(name), reason)
        run.finish("depths")
    found: list[dict[str, Depths]] = [{} for _ in models]
    for name, depths in read_depths(run.images, folder).items():
        if name in owner:
            found[owner[name]][name] = depths
    return found


def _partners(arrays: ModelArrays) -> dict[str, str]:
    """For each view the one that shares most points with it, if any does."""
    views, seen = arrays.views, arrays.observations
    shape = (len(views), len(arrays.xyz))
    sees = csr_matrix((np.ones(len(seen), np.int64), (seen.view, seen.point)), shape)
    shared = (sees @ sees.T).tolil()
    shared.setdiag(0)
    shared = shared.tocsr()
    found = {}
    for row, name in enumerate(views.names):
        start, end = shared.indptr[row : row + 2]
        counts = shared.data[start:end]
        if len(counts) and counts.max() > 0:
            found[name] = views.names[shared.indices[start + int(counts.argmax())]]
    return found
