"""Groups of views that a model holds against their own verified pairs.

A mapper adds an image by the points that it sees, were it of pairs that agree with
nothing else; so a group of views may hang in a model by what its poses contradict. How
a group would have to be turned is told by each of its pairs: those that tell the same
are right together, as rotations come back around every loop of them. The most count,
by the inliers above those that a pair needs, and a group that agrees with less than
half as much is not held.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.geometry.views import Views
from sfmprep.mapping.loops import angles_deg, turns_by_pairs
from sfmprep.mapping.outliers import without_images
from sfmprep.mapping.wrong_pairs import (
    LEAST_INLIERS,
    Asked,
    WrongPair,
    as_wrong_pairs,
    gather,
)
from sfmprep.types import Float64, Index, Mask

_ALIKE_DEG = 25.0  # rotations that say the same
_MIN_INLIERS = 30  # that must speak for another place
_HELD = 0.5  # of what speaks for another place
_ROWS = 1000  # rotations that are compared with all at once


@dataclass(frozen=True, kw_only=True)
class Unheld:
    """Views that their own pairs put elsewhere than the model does."""

    names: frozenset[str]
    wrong: tuple[WrongPair, ...]  # pairs to other views that most others contradict


def find_unheld(
    database: Path, views: Views, asked: Asked, explained: Mask
) -> list[Unheld]:
    """Finds the groups of views that a model holds against their own pairs.

    None where all pairs agree. The largest group is the model, and is held. The others
    are asked one after the other, those first of which most pairs say the same; a
    group is asked for its pairs to those before it, where they should be.

    Args:
        database: Where the pairs are.
        views: Of the model.
        asked: What the model says of the pairs.
        explained: [P] pairs that look-alikes explain, which say nothing.
    """
    agrees, inliers = asked.agrees, asked.num_inliers
    fitting = asked.fitting * inliers
    said = np.where(agrees, fitting, np.where(explained, 0.0, fitting - inliers))
    label = gather(len(asked.names), asked.index, said)
    own = _own(label, asked, np.where(agrees, said, 0.0))
    against = _own(label, asked, np.where(agrees, 0.0, -said))
    waiting = (against > own) & (against >= _MIN_INLIERS)
    waiting[np.bincount(label, minlength=1).argmax()] = False
    above = np.maximum(inliers - LEAST_INLIERS, 0)
    held = _own(label, asked, np.where(agrees, asked.fitting * above, 0.0))
    turns = np.tile(np.eye(3), (len(asked.index), 1, 1))
    ends = label[asked.index].reshape(-1, 2)
    asks = waiting[ends].any(axis=1) & (ends[:, 0] != ends[:, 1]) & ~explained
    rows = np.flatnonzero(asks & ~agrees)
    turns[rows] = turns_by_pairs(database, views, asked, rows)
    offsets = np.tile(np.eye(3), (len(waiting), 1, 1))
    weights = np.zeros(len(waiting))
    unheld = []
    rows_of: dict[int, list[int]] = {g: [] for g in np.flatnonzero(waiting).tolist()}
    for row in rows.tolist():
        for end in ends[row].tolist():
            if end in rows_of:
                rows_of[end].append(row)
    told: dict[int, tuple[Float64, float]] = {}
    changed = set(rows_of)  # groups with a pair to one that is settled since
    while waiting.any():
        for each in changed:
            mine = np.array(rows_of[each], np.int64)
            needed = _needed(each, waiting, ends[mine], turns[mine], offsets)
            told[each] = _most(*needed, above[mine])
        group = max(told, key=lambda each: (told[each][1], -each))
        waiting[group] = False
        most = told.pop(group)
        if held[group] <= _HELD * most[1] or not own[group]:
            offsets[group], weights[group] = most
            unheld.append(group)
        changed = told.keys() & set(ends[rows_of[group]].ravel().tolist())
    expected = offsets[ends[:, 1]] @ offsets[ends[:, 0]].swapaxes(1, 2)
    loop_deg = np.where(asks, angles_deg(turns @ expected.swapaxes(1, 2)), np.nan)
    names = np.array(asked.names, object)
    found = []
    for group in unheld:
        wrong = (ends == group).any(axis=1) & (loop_deg > _ALIKE_DEG)
        every = above[(ends == group).any(axis=1) & asks].sum()
        certainty = np.full(len(wrong), weights[group] / max(every, 1))
        pairs = as_wrong_pairs(asked, wrong, certainty, loop_deg)
        found.append(
            Unheld(
                names=frozenset(names[label == group]),
                wrong=tuple(pairs) if weights[group] else (),
            )
        )
    return found


def _own(label: Index, asked: Asked, said: Float64) -> Float64:
    """By group, the sum of what pairs [P] to other groups say."""
    one, two = label[asked.index].reshape(-1, 2).T
    across = np.where(one != two, said, 0.0)
    sums: Float64 = np.zeros(len(asked.names) + 1)
    np.add.at(sums, one, across)
    np.add.at(sums, two, across)
    return sums


def _needed(
    group: int, waiting: Mask, ends: Index, turns: Float64, offsets: Float64
) -> tuple[Float64, Mask]:
    """How pairs [R] say that a group is turned [R, 3, 3], and which of them say it.

    Pairs to groups that wait themselves say nothing.
    """
    one, two = ends.T
    forward = two == group
    other = np.where(forward, one, two)
    counts = (forward | (one == group)) & ~waiting[other]
    needed = np.where(forward[:, None, None], turns, turns.swapaxes(1, 2))
    return needed @ offsets[other], counts & np.isfinite(turns[:, 0, 0])


def _most(turns: Float64, counts: Mask, weights: Index) -> tuple[Float64, float]:
    """What most of those rotations [R, 3, 3] say that count, and their weight.

    The weight is 0 where no two say the same.
    """
    turns, weights = turns[counts], weights[counts]
    flat = turns.reshape(-1, 9)  # of two, the product is the trace of one by the other
    least = 1 + 2 * np.cos(np.radians(_ALIKE_DEG))
    sums = np.zeros(len(flat))
    for start in range(0, len(flat), _ROWS):
        alike = flat[start : start + _ROWS] @ flat.T > least
        sums[start : start + _ROWS] = alike @ weights * (alike.sum(axis=1) > 1)
    if not sums.any():
        return np.eye(3), 0.0
    best = int(sums.argmax())
    return turns[best], float(sums[best])


def part(
    models: Sequence[pycolmap.Reconstruction],
    unheld: Sequence[Iterable[Unheld]],
    min_size: int,
) -> list[pycolmap.Reconstruction]:
    """Models without the groups that are not held, each of which is one of its own.

    Args:
        models: Largest first; they stay as they are.
        unheld: Of each model.
        min_size: Fewer images make no model; one without a part so large stays whole.

    Returns:
        Largest first.
    """
    parts = []
    for model, groups in zip(models, unheld, strict=True):
        names = {model.images[key].name for key in model.reg_image_ids()}
        kept = names.difference(*(group.names for group in groups))
        every = [kept, *(group.names for group in groups)]
        large = [own for own in every if len(own) >= min_size]
        if not large or names in every:
            parts.append(model)
        else:
            parts += [without_images(model, names - own) for own in large]
    return sorted(parts, key=lambda model: -model.num_reg_images())
