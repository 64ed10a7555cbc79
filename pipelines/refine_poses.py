"""Poses that are known, however roughly, and photographs in; a dataset out.

A run as any other, whose recipe names the poses: pairs are those that they place near
each other, and the mapper starts from them (see `mapping.from_poses`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pycolmap

from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.panorama import Panorama
from sfmprep.config import KnownPosesConfig, Recipe, WorldConfig
from sfmprep.errors import ConfigError
from sfmprep.known_poses.panoramas import of_photographs, turns_of
from sfmprep.known_poses.poses import CONVENTIONS, KnownPoses
from sfmprep.known_poses.read import read_poses
from sfmprep.known_poses.trajectory import Trajectory, image_times
from sfmprep.pairing.near_views import near_partners
from sfmprep.pairing.pairs import Partners, in_turn


def with_poses(recipe: Recipe, config: KnownPosesConfig) -> Recipe:
    """The recipe that starts from given poses and keeps their world and scale.

    Its second round is left out: it would go on without them.
    """
    world = WorldConfig(up="keep", centre=False)
    export = recipe.export.model_copy(update={"world": world})
    return recipe.model_copy(
        update={"known_poses": config, "second_round": None, "export": export}
    )


def read_known(config: KnownPosesConfig) -> KnownPoses | Trajectory:
    """Reads the poses that a recipe names.

    Raises:
        ConfigError: see `read_poses`.
    """
    return read_poses(
        config.path,
        axes=None if config.axes == "auto" else config.axes,
        direction=None if config.direction == "auto" else config.direction,
    )


def given_cameras(
    config: KnownPosesConfig | None, images: ImageSet
) -> Mapping[str, pycolmap.Camera]:
    """The cameras by image name that given poses come with.

    None of a trajectory, and where no poses are given.

    Raises:
        ConfigError: see `read_poses` and `of_images`.
    """
    if config is None:
        return {}
    poses = read_known(config)
    if isinstance(poses, Trajectory):
        return {}
    where = str(config.path)
    return of_photographs(poses, images.names, images.panoramas, where).cameras


def poses_of(
    config: KnownPosesConfig, names: Sequence[str], panoramas: Sequence[Panorama]
) -> KnownPoses:
    """The given poses of the images of a capture, before their pairs are known.

    Args:
        config: Where they are.
        names: Of the images.
        panoramas: Whose views are among them.

    Raises:
        ConfigError: they cannot be read, are of other images or of another time; or
            all are in one place.
    """
    poses = read_known(config)
    if isinstance(poses, Trajectory):
        times = image_times(names, poses, config.time_offset)
        poses = poses.at(names, times, config.time_offset or 0.0)
        poses = replace(poses, turns=turns_of(poses.names, panoramas))
    found = of_photographs(poses, names, panoramas, str(config.path))
    if len(found) > 1 and not np.ptp(found.cam_from_world()[1], axis=0).any():
        raise ConfigError(
            f"poses {config.path}: all {len(found)} cameras are in one place, so there"
            " is no scale to keep. Use `sfmprep reconstruct`, which needs no poses."
        )
    return found


def partners_by_poses(poses: KnownPoses, num_neighbours: int) -> Partners:
    """Of each view those near it; where poses can be meant in several ways, in turn."""
    ways = [poses.convention] if poses.is_told else CONVENTIONS
    near = [
        near_partners(poses.names, *poses.placed(way), num_neighbours=num_neighbours)
        for way in ways
    ]
    return {name: in_turn(way[name] for way in near) for name in poses.names}
