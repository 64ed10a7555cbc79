"""What two photographs say about their cameras without a single match."""

from __future__ import annotations

from pathlib import Path

from sfmprep.api.given import decoded
from sfmprep.config import PointmapConfig
from sfmprep.devices import pick_device
from sfmprep.geometry.pointmaps import PointmapGeometry
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
    from sfmprep.models.semidense.pointmaps import Pointmaps
    from sfmprep.semidense.foresee import geometry_of_pair

    network = network or PointmapConfig()
    matcher = Pointmaps(network, device=pick_device(device), precision=precision)
    sides = [
        matcher.prepare(decoded(Path(path), network.max_size))[0]
        for path in (first, second)
    ]
    return geometry_of_pair(matcher, *sides, seed=seed)
