"""Relative poses of verified pairs against given poses, and poses that fit both.

Each verified pair tells how its second camera is turned against the first, and in which
direction it lies, but not how far. Given poses tell all, not as exactly.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap
from scipy.sparse import coo_matrix, csr_matrix
from scipy.sparse.linalg import splu
from scipy.spatial.transform import Rotation

from sfmprep.coords import beyond_rounding, rounding_of
from sfmprep.geometry.robust import LOSS_SCALE, deviation_of
from sfmprep.types import Float64, Index

logger = logging.getLogger(__name__)

_ROUNDS = 30
_EDGE_DEG = 0.1  # least that a relative pose is taken to be off
# In the first rounds pairs alone decide: what is given is only trusted as far as these
# then show that it can be.
_FREE = 5
_FIRST_DEG = 30.0
_FIRST_SHARE = 0.3
_PRIOR_DEG = 0.02  # least that a given rotation is taken to be off
_LEAST_SHARE = 1e-4  # of the size of the capture, that a baseline counts as
_PRIOR_SHARE = 1e-4  # least that a given centre is taken to be off, of their spread


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """Relative poses of pairs of images."""

    index: Index  # [E, 2] rows of the images
    rotations: Float64  # [E, 3, 3] second camera from first
    directions: Float64  # [E, 3] unit: of t, first to second, axes of the second

    def __len__(self) -> int:
        return len(self.index)

    def of(self, rows: Mapping[int, int]) -> Edges:
        """Those between some images, under other rows: old to new."""
        kept = [
            row
            for row, (a, b) in enumerate(self.index.tolist())
            if {a, b} <= rows.keys()
        ]
        index = [[rows[k] for k in pair] for pair in self.index[kept].tolist()]
        return Edges(
            index=np.array(index, np.int64).reshape(-1, 2),
            rotations=self.rotations[kept],
            directions=self.directions[kept],
        )


def read_edges(database: Path, names: Mapping[str, int]) -> Edges:
    """The relative poses that a database holds, of pairs of these images.

    Args:
        database: Whose pairs `calibrate_pairs` has given their poses.
        names: Rows by name.
    """
    index, rotations, directions = [], [], []
    with pycolmap.Database.open(database) as opened:
        row_of = {
            image.image_id: names[image.name]
            for image in opened.read_all_images()
            if image.name in names
        }
        ids, counts = opened.read_two_view_geometry_num_inliers()
        for pair_id, count in zip(ids, counts, strict=True):
            pair = pycolmap.pair_id_to_image_pair(pair_id)
            if not count or not all(key in row_of for key in pair):
                continue
            geometry = opened.read_two_view_geometry(*pair)
            if geometry.config != pycolmap.TwoViewGeometryConfiguration.CALIBRATED:
                continue
            pose = geometry.cam2_from_cam1
            length = 0.0 if pose is None else float(np.linalg.norm(pose.translation))
            if pose is None or not length > 0:
                continue
            index.append([row_of[key] for key in pair])
            rotations.append(pose.rotation.matrix())
            directions.append(np.asarray(pose.translation) / length)
    return Edges(
        index=np.array(index, np.int64).reshape(-1, 2),
        rotations=np.array(rotations, np.float64).reshape(-1, 3, 3),
        directions=np.array(directions, np.float64).reshape(-1, 3),
    )


def edge_errors_deg(edges: Edges, rotations: Float64, centres: Float64) -> Float64:
    """How far poses are from relative ones [E, 2]: of rotations, of directions.

    The second is nan where both centres are the same.

    Args:
        edges: The relative poses.
        rotations: [N, 3, 3] camera from world.
        centres: [N, 3].
    """
    first, second = edges.index.T
    relative = rotations[second] @ rotations[first].swapaxes(1, 2)
    turned = Rotation.from_matrix(relative @ edges.rotations.swapaxes(1, 2))
    t = np.einsum("eij,ej->ei", rotations[second], centres[first] - centres[second])
    across = np.linalg.norm(np.cross(t, edges.directions), axis=1)
    along = np.einsum("ei,ei->e", t, edges.directions)
    apart = np.linalg.norm(t, axis=1) > rounding_of(centres)
    angle = np.where(apart, np.degrees(np.arctan2(across, along)), np.nan)
    return np.stack([np.degrees(turned.magnitude()), angle], axis=1)


def fit_poses(
    edges: Edges, rotations: Float64, centres: Float64
) -> tuple[Float64, Float64]:
    """Poses that fit relative ones, and the given ones as far as these can be trusted.

    First rotations, then centres, both by Cauchy's loss, whose scale, and the weight of
    what is given, are those of the errors that are left (iteratively reweighted least
    squares). The world is that of the given poses, which also place images that no pair
    joins to the rest.

    Args:
        edges: The relative poses; without any, the given ones come back.
        rotations: [N, 3, 3] camera from world, as they are given.
        centres: [N, 3].
    """
    if not len(edges):
        return rotations, centres
    fitted = _fit_rotations(edges, rotations)
    return fitted, _fit_centres(edges, fitted, centres)


def _fit_rotations(edges: Edges, given: Float64) -> Float64:
    """Rotations [N, 3, 3], by steps on the tangent space."""
    first, second = edges.index.T
    count, num = len(given), len(edges)
    own = np.arange(count)
    prior = _blocks(num + own, own, np.tile(np.eye(3), (count, 1, 1)))
    rotations = given
    for round_ in range(_ROUNDS):
        relative = rotations[second] @ rotations[first].swapaxes(1, 2)
        off = _log(relative @ edges.rotations.swapaxes(1, 2))
        moved = _log(rotations @ given.swapaxes(1, 2))
        lengths = np.linalg.norm(off, axis=1), np.linalg.norm(moved, axis=1)
        least = _FIRST_DEG if round_ < _FREE else _PRIOR_DEG
        sigmas = (
            max(deviation_of(lengths[0], 3), np.radians(_EDGE_DEG)),
            max(deviation_of(lengths[1], 3), np.radians(least)),
        )
        blocks = _joined(
            _blocks(np.arange(num), second, np.tile(np.eye(3), (num, 1, 1))),
            _blocks(np.arange(num), first, -relative),
        )
        system = _matrix(_joined(blocks, prior), num + count, count)
        step = _solved(system, np.concatenate([off, moved]), lengths, sigmas)
        rotations = Rotation.from_rotvec(step).as_matrix() @ rotations
        if np.abs(step).max() < 1e-5 and round_ >= _FREE:
            break
    return rotations


def _fit_centres(edges: Edges, rotations: Float64, given: Float64) -> Float64:
    """Centres [N, 3] of cameras whose rotations are known.

    The difference between the direction from one to another and that of the pair
    counts, as the chord of two unit vectors: without the length of the baseline, which
    would draw all centres together.
    """
    first, second = edges.index.T
    towards = -np.einsum("eji,ej->ei", rotations[second], edges.directions)
    size = float(np.linalg.norm(given - np.median(given, axis=0), axis=1).max())
    if not beyond_rounding(size, given):
        return given
    count, num = len(given), len(edges)
    own = np.arange(count)
    prior = _blocks(num + own, own, np.tile(np.eye(3), (count, 1, 1)))
    centres = given
    for round_ in range(_ROUNDS):
        off, moved = _chords(centres, edges, towards), centres - given
        lengths = np.linalg.norm(off, axis=1), np.linalg.norm(moved, axis=1)
        least = _FIRST_SHARE if round_ < _FREE else _PRIOR_SHARE
        sigmas = (
            max(deviation_of(lengths[0], 3), np.radians(_EDGE_DEG)),
            max(deviation_of(lengths[1], 3), least * size),
        )
        gap = centres[second] - centres[first]
        # from two centres in one spot any step may lead anywhere: a bound to its slope
        length = np.maximum(np.linalg.norm(gap, axis=1), _LEAST_SHARE * size)
        length = length[:, None, None]
        unit = gap[:, :, None] / length
        change = (np.eye(3) - unit @ unit.swapaxes(1, 2)) / length
        blocks = _joined(
            _blocks(np.arange(num), second, change),
            _blocks(np.arange(num), first, -change),
        )
        system = _matrix(_joined(blocks, prior), num + count, count)
        step = _solved(system, np.concatenate([off, moved]), lengths, sigmas)
        # a chord is only straight near by: no baseline changes by more than itself
        longest = np.linalg.norm(step[second] - step[first], axis=1)
        step *= min(
            1.0, 1 / max(float(np.quantile(longest / length[:, 0, 0], 0.9)), 1e-12)
        )
        centres = centres + step
        if np.abs(step).max() < 1e-6 * size and round_ >= _FREE:
            break
    return centres


def _solved(
    system: csr_matrix,
    residuals: Float64,
    lengths: tuple[Float64, Float64],
    sigmas: tuple[float, float],
) -> Float64:
    """The step [N, 3] of least squares, weighted as Cauchy's loss does."""
    weights = [
        _cauchy(length / sigma) / sigma
        for length, sigma in zip(lengths, sigmas, strict=True)
    ]
    scale = np.repeat(np.concatenate(weights), 3)
    right = -scale * residuals.ravel()
    left = system.multiply(scale[:, None]).tocsc()
    normal = (left.T @ left).tocsc()
    return np.asarray(splu(normal).solve(left.T @ right), np.float64).reshape(-1, 3)


def _chords(centres: Float64, edges: Edges, towards: Float64) -> Float64:
    """Differences [E, 3] between unit vectors."""
    gap = centres[edges.index[:, 1]] - centres[edges.index[:, 0]]
    length = np.maximum(np.linalg.norm(gap, axis=1, keepdims=True), 1e-12)
    return np.asarray(gap / length - towards, np.float64)


def _log(rotations: Float64) -> Float64:
    return np.asarray(Rotation.from_matrix(rotations).as_rotvec(), np.float64)


def _cauchy(errors: Float64) -> Float64:
    """Square roots of the weights of Cauchy's loss."""
    return np.asarray(1 / np.sqrt(1 + (errors / LOSS_SCALE) ** 2), np.float64)


Blocks = tuple[Index, Index, Float64]


def _blocks(rows: Index, columns: Index, values: Float64) -> Blocks:
    """3 x 3 blocks at rows and columns of blocks."""
    inner = np.arange(3)
    row = (3 * rows[:, None, None] + inner[:, None] + 0 * inner).ravel()
    column = (3 * columns[:, None, None] + 0 * inner[:, None] + inner).ravel()
    return row, column, values.ravel()


def _joined(first: Blocks, second: Blocks) -> Blocks:
    row, column, values = (
        np.concatenate(both) for both in zip(first, second, strict=True)
    )
    return row, column, values


def _matrix(blocks: Blocks, num_rows: int, num_columns: int) -> csr_matrix:
    row, column, values = blocks
    shape = (3 * num_rows, 3 * num_columns)
    return coo_matrix((values, (row, column)), shape).tocsr()
