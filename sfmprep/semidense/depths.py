"""Depths of images by pointmaps with a view of the same, in the lengths of a model."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import read_mask
from sfmprep.files import as_written
from sfmprep.geometry.pointmaps import Depths, unit_of_depths
from sfmprep.models.protocols import DenseImage, MakesPointmaps, Points
from sfmprep.progress import Progress, silent
from sfmprep.semidense.foresee import has_points
from sfmprep.semidense.visit import visit_pairs
from sfmprep.types import Mask, Pair

_MAX_SPREAD = 0.15  # of the ratios of depths: beyond, the scale is not one number


def write_depths(
    images: ImageSet,
    partners: Mapping[str, str],
    network: MakesPointmaps,
    seen: Mapping[str, Depths],
    folder: Path,
    *,
    stride: int,
    max_size: int,
    cache_gb: float = 2.0,
    num_workers: int | None = None,
    progress: Progress = silent,
) -> dict[str, str]:
    """Writes the depths of each image that the folder does not hold yet.

    The pixels are those of a grid at which the network is confident and that no mask
    leaves out; there are none
    where its depths are not those of the model but for one factor, to 15 %.

    Args:
        images: The capture.
        partners: Image, and the view that it is looked at with.
        network: What makes pointmaps.
        seen: What the images see of the points of their model.
        folder: Where the files go; made where it is missing. A run that is stopped goes
            on there.
        stride: Pixels of the network from one depth to the next, each way.
        max_size: Longer side in pixels that larger images are reduced to.
        cache_gb: Prepared images that stay on the device, 1e9 bytes.
        num_workers: Threads that decode; None: one a core, at most 8.
        progress: Wraps the loop over pairs.

    Returns:
        The images that could not be decoded, with the reason.

    Raises:
        ConfigError, DeviceError: see `visit_pairs`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    row_of = {name: row for row, name in enumerate(images.names)}
    missing = [
        name
        for name, other in partners.items()
        if not _file(folder, row_of[name]).is_file()
        and all(has_points(images.infos[each], max_size) for each in (name, other))
    ]
    pairs = dict.fromkeys(_in_order(name, partners[name]) for name in missing)
    unreadable: dict[str, str] = {}

    def look(pair: Pair, prepared: Mapping[str, DenseImage]) -> None:
        for name, other in (pair, pair[::-1]):
            file = _file(folder, row_of[name])
            if partners.get(name) == other and not file.is_file():
                own, _ = network.points(prepared[name], prepared[other])
                found = _scaled(own, seen[name], stride)
                if (mask := read_mask(images, name)) is not None:
                    found = _unmasked(found, mask)
                part = file.with_suffix(".part.npz")
                np.savez(part, xy=found.xy, depth=found.depth)
                part.replace(file)

    visits = visit_pairs(
        *(images, list(pairs), network, look, unreadable),
        max_size=max_size,
        cache_gb=cache_gb,
        num_workers=num_workers,
    )
    with closing(visits):
        for _ in progress(visits, desc="depths", total=len(pairs)):
            pass
    return unreadable


def read_depths(images: ImageSet, folder: Path) -> dict[str, Depths]:
    """The depths that a folder holds, by image; nothing where there is no folder.

    Raises:
        StoreError: a file is damaged.
    """
    found = {}
    for row, name in enumerate(images.names):
        file = _file(folder, row)
        if file.is_file():
            with as_written(file), np.load(file) as told:
                found[name] = Depths(xy=told["xy"], depth=told["depth"])
    return found


def _file(folder: Path, row: int) -> Path:
    return folder / f"{row:06d}.npz"


def _in_order(name: str, other: str) -> Pair:
    return (name, other) if name < other else (other, name)


def _unmasked(depths: Depths, mask: Mask) -> Depths:
    last = np.array(mask.shape[::-1]) - 1
    column, row = np.clip(np.floor(depths.xy).astype(np.int64), 0, last).T
    used = mask[row, column]
    return Depths(xy=depths.xy[used], depth=depths.depth[used])


def _scaled(own: Points, seen: Depths, stride: int) -> Depths:
    """Depths on the grid, in the lengths of the model."""
    xy, told = own.placed.stored(own.xy), own.points[:, 2]
    sure = own.is_sure & (told > 0)
    unit, spread = unit_of_depths(xy[sure], told[sure], seen.xy, seen.depth)
    if not spread <= _MAX_SPREAD:
        sure[:] = False
    on_grid = (np.floor(own.xy) % stride == stride // 2).all(axis=1)
    kept = sure & on_grid
    return Depths(
        xy=xy[kept].astype(np.float64), depth=unit * told[kept].astype(np.float64)
    )
