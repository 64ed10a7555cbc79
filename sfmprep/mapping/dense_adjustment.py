"""Bundle adjustment of frames whose every cell has an inverse depth, as in DROID-SLAM.

Of cells of one frame a network says where they are in others, and how sure that is.
Poses and inverse depths are moved to where both fit. Each inverse depth is eliminated
by itself (Schur complement); what is left is dense in the poses. In double precision,
on the device of what is given.

Paper: Teed, Deng, "DROID-SLAM", NeurIPS 2021.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

_LEAST_WEIGHT = 1e-3  # of a target that is quite sure; against the damping of poses
_NEAREST = 0.1  # share of the depth, below which nothing is divided by it
_NEAREST_VALID = 0.2
_POSE_DAMPING, _POSE_SHARE = 0.1, 1e-4
_FLOOR = 1e-7
_MOST = 10.0  # of inverse depths: more is none at all


@dataclass(frozen=True, kw_only=True, eq=False)
class DenseWindow:
    """Frames [N] of one camera, and the inverse depth of each of their cells."""

    rotations: Tensor  # [N, 3, 3] camera from world
    translations: Tensor  # [N, 3]
    inverse_depths: Tensor  # [N, h, w]
    camera: Tensor  # [4] fx, fy, cx, cy in cells; a cell's place is its index


@dataclass(frozen=True, kw_only=True, eq=False)
class Edges:
    """Frames [E] whose cells are looked for in others, not in themselves."""

    source: Tensor  # [E]
    other: Tensor  # [E]


class Projected(NamedTuple):
    """Cells of the sources in the others."""

    places: Tensor  # [E, h, w, 2]
    is_valid: Tensor  # [E, h, w] bool: in front of the other camera


class Jacobians(NamedTuple):
    """Of the places, by poses from the left as (translation, rotation), and depths."""

    source: Tensor  # [E, h, w, 2, 6]
    other: Tensor  # [E, h, w, 2, 6]
    inverse_depth: Tensor  # [E, h, w, 2]


def project(window: DenseWindow, edges: Edges) -> Projected:
    """Where the cells of the sources are in the others."""
    return _Geometry.of(window, edges).projected()


def jacobians(window: DenseWindow, edges: Edges) -> Jacobians:
    """The derivatives of `project`."""
    return _Geometry.of(window, edges).jacobians()


def adjust_dense(
    window: DenseWindow,
    edges: Edges,
    target: Tensor,
    weight: Tensor,
    damping: Tensor,
    *,
    num_fixed: int,
    with_depths: bool = True,
) -> DenseWindow:
    """One step (Gauss, Newton) of poses and inverse depths towards the targets.

    Args:
        window: Where they are.
        edges: What is looked for where.
        target: Places [E, h, w, 2] of cells in the other frames.
        weight: How sure they are [E, h, w, 2], 0..1, of x and y.
        damping: Of the inverse depths [S, h, w] of the frames that are sources, in
            their order; in units of weights.
        num_fixed: How many of the first frames stay; all others are free.
        with_depths: Whether inverse depths move too.

    Returns:
        The window after the step; the same where the system has no solution.
    """
    geometry = _Geometry.of(window, edges)
    places, is_valid = geometry.projected()
    by_source, by_other, by_depth = geometry.jacobians()
    weight = _LEAST_WEIGHT * weight.double() * is_valid[..., None]
    residual = target.double() - places
    count = len(window.rotations) - num_fixed
    sources, row = torch.unique(edges.source, return_inverse=True)
    height, width = residual.shape[1:3]

    system = residual.new_zeros(count + 1, count + 1, 6, 6)  # the last is of the fixed
    right = residual.new_zeros(count + 1, 6)
    mixed = residual.new_zeros(count + 1, len(sources), 6, height * width)
    ends = tuple(
        (torch.where(frame < num_fixed, count, frame - num_fixed), by.flatten(1, 2))
        for frame, by in ((edges.source, by_source), (edges.other, by_other))
    )
    w, r, z = (each.flatten(1, 2) for each in (weight, residual, by_depth))
    for first, by_first in ends:
        weighted = w[..., None] * by_first
        right.index_add_(0, first, torch.einsum("enki,enk->ei", weighted, r))
        mixed.index_put_(
            (first, row), torch.einsum("enki,enk->ein", weighted, z), accumulate=True
        )
        for second, by_second in ends:
            block = torch.einsum("enki,enkj->eij", weighted, by_second)
            system.index_put_((first, second), block, accumulate=True)
    shape = 6 * count, 6 * count
    system = system[:count, :count].permute(0, 2, 1, 3).reshape(shape)
    diagonal = system.diagonal()
    system = system + torch.diag(_POSE_DAMPING + _POSE_SHARE * diagonal)
    right = right[:count].flatten()
    if not with_depths:
        step, is_found = _solved(system, right)
        return _with_poses(window, step, num_fixed) if is_found else window

    cells = (len(sources), height * width)
    depths = residual.new_zeros(cells).index_add(0, row, (w * z * z).sum(-1))
    depths = depths + damping.double().flatten(1) + _FLOOR
    right_depths = residual.new_zeros(cells).index_add(0, row, (w * z * r).sum(-1))
    mixed = mixed[:count].permute(0, 2, 1, 3).reshape(6 * count, -1)
    shared = mixed / depths.flatten()
    step, is_found = _solved(
        system - shared @ mixed.T, right - shared @ right_depths.flatten()
    )
    if not is_found:
        return window
    change = (right_depths.flatten() - mixed.T @ step) / depths.flatten()
    moved = window.inverse_depths.double().clone()
    moved[sources] += change.view(len(sources), height, width)
    moved = torch.where(moved > _MOST, 0.0, moved).clamp(min=0)
    return replace(_with_poses(window, step, num_fixed), inverse_depths=moved)


# --------------------------------------------------------------------------- internals
class _Geometry(NamedTuple):
    camera: Tensor  # [4]
    turns: Tensor  # [E, 3, 3] other from source
    shifts: Tensor  # [E, 3]
    inverse: Tensor  # [E, h, w] in the source
    places: Tensor  # [E, h, w, 3] in the other, times the inverse depth

    @staticmethod
    def of(window: DenseWindow, edges: Edges) -> _Geometry:
        rotations, translations, camera, depths = (
            each.double()
            for each in (
                *(window.rotations, window.translations),
                *(window.camera, window.inverse_depths),
            )
        )
        turns = rotations[edges.other] @ rotations[edges.source].mT
        shifts = translations[edges.other] - torch.einsum(
            "eij,ej->ei", turns, translations[edges.source]
        )
        inverse = depths[edges.source]
        fx, fy, cx, cy = camera
        height, width = inverse.shape[1:]
        x = (torch.arange(width).to(camera) - cx) / fx
        y = (torch.arange(height).to(camera) - cy) / fy
        grid = torch.meshgrid(y, x, indexing="ij")
        rays = torch.stack((grid[1], grid[0], torch.ones_like(grid[0])), -1)
        places = torch.einsum("eij,hwj->ehwi", turns, rays)
        places = places + inverse[..., None] * shifts[:, None, None]
        return _Geometry(camera, turns, shifts, inverse, places)

    def _depth(self) -> Tensor:
        depth = self.places[..., 2]
        return torch.where(depth < _NEAREST, 1.0, depth)

    def projected(self) -> Projected:
        fx, fy, cx, cy = self.camera
        depth = self._depth()
        x = fx * self.places[..., 0] / depth + cx
        y = fy * self.places[..., 1] / depth + cy
        return Projected(torch.stack((x, y), -1), self.places[..., 2] > _NEAREST_VALID)

    def jacobians(self) -> Jacobians:
        fx, fy, _, _ = self.camera
        x, y, _ = self.places.unbind(-1)
        depth, zero = self._depth(), torch.zeros_like(x)
        by_place = torch.stack(
            (
                torch.stack((fx / depth, zero, -fx * x / depth**2), -1),
                torch.stack((zero, fy / depth, -fy * y / depth**2), -1),
            ),
            -2,
        )  # [E, h, w, 2, 3]
        by_shift = self.inverse[..., None, None] * by_place
        by_turn = -by_place @ _cross(self.places)
        other = torch.cat((by_shift, by_turn), -1)
        # what moves the source moves the other by the adjoint of what lies between
        turns = self.turns[:, None, None]
        between = _cross(self.shifts)[:, None, None] @ turns
        source = torch.cat(
            (-by_shift @ turns, -(by_shift @ between + by_turn @ turns)), -1
        )
        by_depth = torch.einsum("ehwki,ei->ehwk", by_place, self.shifts)
        return Jacobians(source, other, by_depth)


def _cross(vectors: Tensor) -> Tensor:
    """The matrices [..., 3, 3] whose product with b is the cross product with b."""
    x, y, z = vectors.unbind(-1)
    zero = torch.zeros_like(x)
    rows = ((zero, -z, y), (z, zero, -x), (-y, x, zero))
    return torch.stack([torch.stack(row, -1) for row in rows], -2)


def _solved(system: Tensor, right: Tensor) -> tuple[Tensor, bool]:
    factor, info = torch.linalg.cholesky_ex(system)
    step = torch.cholesky_solve(right[:, None], factor)[:, 0]
    return step, not info.item() and bool(step.isfinite().all())


def _with_poses(window: DenseWindow, step: Tensor, num_fixed: int) -> DenseWindow:
    """Each free pose moved from the left by the exponential of its step."""
    twist = step.view(-1, 6)
    matrix = twist.new_zeros(len(twist), 4, 4)
    matrix[:, :3, :3] = _cross(twist[:, 3:])
    matrix[:, :3, 3] = twist[:, :3]
    moves = torch.linalg.matrix_exp(matrix)
    turn, shift = moves[:, :3, :3], moves[:, :3, 3]
    rotations = window.rotations.double().clone()
    translations = window.translations.double().clone()
    free = slice(num_fixed, None)
    translations[free] = torch.einsum("nij,nj->ni", turn, translations[free]) + shift
    rotations[free] = turn @ rotations[free]
    return replace(window, rotations=rotations, translations=translations)
