"""Which verified pairs join images that do not show the same place."""

from __future__ import annotations

import heapq
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pycolmap

from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.absence import Visibility
from sfmprep.mapping.contradictions import share_fitting
from sfmprep.mapping.view_graph import strongest_edges
from sfmprep.types import Float64, Index, Mask

_PER_IMAGE = 20  # strongest pairs of each image that are asked
_MIN_INLIERS = 15
_FITS = 0.75  # share of the matches of a pair that agrees with the poses
_MIN_EXPECTED = 20  # points in either view
_ABSENT = 0.04  # share of them that speaks neither for nor against
_MOST_AGAINST = 3.0
_UNTESTED = 1.0  # weight of a pair that cannot be asked


@dataclass(frozen=True, kw_only=True, eq=False)
class Asked:
    """What a model says of verified pairs of its images."""

    index: Index  # [P, 2] rows of the views
    num_inliers: Index  # [P]
    fitting: Float64  # [P] share 0..1 of the matches that agree with the poses
    absent: Float64  # [P] share 0..1 of what both should see and do not; nan: not asked
    found: Index  # [P] points that were expected and found, in the worse direction


def ask_pairs(
    database: Path, arrays: ModelArrays
) -> Asked:
    views, visibility = arrays.views, Visibility(arrays)
    row_of = {name: row for row, name in enumerate(views.names)}
    with pycolmap.Database.open(database) as opened:
        ids = {i.image_id: i.name for i in opened.read_all_images()}
        edges = []
        for pair_id, count in zip(
            *opened.read_two_view_geometry_num_inliers(), strict=True
        ):
            pair = pycolmap.pair_id_to_image_pair(pair_id)
            rows = [row_of.get(ids[k], -1) for k in pair]
            if count >= _MIN_INLIERS and min(rows) >= 0:
                edges.append((*rows, count, *pair))
        table = np.array(edges, np.int64).reshape(-1, 5)
        table = table[strongest_edges(table[:, :2], table[:, 2], _PER_IMAGE)]
        keypoints = {
            int(k): opened.read_keypoints(int(k))[:, :2].astype(np.float64)
            for k in np.unique(table[:, 3:])
        }
        rays = {k: views.rays(row_of[ids[k]], xy) for k, xy in keypoints.items()}
        fitting, absent, found = [], [], []
        for row0, row1, _, id0, id1 in table.tolist():
            matches = opened.read_two_view_geometry(id0, id1).inlier_matches
            ray0, ray1 = rays[id0][matches[:, 0]], rays[id1][matches[:, 1]]
            fitting.append(share_fitting(views, row0, row1, ray0, ray1))
            absent.append(np.nan)
            found.append(0)
            if fitting[-1] < _FITS:
                continue
            both = (
                visibility.seen(row0, row1, matches[:, 0]),
                visibility.seen(row1, row0, matches[:, 1]),
            )
            if min(seen.num_expected for seen in both) >= _MIN_EXPECTED:
                absent[-1] = min(s.num_absent / s.num_expected for s in both)
                found[-1] = min(s.num_found for s in both)
    return Asked(
        index=table[:, :2],
        num_inliers=table[:, 2],
        fitting=np.array(fitting),
        absent=np.array(absent),
        found=np.array(found, np.int64),
    )


def weights(asked: Asked) -> Float64:
    with np.errstate(invalid="ignore"):
        side = (1 - asked.absent / _ABSENT).clip(-_MOST_AGAINST, 1)
    found: Float64 = np.where(
        np.isnan(asked.absent), _UNTESTED, np.maximum(asked.found, 10) * side
    )
    return found


def cluster(num: int, index: Index, weights: Float64) -> Index:
    """Greedy additive contraction: joins while the sum between two groups is positive.

    Keuper et al., Efficient decomposition of image and mesh graphs by lifted
    multicuts, ICCV 2015.
    """
    between: list[dict[int, float]] = [{} for _ in range(num)]
    for (i, j), weight in zip(index.tolist(), weights.tolist(), strict=True):
        between[i][j] = between[j][i] = between[i].get(j, 0.0) + weight
    heap = [(-w, i, j) for i in range(num) for j, w in between[i].items() if i < j and w > 0]
    heapq.heapify(heap)
    label = np.arange(num)
    alive = [True] * num
    members = [[i] for i in range(num)]
    while heap:
        weight, i, j = heapq.heappop(heap)
        if not (alive[i] and alive[j]) or between[i].get(j) != -weight:
            continue
        if len(between[i]) < len(between[j]):
            i, j = j, i
        alive[j] = False
        members[i] += members[j]
        for k, w in between[j].items():
            del between[k][j]
            if k == i:
                continue
            total = between[i].get(k, 0.0) + w
            between[i][k] = between[k][i] = total
            if total > 0:
                heapq.heappush(heap, (-total, min(i, k), max(i, k)))
        between[j] = {}
    for i in range(num):
        if alive[i]:
            label[members[i]] = i
    return np.unique(label, return_inverse=True)[1]


def cut(num: int, asked: Asked) -> tuple[Index, Mask]:
    """Labels of views, and which pairs are to go."""
    fits = asked.fitting >= _FITS
    weight = weights(asked)
    label = cluster(num, asked.index[fits], weight[fits])
    ends = np.sort(label[asked.index], axis=1)
    key = ends[:, 0] * num + ends[:, 1]
    total = np.zeros(num * num)
    np.add.at(total, key[fits], weight[fits])
    wrong = (ends[:, 0] != ends[:, 1]) & fits & (total[key] < 0)
    return label, wrong
