"""Which models become datasets, and where they lie.

The largest is in the output folder itself, further ones in `submodels/NUMBER`: behind
`sparse`, because Brush scans the whole tree, and of equal models takes the first one.
Of point clouds it takes the last one, so `init.ply`, which it prefers, is that of the
largest.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

import pycolmap

from sfmprep.config import Recipe
from sfmprep.errors import ConfigError
from sfmprep.export.install import INIT, SUBMODELS
from sfmprep.export.listing import is_begun, is_export
from sfmprep.report.findings import below_floors


def dataset_folders(
    out: Path, recipe: Recipe, models: Sequence[pycolmap.Reconstruction]
) -> dict[int, Path]:
    """The folder of each model's dataset, by the model's number, that of 0 first.

    Raises:
        ConfigError: `export.models` names a model that there is not.
    """
    wanted = recipe.export.models
    if wanted is None:
        sizes = [(m.num_reg_images(), m.num_points3D()) for m in models]
        numbers = [n for n, size in enumerate(sizes) if n and not below_floors(*size)]
    else:
        numbers = sorted({*wanted} - {0})
    if numbers and numbers[-1] >= len(models):
        there = (
            "one, 0" if len(models) == 1 else f"{len(models)}, 0 to {len(models) - 1}"
        )
        raise ConfigError(
            f"export.models: there is no model {numbers[-1]}, there are {there}."
            " `sfmprep report` lists them."
        )
    return {0: out} | {n: out / SUBMODELS / str(n) for n in numbers}


def datasets_below(out: Path) -> dict[int, str]:
    """The folders of the datasets beside the largest that are complete, by number."""
    found = {}
    for folder in out.glob(f"{SUBMODELS}/*"):
        if folder.name.isdigit() and is_export(folder) and not is_begun(folder):
            found[int(folder.name)] = f"{SUBMODELS}/{folder.name}"
    return dict(sorted(found.items()))


def write_init(out: Path) -> None:
    """Names the cloud of the largest model to Brush, where there are others."""
    cloud = out / "sparse" / "0" / "points3D.ply"
    if cloud.is_file():
        shutil.copyfile(cloud, out / INIT)
