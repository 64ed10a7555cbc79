"""Many models in one frame, from the similarities between two and two of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pycolmap
from scipy.optimize import least_squares
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import (
    breadth_first_order,
    connected_components,
    minimum_spanning_tree,
)
from scipy.spatial.transform import Rotation

from sfmprep.types import Float64, Index

_LOSS_SCALE = 0.02  # radians, and shares of the extent of what two models share
_TREES = 50
_CONTRADICTED = 0.2  # of the same: no drift of a sub-model is as large


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
        wrong = [joint for joint in kept if _off(frames, joint) > _CONTRADICTED]
        if not wrong:
            break
        # one at a time, the worst first: it may be what moved the others
        worst = max(wrong, key=lambda joint: _off(frames, joint))
        contradicted.append(worst)
        kept.remove(worst)
    return Placement(
        label=label,
        world_from_model=[_sim3d(frame) for frame in frames],
        contradicted=contradicted,
    )


# A frame is a vector of 7: turn, logarithm of the scale, shift.
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
    best, most = None, -1
    for number in range(_TREES):
        weights = 1 / links if number == 0 else rng.exponential(size=len(links)) / links
        label, frames = _along_tree(count, joints, weights)
        agree = [j.num_links for j in joints if _off(frames, j) <= _CONTRADICTED]
        if sum(agree) > most:
            best, most = (label, frames), sum(agree)
        if len(agree) == len(joints):
            break
    assert best is not None
    return best


def _along_tree(
    count: int, joints: Sequence[Joint], weights: Float64
) -> tuple[Index, Float64]:
    """Groups of models, and frames by the joints of least weight."""
    ends = np.array([(j.first, j.second) for j in joints], np.int64).reshape(-1, 2)
    graph = coo_matrix((weights, ends.T), (count, count)).tocsr()
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
    """Frames that fit all joints; that of the first model of each group stays."""
    first = np.array([np.flatnonzero(label == group)[0] for group in np.unique(label)])
    free = np.setdiff1d(np.arange(len(frames)), first)
    if len(joints) <= len(free):
        return frames  # trees fit as they are

    def moved(step: Float64) -> Float64:
        changed = frames.copy()
        changed[free] += step.reshape(-1, 7)
        return changed

    def residuals(step: Float64) -> Float64:
        changed = moved(step)
        return np.concatenate([_residual(changed, joint) for joint in joints])

    start = np.zeros(7 * len(free))
    # shifts are in units of a world that may be of any size
    unit = max(float(np.ptp(frames[:, 4:], axis=0).max()), 1e-12)
    sizes = np.tile([1.0, 1.0, 1.0, 1.0, unit, unit, unit], len(free))
    found = least_squares(
        residuals, start, loss="cauchy", f_scale=_LOSS_SCALE, x_scale=sizes
    )
    return moved(np.asarray(found.x))


def _residual(frames: Float64, joint: Joint) -> Float64:
    """What a joint is off: turn, logarithm of the scale, shift in extents [7]."""
    first, second = _sim3d(frames[joint.first]), _sim3d(frames[joint.second])
    around = _frame(joint.first_from_second.inverse() * (first.inverse() * second))
    shifted = _sim3d(around) * joint.centre - joint.centre
    around[4:] = shifted / max(joint.extent, 1e-12)
    return around


def _off(frames: Float64, joint: Joint) -> float:
    return float(np.linalg.norm(_residual(frames, joint)))
