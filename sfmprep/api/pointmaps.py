"""What two photographs say about their cameras without a single match."""

from __future__ import annotations

from pathlib import Path

from sfmprep.api.given import decoded
from sfmprep.config import MakesPointmapsConfig, PointmapConfig
from sfmprep.devices import pick_device
from sfmprep.geometry.pointmaps import PointmapGeometry
from sfmprep.models.shared.precision import Precision


def pointmap_geometry(
    first: str | Path,
    second: str | Path,
    network: MakesPointmapsConfig | None = None,
    *,
    device: str = "cpu",
    precision: Precision = "auto",
    seed: int = 0,
) -> PointmapGeometry:
    """Focal lengths and relative pose of two photographs, by pointmaps.

    A prior for cameras that nothing else connects: good to some degrees. The principal
    point is taken to be in the middle.

    Args:
        first: A photograph.
        second: Another one.
        network: DUSt3R, MASt3R (the default) or Depth Anything 3; its file is yours
            to bring.
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
    from sfmprep.models.build import build_pointmaps
    from sfmprep.semidense.foresee import geometry_of_pair

    network = network or PointmapConfig()
    made = build_pointmaps(network, device=pick_device(device), precision=precision)
    sides = [
        made.prepare(decoded(Path(path), network.max_size))[0]
        for path in (first, second)
    ]
    return geometry_of_pair(made, *sides, seed=seed)
