"""The similarity that brings poses to given ones, and how far these are off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pycolmap
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from sfmprep.geometry.robust import LOSS_SCALE, deviation_of
from sfmprep.types import Float64, Mask

_ROUNDS = 6
_LEAST_DEG = 1e-3
_LEAST_SHARE = 1e-6  # of the spread of the centres
_NUM_SIGMAS = 5.0  # of three components: once in 200,000 where errors are normal


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """How poses lie against given ones."""

    given_from_own: pycolmap.Sim3d
    rotation_stddev_deg: float  # of given rotations, in each axis
    position_stddev: float  # of given centres, in each axis, units of the given
    rotation_off_deg: Float64  # [N] by how much the given are off
    position_off: Float64  # [N] units of the given

    def contradicted(self) -> Mask:
        """Which given poses [N] are off by far more than most."""
        turned = self.rotation_off_deg > _NUM_SIGMAS * self.rotation_stddev_deg
        moved = self.position_off > _NUM_SIGMAS * self.position_stddev
        return np.asarray(turned | moved)


def align(own: tuple[Float64, Float64], given: tuple[Float64, Float64]) -> Alignment:
    """Finds the similarity from poses to given ones, by rotations and centres.

    By Cauchy's loss, whose scales are those of the errors that are left: neither a pose
    that is wrong counts, nor the less exact of rotations and centres.

    Args:
        own: Rotations [N, 3, 3] camera from world and centres [N, 3]; two or more, not
            all on one spot.
        given: The same of the given poses.
    """
    (rotations, centres), (given_rotations, given_centres) = own, given
    turn = _mean_turn(given_rotations.swapaxes(1, 2) @ rotations)
    middle, aim = np.median(centres, axis=0), np.median(given_centres, axis=0)
    size = float(np.linalg.norm(given_centres - aim, axis=1).max())
    turned = (centres - middle) @ turn.T
    scale = _scale(turned, given_centres - aim)
    state = np.zeros(7)
    sigmas = np.radians(10.0), 0.3 * size

    def parts(step: Float64) -> tuple[Float64, Float64]:
        change = Rotation.from_rotvec(step[:3]).as_matrix()
        off = Rotation.from_matrix(
            rotations @ (change @ turn).T @ given_rotations.swapaxes(1, 2)
        ).as_rotvec()
        placed = scale * np.exp(step[6]) * turned @ change.T + aim + size * step[3:6]
        return off, placed - given_centres

    def residuals(step: Float64) -> Float64:
        off, gap = parts(step)
        return np.concatenate([off / sigmas[0], gap / sigmas[1]]).ravel()

    for _ in range(_ROUNDS):
        found = least_squares(residuals, state, loss="cauchy", f_scale=LOSS_SCALE)
        state = np.asarray(found.x)
        lengths = [np.linalg.norm(part, axis=1) for part in parts(state)]
        sigmas = (
            max(deviation_of(lengths[0], 3), float(np.radians(_LEAST_DEG))),
            max(deviation_of(lengths[1], 3), _LEAST_SHARE * size),
        )
    rotation = Rotation.from_rotvec(state[:3]).as_matrix() @ turn
    factor = float(scale * np.exp(state[6]))
    shift = aim + size * state[3:6] - factor * rotation @ middle
    return Alignment(
        given_from_own=pycolmap.Sim3d(factor, pycolmap.Rotation3d(rotation), shift),
        rotation_stddev_deg=float(np.degrees(sigmas[0])),
        position_stddev=sigmas[1],
        rotation_off_deg=np.degrees(lengths[0]),
        position_off=lengths[1],
    )


def _mean_turn(turns: Float64) -> Float64:
    """The rotation [3, 3] that is nearest to most of [N, 3, 3]."""
    weights = np.ones(len(turns))
    for _ in range(20):
        mean = Rotation.from_matrix(turns).mean(weights)
        off = (mean.inv() * Rotation.from_matrix(turns)).magnitude()
        weights = 1 / np.maximum(off, 1e-3)
    return np.asarray(mean.as_matrix(), np.float64)


def _scale(centres: Float64, given: Float64) -> float:
    """About how much longer the distances between given centres are."""
    lengths = np.linalg.norm(centres, axis=1), np.linalg.norm(given, axis=1)
    return float(lengths[1].sum() / max(lengths[0].sum(), 1e-300)) or 1.0
