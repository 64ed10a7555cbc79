"""Where images without a pose should be, by pointmaps with images that have one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from sfmprep.capture.batches import fit_size
from sfmprep.capture.image_file import ImageInfo
from sfmprep.capture.image_set import ImageSet
from sfmprep.coords import is_mirrored, resize_xy, upright_size, upright_xy
from sfmprep.files import as_written
from sfmprep.geometry.pointmaps import (
    Depths,
    Foreseen,
    PointmapGeometry,
    View,
    pointmap_geometry,
)
from sfmprep.models.protocols import DenseImage, MakesPointmaps, Points
from sfmprep.progress import Progress, silent
from sfmprep.semidense.visit import visit_pairs
from sfmprep.types import Pair

_LEAST_SIDE = 32  # pixels of the network


def geometry_of_pair(
    network: MakesPointmaps, first: DenseImage, second: DenseImage, *, seed: int = 0
) -> PointmapGeometry:
    """Focal lengths and relative pose of two prepared images.

    Raises:
        ValueError: an image is smaller than 16 pixels a side, or is mirrored by EXIF.
        DeviceError: the pair does not fit into the memory of the device.
    """
    orders = [network.points(*pair) for pair in ((first, second), (second, first))]
    forward, backward = ((view_of(one), view_of(other)) for one, other in orders)
    return pointmap_geometry(forward, backward, seed=seed)


def foresee(
    images: ImageSet,
    pairs: Sequence[Pair],
    network: MakesPointmaps,
    seen: Mapping[str, Depths],
    path: Path,
    *,
    max_size: int,
    cache_gb: float = 2.0,
    num_workers: int | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> dict[str, str]:
    """Looks at pairs that the file does not hold yet, and writes a line for each.

    The line of a pair that tells nothing has the names alone: the network is not sure
    of it, or sees nothing there of what the model has, or `has_points` refuses one.

    Args:
        images: The capture.
        pairs: An image with a pose and one without, in either order.
        network: What makes pointmaps.
        seen: What the images with a pose see of the points of their model.
        path: JSON lines; made where it is missing. A run that is stopped goes on there.
        max_size: Longer side in pixels that larger images are reduced to.
        cache_gb: Prepared images that stay on the device, 1e9 bytes.
        num_workers: Threads that decode; None: one a core, at most 8.
        seed: Of RANSAC.
        progress: Wraps the loop over pairs.

    Returns:
        The images that could not be decoded, with the reason.

    Raises:
        StoreError: the file is damaged.
        ConfigError, DeviceError: see `visit_pairs`.
    """
    there = {frozenset((line["first"], line["second"])) for line in _lines(path)}
    missing = [pair for pair in pairs if frozenset(pair) not in there]
    unreadable: dict[str, str] = {}
    with path.open("a", encoding="utf-8") as file:

        def look(pair: Pair, prepared: Mapping[str, DenseImage]) -> None:
            first, second = pair if pair[0] in seen else pair[::-1]
            line: dict[str, object] = {"first": first, "second": second}
            if all(has_points(images.infos[name], max_size) for name in pair):
                found = geometry_of_pair(
                    network, prepared[first], prepared[second], seed=seed
                )
                line |= _told(images, first, second, found, seen[first])
            file.write(json.dumps(line, ensure_ascii=False) + "\n")
            file.flush()

        visits = visit_pairs(
            *(images, missing, network, look, unreadable),
            max_size=max_size,
            cache_gb=cache_gb,
            num_workers=num_workers,
        )
        with closing(visits):
            for _ in progress(visits, desc="foresee", total=len(missing)):
                pass
    return unreadable


def has_points(info: ImageInfo, max_size: int) -> bool:
    """Whether networks have pixels of an image, and its camera a pose.

    Cameras of images that EXIF mirrors have none, and of images of fewer than 32 pixels
    a side, reduced to `max_size`, a network may see no patch.
    """
    return not is_mirrored(info.orientation) and (
        min(fit_size(info.size, max_size)) >= _LEAST_SIDE
    )


def read_foreseen(path: Path) -> list[Foreseen]:
    """What `foresee` found, without pairs that tell nothing.

    Raises:
        StoreError: the file is damaged.
    """
    with as_written(path):
        return [
            Foreseen(
                **line | {"second_from_first": np.array(line["second_from_first"])}
            )
            for line in _lines(path)
            if "second_from_first" in line
        ]


def _lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    with as_written(path):
        text = path.read_text("utf-8")
        whole = text[: text.rfind("\n") + 1]  # a killed run may leave half a line
        if whole != text:
            path.write_text(whole, "utf-8")
        return [json.loads(line) for line in whole.split("\n") if line]


def _told(
    images: ImageSet,
    first: str,
    second: str,
    found: PointmapGeometry,
    seen: Depths,
) -> dict[str, object]:
    """A line's content, in lengths of the model; nothing where these are not known."""
    if found.second_from_first is None:
        return {}
    info = images.infos[first]
    size = upright_size(info.size, info.orientation)
    xy = upright_xy(seen.xy.astype(np.float32), info.size, info.orientation)
    unit, spread = found.unit(xy - np.array(size) / 2, seen.depth)
    if not unit > 0:
        return {}
    pose = found.second_from_first.copy()
    pose[:, 3] *= unit
    told = Foreseen(
        first=first,
        second=second,
        focal_px=found.focal_px[1],
        second_from_first=pose,
        share=found.share,
        spread=spread,
    )
    return asdict(told) | {"second_from_first": pose.tolist()}


def view_of(seen: Points) -> View:
    """What a network says of an image, in pixels of its file."""
    placed = seen.placed
    size = upright_size(placed.size, placed.orientation)
    xy = resize_xy(seen.xy, placed.network_size, size)
    return View(
        points=seen.points,
        confidence=seen.confidence,
        is_sure=seen.is_sure,
        offsets=(xy - np.array(size) / 2).astype(np.float32),
        pixel=max(size) / max(placed.network_size),
        orientation=placed.orientation,
    )
