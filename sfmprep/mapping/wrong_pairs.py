"""Which verified pairs join images of two places that look alike.

The decision is made on the graph, not pair by pair: each pair that agrees with the
model says by what is absent whether its two views show one place, views are gathered as
long as the sum of what is said between two groups is for it, and between groups that
the sum keeps apart all pairs are wrong that fit the poses, were it in part. What leads
from one group to the other in another way contradicts the wrong overlay, and stays.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.absence import Visibility
from sfmprep.mapping.contradictions import share_fitting
from sfmprep.mapping.in_a_row import breaks, follow_in_time, next_to_each_other
from sfmprep.mapping.same_view import SameView
from sfmprep.mapping.view_graph import strongest_edges
from sfmprep.types import Float64, Index, Mask

_PER_IMAGE = 20  # strongest pairs of each image that are asked
_CLOSE_PER_IMAGE = 5  # of these, that are asked for what no point was made of
LEAST_INLIERS = 15  # of a pair that is asked
_AGREES = 0.75  # share of the matches of a pair that fit the poses
_FITS_IN_PART = 0.3  # fewer contradict the poses
_MIN_EXPECTED = 20  # points, in either view
_ABSENT = 0.04  # share of them that speaks neither for nor against
_MOST_AGAINST = 3.0
_UNKNOWN = 1.0  # weight of a pair that cannot be asked
_MIN_AGAINST = 3.0  # how loud those that speak against are together, as `_sides`
_CERTAIN = 0.5  # of all that pairs between two groups say, less what is for them
_ALL_REPEATED = 0.9  # share of the matches of a pair
_MIN_SHARED = 2  # wrong pairs that share a point, for it to be repeated
_MAX_CACHED = 512
_NO_ROWS = np.empty(0, np.int64)


@dataclass(frozen=True, kw_only=True)
class WrongPair:
    """A pair whose images look alike, but do not show the same place."""

    name0: str
    name1: str
    num_inliers: int
    absent: float | None  # share 0..1 of what both should see and do not; None: unknown
    certainty: float  # 0..1: how far the pairs of the two groups agree that it is wrong
    loop_deg: float | None = None  # left over by a loop of pairs; None: unasked


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What a model says of the verified pairs of its images."""

    names: tuple[str, ...]  # of the views
    index: Index  # [P, 2] rows of the views
    num_inliers: Index  # [P]
    repeated: Float64  # [P] share 0..1 of their matches that are on repeated points
    fitting: Float64  # [P] share 0..1 of their matches that fit the poses
    absent: Float64  # [P] share 0..1 of what both should see and do not; NaN: unknown
    found: Index  # [P] points that either should see and does, but for repeated ones
    shared: list[Index]  # [P] of pairs that miss much, all points that they share

    @property
    def pairs(self) -> list[tuple[str, str]]:
        """Names of the pairs, each in their order."""
        ends = np.array(self.names, object)[self.index].reshape(-1, 2).tolist()
        return [(min(pair), max(pair)) for pair in ends]

    @property
    def broken(self) -> Mask:
        """Which pairs are neighbours in time that the poses contradict [P]."""
        return breaks(self.names, self.index, self.num_inliers, self.fitting)

    @property
    def agrees(self) -> Mask:
        """Which pairs agree with the poses [P]."""
        agrees: Mask = self.fitting >= _AGREES
        return agrees


def judge_pairs(database: Path, arrays: ModelArrays) -> tuple[Asked, list[WrongPair]]:
    """Asks of all verified pairs, and finds those that lay one place on another.

    If there are such, the points that the two places share are known, and the decision
    is made again with what else is found: two views that have nothing but look-alikes
    in common say little, and where they contradict the poses as well, they are wrong.

    Args:
        database: Where the pairs are; its keypoints are those of the model.
        arrays: Of the model.

    Returns:
        What the pairs say, and the wrong ones among them, strongest first.
    """
    asked = ask_pairs(database, arrays)
    wrong = _wrong(asked)[0]
    if not wrong.any():
        return asked, []
    shared = [asked.shared[row] for row in np.flatnonzero(wrong).tolist()]
    times = np.bincount(np.concatenate(shared), minlength=len(arrays.xyz))
    again = ask_pairs(database, arrays, repeated=times >= _MIN_SHARED)
    return asked, find_wrong_pairs(again)


def ask_pairs(
    database: Path, arrays: ModelArrays, *, repeated: Mask | None = None
) -> Asked:
    """Asks of the verified pairs of a model's images what is absent in them.

    Pairs with 15 inliers or more are compared with the poses, and of those that agree
    the twenty strongest of each image are asked. Both directions of a pair have to miss
    something: what one view misses may be hidden.

    Args:
        database: Where the pairs are; its keypoints are those of the model.
        arrays: Of the model.
        repeated: [N] points that are known to look like others; None: none is.
    """
    views, visibility = arrays.views, Visibility(arrays)
    row_of = {name: row for row, name in enumerate(views.names)}
    with pycolmap.Database.open(database) as opened:
        id_of = {image.name: image.image_id for image in opened.read_all_images()}
        table = _pairs_between(opened, row_of)
        strong = strongest_edges(table[:, :2], table[:, 2], _PER_IMAGE)

        @lru_cache(_MAX_CACHED)
        def keypoints(row: int) -> Float64:
            xy = opened.read_keypoints(id_of[views.names[row]])[:, :2]
            return xy.astype(np.float64)

        same_view = SameView(arrays, keypoints)
        rays = same_view.rays
        is_close = same_view.are_close(table[:, :2])
        weights = np.where(is_close, table[:, 2], 0)
        is_close &= strongest_edges(table[:, :2], weights, _CLOSE_PER_IMAGE)
        answers, shared = [], []
        if repeated is None:
            repeated = np.zeros(len(arrays.xyz), bool)
        look_alike = _keypoints_of(arrays, repeated)
        for (row0, row1, _), is_strong, close in zip(
            table.tolist(), strong, is_close, strict=True
        ):
            ids = id_of[views.names[row0]], id_of[views.names[row1]]
            verified = opened.read_two_view_geometry(*ids).inlier_matches
            matches = np.asarray(verified, np.int64)
            fitting = share_fitting(
                views, row0, row1, rays(row0)[matches[:, 0]], rays(row1)[matches[:, 1]]
            )
            absent, found = np.nan, 0
            shared.append(_NO_ROWS)
            if is_strong and fitting >= _AGREES:
                at0 = keypoints(row0)[matches[:, 0]]
                at1 = keypoints(row1)[matches[:, 1]]
                seen = (
                    visibility.seen(row0, row1, matches[:, 0], at1),
                    visibility.seen(row1, row0, matches[:, 1], at0),
                )
                if min(side.num_expected for side in seen) >= _MIN_EXPECTED:
                    absent = min(s.num_absent / s.num_expected for s in seen)
                    found = min(int((~repeated[s.found]).sum()) for s in seen)
                if close:
                    tried = opened.read_matches(*ids).astype(np.int64)
                    absent = np.fmax(absent, same_view.missing(row0, row1, tried))
                if absent > _ABSENT:
                    shared[-1] = np.union1d(seen[0].found, seen[1].found)
            on_repeated = np.isin(matches[:, 0], look_alike[row0])
            on_repeated |= np.isin(matches[:, 1], look_alike[row1])
            answers.append((fitting, absent, found, float(on_repeated.mean())))
    columns = np.array(answers, np.float64).reshape(-1, 4)
    return Asked(
        names=views.names,
        index=table[:, :2],
        num_inliers=table[:, 2],
        repeated=columns[:, 3],
        fitting=columns[:, 0],
        absent=columns[:, 1],
        found=columns[:, 2].astype(np.int64),
        shared=shared,
    )


def find_wrong_pairs(asked: Asked) -> list[WrongPair]:
    """Finds the pairs that lay one place on another, strongest first.

    None are found where what is absent between two groups could be chance: less than a
    sixth in one pair, or a twelfth in each of three; or where others speak for them a
    third as loud.
    """
    wrong, certainty = _wrong(asked)
    return as_wrong_pairs(asked, wrong, certainty)


def as_wrong_pairs(
    asked: Asked, wrong: Mask, certainty: Float64, loop_deg: Float64 | None = None
) -> list[WrongPair]:
    """Pairs [P] that are wrong, strongest first."""
    found = []
    for row in np.flatnonzero(wrong).tolist():
        name0, name1 = sorted(asked.names[view] for view in asked.index[row].tolist())
        absent = float(asked.absent[row])
        found.append(
            WrongPair(
                name0=name0,
                name1=name1,
                num_inliers=int(asked.num_inliers[row]),
                absent=None if np.isnan(absent) else round(absent, 3),
                certainty=round(float(certainty[row]), 3),
                loop_deg=None if loop_deg is None else round(float(loop_deg[row]), 1),
            )
        )
    return sorted(found, key=lambda pair: (-pair.num_inliers, pair.name0, pair.name1))


def _wrong(asked: Asked) -> tuple[Mask, Float64]:
    """Which pairs [P] are wrong, and how far those of its two groups say so, -1..1."""
    agrees, weights = asked.agrees, _weights(asked)
    label = gather(len(asked.names), asked.index[agrees], weights[agrees])
    ends = np.sort(label[asked.index], axis=1)
    _, between = np.unique(ends, axis=0, return_inverse=True)
    between = between.reshape(-1)
    sums = np.zeros((int(between.max(initial=-1)) + 1, 3))  # all, absolute, against
    against = np.where(weights < 0, -_sides(asked), 0.0)
    said = np.column_stack([weights, np.abs(weights), against])
    np.add.at(sums, between[agrees], said[agrees])
    total, absolute, against = sums[between].T
    # what fits in part follows the same overlay, and would lead back to it
    wrong = (asked.fitting >= _FITS_IN_PART) & (ends[:, 0] != ends[:, 1])
    certainty = -total / np.maximum(absolute, 1e-9)
    wrong &= (certainty >= _CERTAIN) & (against >= _MIN_AGAINST)
    # between photographs in a row nothing but evidence of their own counts
    wrong &= ~next_to_each_other(asked.names, asked.index) | (weights < 0)
    # what is repeated is known by now: what has nothing else and does not agree, too
    wrong |= ~agrees & (asked.repeated >= _ALL_REPEATED)
    return wrong, certainty


def gather(num_views: int, index: Index, weights: Float64) -> Index:
    """Labels [V] of groups: those of the largest sum are joined while it is above 0.

    Greedy additive edge contraction (Keuper et al., Efficient decomposition of image
    and mesh graphs by lifted multicuts, ICCV 2015).

    Args:
        num_views: How many there are.
        index: Pairs of views [P, 2], each once.
        weights: [P] above 0 for what belongs together, below 0 for what does not.
    """
    sums: list[dict[int, float]] = [{} for _ in range(num_views)]
    heap: list[tuple[float, int, int]] = []
    for (one, two), weight in zip(index.tolist(), weights.tolist(), strict=True):
        sums[one][two] = sums[two][one] = weight
        heap.append((-weight, min(one, two), max(one, two)))
    heapq.heapify(heap)
    members = [[view] for view in range(num_views)]
    while heap and heap[0][0] < 0:
        weight, one, two = heapq.heappop(heap)
        if sums[one].get(two) != -weight:
            continue  # joined, or another sum by now
        if len(sums[one]) < len(sums[two]):
            one, two = two, one
        members[one] += members[two]
        members[two] = []
        del sums[one][two], sums[two][one]
        for other, more in sums[two].items():
            del sums[other][two]
            total = sums[one].get(other, 0.0) + more
            sums[one][other] = sums[other][one] = total
            heapq.heappush(heap, (-total, min(one, other), max(one, other)))
        sums[two] = {}
    label = np.empty(num_views, np.int64)
    for number, group in enumerate(members):
        label[group] = number
    return label


def _pairs_between(database: pycolmap.Database, row_of: dict[str, int]) -> Index:
    """Rows of the views and inliers [P, 3] of verified pairs, in the order of ids."""
    names = {image.image_id: image.name for image in database.read_all_images()}
    found = []
    counts = database.read_two_view_geometry_num_inliers()
    for pair_id, count in sorted(zip(*counts, strict=True)):
        pair = pycolmap.pair_id_to_image_pair(pair_id)
        rows = [row_of.get(names[image_id], -1) for image_id in pair]
        if count >= LEAST_INLIERS and min(rows) >= 0:
            found.append((*rows, count))
    return np.array(found, np.int64).reshape(-1, 3)


def _keypoints_of(arrays: ModelArrays, points: Mask) -> list[Index]:
    """By view, the keypoints that see some of the points [N]."""
    observations = arrays.observations
    seen = points[observations.point]
    return [
        observations.keypoint[rows[seen[rows]]]
        for rows in observations.by_view(len(arrays.views))
    ]


def _sides(asked: Asked) -> Float64:
    """By pair [P], from 1, nothing absent or known, over 0 to -3."""
    known = ~np.isnan(asked.absent)
    share = np.where(known, asked.absent, 0) / _ABSENT
    return np.asarray((1 - share).clip(-_MOST_AGAINST, 1), np.float64)


def _weights(asked: Asked) -> Float64:
    """What each pair [P] says: above 0, that its views show one place."""
    known, side = ~np.isnan(asked.absent), _sides(asked)
    # against, all that is shared counts: it may be repeated
    found = np.maximum(np.where(side < 0, asked.num_inliers, asked.found), _UNKNOWN)
    said = np.where(known, side * found, _UNKNOWN)
    # where nothing else decides, the order of names does
    in_row = next_to_each_other(asked.names, asked.index)
    said += np.where(in_row & (said > 0), _UNKNOWN, 0)
    follows = follow_in_time(asked.names, asked.index, asked.num_inliers)
    trusted: Float64 = np.where(follows, np.maximum(said, asked.num_inliers), said)
    return trusted
