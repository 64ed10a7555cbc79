"""What two photographs say about their cameras without a single match."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sfmprep.api.given import decoded
from sfmprep.config import PointmapConfig
from sfmprep.coords import resize_xy, upright_size
from sfmprep.devices import pick_device
from sfmprep.geometry.pointmaps import PointmapGeometry, View
from sfmprep.geometry.pointmaps import pointmap_geometry as geometry_of
from sfmprep.models.shared.precision import Precision


def pointmap_geometry(
    first: str | Path,
    second: str | Path,
    network: PointmapConfig | None = None,
    *,
    device: str = "cpu",
    precision: Precision = "auto",
    seed: int = 0,
) -> PointmapGeometry:
    """Focal lengths and relative pose of two photographs, by DUSt3R or MASt3R.

    A prior for cameras that nothing else connects: good to some degrees. The principal
    point is taken to be in the middle.

    Args:
        first: A photograph.
        second: Another one.
        network: MASt3R by default; its file is yours to bring.
        device: Where the network runs, such as `cuda`.
        precision: As in `extract`.
        seed: Of RANSAC.

    Returns:
        See `PointmapGeometry`.

    Raises:
        ImageError: a photograph is missing or cannot be decoded.
        ValueError: a photograph is smaller than 16 pixels a side, or its EXIF says that
            it is mirrored.
        ConfigError, WeightsError, DeviceError: as `extract`.
    """
    from sfmprep.models.semidense.pointmaps import Pointmaps, Points

    network = network or PointmapConfig()
    matcher = Pointmaps(network, device=pick_device(device), precision=precision)
    sides = [
        matcher.prepare(decoded(Path(path), network.max_size))[0]
        for path in (first, second)
    ]

    def view(seen: Points) -> View:
        placed = seen.placed
        size = upright_size(placed.size, placed.orientation)
        xy = resize_xy(seen.xy, placed.network_size, size)
        return View(
            points=seen.points,
            confidence=seen.confidence,
            offsets=(xy - np.array(size) / 2).astype(np.float32),
            pixel=max(size) / max(placed.network_size),
            orientation=placed.orientation,
        )

    found = []
    for pair in (sides, sides[::-1]):
        one, other = matcher.points(pair[0], pair[1])
        found.append((view(one), view(other)))
    return geometry_of(found[0], found[1], seed=seed)
