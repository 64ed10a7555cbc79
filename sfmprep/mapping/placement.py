"""Many models in one frame, from the similarities between two and two of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap
from scipy.sparse import coo_matrix, identity
from scipy.sparse.csgraph import (
    breadth_first_order,
    connected_components,
    minimum_spanning_tree,
)
from scipy.sparse.linalg import spsolve
from scipy.spatial.transform import Rotation

from sfmprep.types import Float64, Index

_LOSS_SCALE = 0.02  # radians, and shares of the extent of what two models share
_TREES = 50
_CONTRADICTED = 0.2  # of the same: no drift of a sub-model is as large
_STEP = 1e-6  # of derivatives, radians and the like
_DAMPING, _STUCK = 1e-9, 1e6  # of Levenberg and Marquardt: least, and to give up at
_MAX_STEPS = 100
_ENOUGH = 1e-10  # of the cost: what a step gains at the end


@dataclass(frozen=True, kw_only=True, eq=False)
class Joint:
    """How the frame of a second model lies in that of a first."""

    first: int
    second: int
    first_from_second: pycolmap.Sim3d
    num_links: int  # points of both that agree
    centre: Float64  # [3] in the middle of these points, in the frame of the second
    extent: float  # median distance of these points from it


@dataclass(frozen=True, kw_only=True, eq=False)
class Placement:
    """Frames that all joints but the contradicted ones agree on."""

    label: Index  # [K] models with the same have one frame
    world_from_model: list[pycolmap.Sim3d]
    contradicted: list[Joint]  # what the others, around a cycle, say is wrong


def place_all(count: int, joints: Sequence[Joint]) -> Placement:
    """Finds one frame for models that joints connect, and checks cycles of these.

    It begins with the tree of joints that most others agree with, by their points, of
    the tree of the strongest and of some at random, and moves all frames to where all
    joints agree best, by Cauchy's loss. A joint that is then off by a fifth
    (radians, or shares of the extent of the points) is contradicted by a way around it
    and does not count; a joint that is in no cycle cannot be.

    Args:
        count: How many models there are.
        joints: Of two models each, at most one for the same two.

    Returns:
        Of models without a joint, the frame is their own.
    """
    kept, contradicted = list(joints), []
    while True:
        label, frames = _along_best_tree(count, kept)
        frames = _adjusted(frames, kept, label)
        off = _Joints.of(kept).off(frames)
        if off.max(initial=0) <= _CONTRADICTED:
            break
        # one at a time, the worst first: it may be what moved the others
        contradicted.append(kept.pop(int(np.argmax(off))))
    return Placement(
        label=label,
        world_from_model=[_sim3d(frame) for frame in frames],
        contradicted=contradicted,
    )


@dataclass(frozen=True, kw_only=True, eq=False)
class _Joints:
    """All joints in columns; a frame is a vector of 7: turn, log of scale, shift."""

    ends: Index  # [E, 2] first and second
    frames: Float64  # [E, 7] first from second
    turns: Float64  # [E, 3, 3] of these
    centres: Float64  # [E, 3]
    extents: Float64  # [E]

    @staticmethod
    def of(joints: Sequence[Joint]) -> _Joints:
        frames = np.array([_frame(joint.first_from_second) for joint in joints])
        frames = frames.reshape(-1, 7)
        centres = np.array([joint.centre for joint in joints]).reshape(-1, 3)
        return _Joints(
            ends=_ends(joints),
            frames=frames,
            turns=Rotation.from_rotvec(frames[:, :3]).as_matrix(),
            centres=centres,
            extents=np.array([max(joint.extent, 1e-12) for joint in joints]),
        )

    def residuals(self, first: Float64, second: Float64) -> Float64:
        """What joints are off: turn, log of the scale, shift in extents [E, 7].

        Args:
            first: Frames of the first models [E, 7].
            second: Of the second ones.
        """
        turns = [Rotation.from_rotvec(f[:, :3]).as_matrix() for f in (first, second)]
        # from the second to the first by the frames, and back by the joint
        grown = first[:, 3:4], self.frames[:, 3:4]
        shift = _turned_back(turns[0], second[:, 4:] - first[:, 4:]) / np.exp(grown[0])
        shift = _turned_back(self.turns, shift - self.frames[:, 4:]) / np.exp(grown[1])
        turn = self.turns.swapaxes(1, 2) @ turns[0].swapaxes(1, 2) @ turns[1]
        scale = second[:, 3:4] - grown[0] - grown[1]
        moved = np.exp(scale) * np.einsum("eij,ej->ei", turn, self.centres) + shift
        off = (moved - self.centres) / self.extents[:, None]
        return np.hstack([Rotation.from_matrix(turn).as_rotvec(), scale, off])

    def of_ends(self, frames: Float64) -> tuple[Float64, Float64]:
        """The frames [E, 7] of the first and of the second models."""
        return frames[self.ends[:, 0]], frames[self.ends[:, 1]]

    def off(self, frames: Float64) -> Float64:
        """How far joints are off [E]."""
        residuals = self.residuals(*self.of_ends(frames))
        return np.asarray(np.linalg.norm(residuals, axis=1))

    def derivatives(self, frames: Float64, sizes: Float64) -> Float64:
        """Of residuals by both frames [E, 7, 14], these in units of `sizes` [7]."""
        columns = []
        for side, number in itertools.product(range(2), range(7)):
            values = []
            for sign in (1, -1):
                ends = self.of_ends(frames)
                ends[side][:, number] += sign * _STEP * sizes[number]
                values.append(self.residuals(*ends))
            columns.append((values[0] - values[1]) / (2 * _STEP))
        return np.stack(columns, axis=2)


def _ends(joints: Sequence[Joint]) -> Index:
    ends = [(joint.first, joint.second) for joint in joints]
    return np.array(ends, np.int64).reshape(-1, 2)


def _turned_back(turns: Float64, vectors: Float64) -> Float64:
    return np.asarray(np.einsum("eji,ej->ei", turns, vectors))


def _sim3d(frame: Float64) -> pycolmap.Sim3d:
    turn = Rotation.from_rotvec(frame[:3]).as_matrix()
    return pycolmap.Sim3d(np.exp(frame[3]), pycolmap.Rotation3d(turn), frame[4:])


def _frame(sim: pycolmap.Sim3d) -> Float64:
    turn = Rotation.from_matrix(np.asarray(sim.rotation.matrix())).as_rotvec()
    return np.concatenate([turn, [np.log(sim.scale)], np.asarray(sim.translation)])


def _along_best_tree(count: int, joints: Sequence[Joint]) -> tuple[Index, Float64]:
    """Groups of models, and frames by the tree that most other joints agree with."""
    rng = np.random.default_rng(0)
    links = np.array([joint.num_links for joint in joints])
    columns = _Joints.of(joints)
    best, most = None, -1
    for number in range(_TREES):
        weights = 1 / links if number == 0 else rng.exponential(size=len(links)) / links
        label, frames = _along_tree(count, joints, weights)
        agree = columns.off(frames) <= _CONTRADICTED
        if (votes := int(links[agree].sum())) > most:
            best, most = (label, frames), votes
        if agree.all():
            break
    assert best is not None
    return best


def _along_tree(
    count: int, joints: Sequence[Joint], weights: Float64
) -> tuple[Index, Float64]:
    """Groups of models, and frames by the joints of least weight."""
    graph = coo_matrix((weights, _ends(joints).T), (count, count)).tocsr()
    label = connected_components(graph, directed=False)[1]
    tree = minimum_spanning_tree(graph)
    by_ends = {frozenset((j.first, j.second)): j for j in joints}
    frames = np.zeros((count, 7))
    for group in range(int(label.max()) + 1 if count else 0):
        root = int(np.flatnonzero(label == group)[0])
        order, parent = breadth_first_order(tree, root, directed=False)
        for node in order[1:].tolist():
            above = int(parent[node])
            joint = by_ends[frozenset((above, node))]
            step = joint.first_from_second
            step = step if joint.first == above else step.inverse()
            frames[node] = _frame(_sim3d(frames[above]) * step)
    return np.asarray(label, np.int64), frames


def _adjusted(frames: Float64, joints: Sequence[Joint], label: Index) -> Float64:
    """Frames that fit all joints; that of the first model of each group stays.

    By steps of Levenberg and Marquardt, each of them sparse, since a joint holds two
    frames; Cauchy's loss gives it the weights.
    """
    first = np.array([np.flatnonzero(label == group)[0] for group in np.unique(label)])
    free = np.setdiff1d(np.arange(len(frames)), first)
    if len(joints) <= len(free):
        return frames  # trees fit as they are
    columns = _Joints.of(joints)
    # shifts are in units of a world that may be of any size
    unit = max(float(np.ptp(frames[:, 4:], axis=0).max()), 1e-12)
    sizes = np.array([1.0, 1.0, 1.0, 1.0, unit, unit, unit])
    number = np.full(len(frames), -1)
    number[free] = np.arange(len(free))
    # where each joint's derivatives go; those by a frame that stays go nowhere
    column = 7 * number[columns.ends][:, :, None] + np.arange(7)
    column = np.where(number[columns.ends][:, :, None] < 0, 7 * len(free), column)
    column = np.broadcast_to(column.reshape(-1, 1, 14), (len(joints), 7, 14)).ravel()
    row = np.repeat(np.arange(7 * len(joints)), 14)
    shape = 7 * len(joints), 7 * len(free) + 1
    residuals = columns.residuals(*columns.of_ends(frames)).ravel()
    cost, damping = _cauchy(residuals), _DAMPING
    for _ in range(_MAX_STEPS):
        slopes = columns.derivatives(frames, sizes).ravel()
        jacobian = coo_matrix((slopes, (row, column)), shape).tocsc()[:, :-1]
        weighted = jacobian.T.multiply(1 / (1 + (residuals / _LOSS_SCALE) ** 2)).tocsr()
        normal = (weighted @ jacobian).tocsc()
        while damping < _STUCK:
            damped = normal + damping * identity(normal.shape[0], format="csc")
            step = spsolve(damped, -(weighted @ residuals)).reshape(-1, 7)
            moved = frames.copy()
            moved[free] += step * sizes
            after = columns.residuals(*columns.of_ends(moved)).ravel()
            if _cauchy(after) <= cost:
                break
            damping *= 10
        else:
            return frames
        gained = cost - _cauchy(after)
        frames, residuals, cost = moved, after, _cauchy(after)
        damping = max(damping / 10, _DAMPING)
        if gained <= _ENOUGH * cost:
            break
    return frames


def _cauchy(residuals: Float64) -> float:
    """What residuals cost by Cauchy's loss."""
    return float(np.log1p((residuals / _LOSS_SCALE) ** 2).sum())
