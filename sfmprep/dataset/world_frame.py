"""The world frame of a dataset: z is up, the origin is the middle, metres by GPS.

One similarity transform is found here, and applied here to the whole model; it is what
`world_from_sfm.json` records.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import WorldConfig
from sfmprep.coords import beyond_rounding
from sfmprep.dataset.georeference import (
    Georeference,
    georeference,
    transform_points,
)
from sfmprep.dataset.gravity import Upright, find_up, rotation_to_z
from sfmprep.errors import ConfigError, ReconstructionError
from sfmprep.types import Float64

logger = logging.getLogger(__name__)

_EXCHANGED = (
    "the GPS positions fit the poses only with latitude and longitude exchanged"
)

_POINTS_SHARE = 0.1  # how much the points' median counts beside the optical axes


@dataclass(frozen=True, kw_only=True)
class WorldFrame:
    """The transform from the reconstruction to the dataset, and how it was found."""

    world_from_sfm: pycolmap.Sim3d
    up: str  # how it was found, in words
    scale: str  # the unit of length, and how it was found, in words
    origin: tuple[float, float, float] | None  # WGS84 degrees, degrees, metres

    def to_json(self) -> dict[str, Any]:
        """What `world_from_sfm.json` holds; matrices are lists of rows.

        1. `world_from_sfm`, `sfm_from_world`: 4x4, with the scale in them.
        2. `scale_factor`, `rotation` (3x3), `translation`: the parts of the first.
        3. `up`, `scale`: how they were found, in words.
        4. `is_metric`: whether it is in metres, x east and y north; where on the earth
           is in `georeference.json`.
        """
        sfm_from_world = self.world_from_sfm.inverse()
        return {
            "world_from_sfm": _matrix(self.world_from_sfm).tolist(),
            "sfm_from_world": _matrix(sfm_from_world).tolist(),
            "scale_factor": float(self.world_from_sfm.scale),
            "rotation": self.world_from_sfm.rotation.matrix().tolist(),
            "translation": np.asarray(self.world_from_sfm.translation).tolist(),
            "up": self.up,
            "scale": self.scale,
            "is_metric": self.origin is not None,
        }


def find_world(
    model: pycolmap.Reconstruction, images: ImageSet, config: WorldConfig
) -> WorldFrame:
    """Finds the frame in which the dataset is written.

    Args:
        model: At least one image is registered.
        images: The capture; all names of the model are among its images.
        config: What of up, centre and scale is wanted.

    Raises:
        ConfigError: the model is of other images.
        ReconstructionError: no image is registered, or georeferencing is wanted but
            the photographs' GPS does not allow it.
    """
    _check(model, images)
    origin, scale = None, "arbitrary, as reconstructed"
    if config.up == "auto":
        upright = find_up(model, images)
        rotation = pycolmap.Rotation3d(rotation_to_z(upright.direction))
        world, up = pycolmap.Sim3d(1.0, rotation, np.zeros(3)), upright.how
        found = _georeference(model, images, upright, config)
        if isinstance(found, Georeference):
            world, origin = found.enu_from_sfm, found.origin
            up, scale = found.up, found.scale
        elif found is not None:
            scale += f"; GPS is not used: {found}"
    else:
        world, up = pycolmap.Sim3d(), "kept as reconstructed"
    if config.centre:
        centre = transform_points(world, _centre(model)[None])[0]
        if origin is not None:
            earth = pycolmap.GPSTransform().enu_to_ellipsoid(centre[None], *origin)
            latitude, longitude, altitude = (float(v) for v in np.asarray(earth)[0])
            origin = latitude, longitude, altitude
        world = pycolmap.Sim3d(world.scale, world.rotation, world.translation - centre)
    if config.unit_scale:
        centres = transform_points(world, _centres(model))
        radius = float(np.linalg.norm(centres, axis=1).max())
        radius = beyond_rounding(radius, world.translation)
        if radius > 0:
            world = pycolmap.Sim3d(
                world.scale / radius, world.rotation, world.translation / radius
            )
        scale = "all cameras are within 1 of the origin"
    return WorldFrame(world_from_sfm=world, up=up, scale=scale, origin=origin)


def apply_world(
    model: pycolmap.Reconstruction, world_from_sfm: pycolmap.Sim3d
) -> pycolmap.Reconstruction:
    """Returns a transformed copy of the model; the argument is unchanged.

    Poses, rigs and points are transformed together, so residuals stay as they are.
    """
    transformed = pycolmap.Reconstruction(model)
    transformed.transform(world_from_sfm)
    return transformed


def _georeference(
    model: pycolmap.Reconstruction,
    images: ImageSet,
    upright: Upright,
    config: WorldConfig,
) -> Georeference | str | None:
    """The frame by GPS; why it is not used, in words; None where there is no GPS.

    Raises:
        ReconstructionError: it is insisted on, and GPS tells no scale, or its
            coordinates are exchanged.
    """
    if config.georeference is True:
        found = georeference(model, images, upright)
        if found.is_exchanged:
            raise ReconstructionError(
                f"{_EXCHANGED}. Write the EXIF of the photographs in {images.root}"
                " anew, or turn georeferencing off: export.world.georeference=false"
            )
        if not found.is_good:
            logger.warning(
                "GPS tells the scale only to %.0f %%, by %d positions",
                100 * found.scale_error,
                found.num_positions,
            )
        return found
    has_gps = any(images.infos[i.name].gps is not None for i in model.images.values())
    if not config.georeference or config.has_own_frame or not has_gps:
        return None
    try:
        found = georeference(model, images, upright)
    except ReconstructionError:
        return "it tells no scale"
    if found.is_exchanged:
        logger.warning("%s, so GPS is not used", _EXCHANGED)
        return _EXCHANGED
    if found.is_good:
        return found
    return (
        f"it tells the scale only to {100 * found.scale_error:.0f} %, by"
        f" {found.num_positions} positions (--georeference uses it all the same)"
    )


def _check(model: pycolmap.Reconstruction, images: ImageSet) -> None:
    if model.num_reg_images() == 0:
        raise ReconstructionError(
            "the model has no registered image, so it has no frame. Export another one."
        )
    for image_id in model.reg_image_ids():
        name = model.image(image_id).name
        if name not in images.infos:
            raise ConfigError(
                f"image {name!r} of the model is not among the {len(images)} images in"
                f" {images.root}. Give the folder that the model was made from."
            )


def _centre(model: pycolmap.Reconstruction) -> Float64:
    """The point [3] nearest to the optical axes, drawn to the median of the points.

    The points settle what axes that are nearly parallel leave open. Distances, not
    their squares, are summed, so that an axis that points elsewhere counts little.
    """
    registered = [model.image(k) for k in sorted(model.reg_image_ids())]
    centres = _centres(model)
    forward = np.array(
        [i.cam_from_world().rotation.inverse().matrix()[:, 2] for i in registered]
    )
    square = np.eye(3) - forward[:, :, None] * forward[:, None, :]
    points = np.array([p.xyz for p in model.points3D.values()]).reshape(-1, 3)
    median = np.median(points if len(points) else centres, axis=0)
    centre: Float64 = median
    for _ in range(30):
        away = np.einsum("nij,nj->ni", square, centre - centres)
        distances = np.linalg.norm(away, axis=1)
        weights = 1 / np.maximum(distances, 1e-3 * np.median(distances) + 1e-12)
        weights /= weights.sum()
        system = np.einsum("n,nij->ij", weights, square) + _POINTS_SHARE * np.eye(3)
        target = np.einsum("n,nij,nj->i", weights, square, centres)
        centre = np.linalg.solve(system, target + _POINTS_SHARE * median)
    return centre


def _centres(model: pycolmap.Reconstruction) -> Float64:
    """Centres [N, 3] of the registered cameras, in the order of their ids."""
    ids = sorted(model.reg_image_ids())
    return np.array([model.image(k).projection_center() for k in ids])


def _matrix(sim: pycolmap.Sim3d) -> Float64:
    """The 4x4 matrix, scale included."""
    return np.vstack((sim.matrix(), (0.0, 0.0, 0.0, 1.0)))
