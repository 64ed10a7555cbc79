"""Whether given poses are those of the photographs, and how they are meant.

What the pairs of a capture tell of relative poses shows which way the axes of the
cameras point, what a rotation and a vector do, whether the world is left-handed, and
by how much the clock of a trajectory is off. Where it does not, that is an error: a
wrong guess would be a wrong model.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import get_args

import numpy as np
from scipy.optimize import minimize_scalar

from sfmprep.errors import ConfigError
from sfmprep.known_poses.poses import (
    CONVENTIONS,
    Convention,
    Direction,
    KnownPoses,
)
from sfmprep.known_poses.trajectory import Trajectory
from sfmprep.mapping.pose_graph import Edges, edge_errors_deg
from sfmprep.types import Float64

logger = logging.getLogger(__name__)

_CLEARLY = 0.5  # of the error of another way to read poses
_FITS_DEG = 15.0  # poses that are off by less are not asked what else they could be
_NUM_SHUFFLES = 200
_MAX_CHANCE = 0.05
_MIN_IMAGES = 5  # fewer cannot be told from the poses of others
_MAX_OFFSET_S = 1.0
_STEP_S = 0.02
_NOISE_DEG = 1.0  # of relative poses, in the search for an offset


@dataclass(frozen=True, kw_only=True, eq=False)
class Checked:
    """Given poses as they are meant."""

    poses: KnownPoses  # in a convention that the photographs agree with
    error_deg: float  # median over the pairs of the larger of both errors


def check_poses(poses: KnownPoses, edges: Edges, where: str) -> Checked:
    """Finds out, or makes sure, what given poses mean.

    Args:
        poses: Of images; rows as in `edges`.
        edges: Relative poses by the photographs; none where nothing can be checked.
        where: The file of the poses, for messages.

    Raises:
        ConfigError: the poses fit no better than those of other images would, fit only
            in another convention than the format's or the user's, or in a left-handed
            world; or the convention is not told, and the pairs do not tell it either.
    """
    if not len(edges):
        if not poses.is_told:
            raise ConfigError(
                f"poses {where}: no pair of images was verified, by which to tell what"
                " they mean. Tell it: --axes opencv or opengl, and --direction"
                " cam_from_world or world_from_cam."
            )
        return Checked(poses=poses, error_deg=float("nan"))
    errors = {
        convention: _error_deg(edges, *poses.placed(convention))
        for convention in CONVENTIONS
    }
    own = errors[poses.convention]
    best = min(errors, key=lambda convention: errors[convention])
    mirrored = min(_mirrored_errors(poses, best if not poses.is_told else None, edges))
    _expect_right_handed(min(own, errors[best]), mirrored, where)
    if poses.is_told:
        if own > _FITS_DEG and errors[best] < _CLEARLY * own:
            raise ConfigError(
                f"poses {where}: read as {poses.convention}, they contradict the"
                f" photographs by {own:.0f} degrees (median over {len(edges)} pairs);"
                f" read as {best}, by {errors[best]:.1f}. Give --axes {best.axes}"
                f" --direction {best.direction}."
            )
        best = poses.convention
    else:
        rest = min(error for other, error in errors.items() if other != best)
        if errors[best] > _CLEARLY * rest:
            raise ConfigError(
                f"poses {where}: what they mean cannot be told: read as {best}, they"
                f" contradict the photographs by {errors[best]:.0f} degrees (median"
                f" over {len(edges)} pairs), otherwise by {rest:.0f}. If they are of"
                " these images, tell it: --axes opencv or opengl, and --direction"
                " cam_from_world or world_from_cam."
            )
        logger.info("poses %s: %s, as the photographs tell", where, best)
    checked = replace(poses, convention=best)
    _expect_of_these(checked, edges, errors[best], where)
    return Checked(poses=checked, error_deg=errors[best])


def find_time_offset(
    trajectory: Trajectory,
    names: Sequence[str],
    times: Float64,
    edges: Edges,
    turns: Float64 | None = None,
) -> float:
    """By how many seconds the clock of a trajectory is ahead of that of the images.

    It is searched where the rotations and directions of pairs fit best, up to a second
    either way; of conventions that are not told, with the best.

    Args:
        trajectory: Poses by time.
        names: Of the images [N].
        times: Of these, seconds.
        edges: Relative poses by the photographs, rows of `names`; without any, 0.
        turns: Of the images against what the trajectory is of, see `KnownPoses`.
    """
    if not len(edges):
        return 0.0
    conventions = [trajectory.convention] if trajectory.is_told else CONVENTIONS

    def loss(offset: float, convention: Convention) -> float:
        wanted = (times + offset).clip(trajectory.times[0], trajectory.times[-1])
        poses = replace(trajectory.at(names, wanted, 0.0), turns=turns)
        errors = edge_errors_deg(edges, *poses.placed(convention))
        return float(np.nanmean(np.log1p((errors / _NOISE_DEG) ** 2)))

    grid = np.arange(-_MAX_OFFSET_S, _MAX_OFFSET_S + _STEP_S / 2, _STEP_S)
    losses = {(float(t), c): loss(float(t), c) for t in grid for c in conventions}
    rough, convention = min(losses, key=lambda key: losses[key])
    found = minimize_scalar(
        lambda offset: loss(offset, convention),
        bounds=(rough - _STEP_S, rough + _STEP_S),
        method="bounded",
        options={"xatol": 1e-4},
    )
    return float(found.x)


def _error_deg(edges: Edges, rotations: Float64, centres: Float64) -> float:
    errors = edge_errors_deg(edges, rotations, centres)
    return float(np.median(np.nanmax(errors, axis=1)))


def _mirrored_errors(
    poses: KnownPoses, convention: Convention | None, edges: Edges
) -> list[float]:
    """Errors of poses whose centres, or all of whose axes, are mirrored.

    The last is how Unity has them: x right, y up, z forward, in world and camera.
    """
    rotations, centres = poses.placed(convention or poses.convention)
    found = []
    for axis in range(3):
        signs = np.ones(3)
        signs[axis] = -1
        found.append(_error_deg(edges, rotations, centres * signs))
    mirror = np.diag([1.0, -1.0, 1.0])
    for direction in get_args(Direction):
        turned, centres = poses.placed(Convention("opencv", direction))
        found.append(_error_deg(edges, mirror @ turned @ mirror, centres @ mirror))
    return found


def _expect_right_handed(own: float, mirrored: float, where: str) -> None:
    if own > _FITS_DEG and mirrored < _CLEARLY * own:
        raise ConfigError(
            f"poses {where}: they contradict the photographs by {own:.0f} degrees, but"
            f" their mirror image by {mirrored:.1f}: they are of a left-handed world,"
            " such as that of Unity. Negate one axis of positions and rotations."
        )


def _expect_of_these(
    poses: KnownPoses, edges: Edges, error_deg: float, where: str
) -> None:
    """Refuses poses that fit no better than in another order."""
    rotations, centres = poses.cam_from_world()
    if len(poses) < _MIN_IMAGES:
        return
    rng = np.random.default_rng(0)
    shuffled = []
    for _ in range(_NUM_SHUFFLES):
        order = rng.permutation(len(poses))
        shuffled.append(_error_deg(edges, rotations[order], centres[order]))
    as_good = float((np.array(shuffled) <= error_deg).mean())
    if error_deg > _FITS_DEG and as_good > _MAX_CHANCE:
        raise ConfigError(
            f"poses {where}: they contradict the photographs by {error_deg:.0f} degrees"
            f" (median over {len(edges)} pairs), no less than in another order. Are"
            " they of other images, or is the order of names another one?"
        )
