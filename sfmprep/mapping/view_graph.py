"""The view graph of a database: who matches whom, and where it is about to tear."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import (
    breadth_first_order,
    connected_components,
    minimum_spanning_tree,
)

from sfmprep.files import as_written
from sfmprep.mapping.database import looked_into
from sfmprep.mapping.verify import VerifiedPairs, read_verified
from sfmprep.types import Index, Mask

_MAX_IMAGES = 2**31 - 1  # of which COLMAP makes the number of a pair of two ids


@dataclass(frozen=True, kw_only=True, eq=False)
class PairTable:
    """Pairs of images with the matches they share; rows are those of `names`."""

    names: tuple[str, ...]
    index: Index  # [P, 2]
    num_matches: Index  # [P] before verification, 8 or more
    num_inliers: Index  # [P] 0 where not verified
    verified: VerifiedPairs

    def verified_edges(self) -> tuple[Index, Index]:
        """The verified pairs [E, 2] and their inliers [E]."""
        found = self.num_inliers > 0
        return self.index[found], self.num_inliers[found]


@dataclass(frozen=True, kw_only=True, eq=False)
class Cut:
    """Two sets of images and what connects them."""

    strongest: tuple[int, int]
    num_inliers: int  # of the strongest pair
    num_pairs: int
    num_matches: int
    smaller: Index  # images of the smaller side


def read_pair_table(database: Path, names: tuple[str, ...]) -> PairTable:
    """Reads how many matches and inliers the pairs of these images have.

    Pairs with images that are not among `names` are left out.

    Raises:
        StoreError: `database` is not a COLMAP database, is damaged or locked.
    """
    verified = read_verified(database)
    row_of = {name: row for row, name in enumerate(names)}
    with as_written(database), looked_into(database) as opened:
        images = dict(opened.execute("SELECT image_id, name FROM images"))
        matches = _by_pair(opened, "matches")
        inliers = _by_pair(opened, "two_view_geometries")
    rows = np.full(max(images, default=0) + 1, -1)
    for image_id, name in images.items():
        rows[image_id] = row_of.get(name, -1)
    pair_ids = np.union1d(matches[0], inliers[0])
    columns = np.zeros((len(pair_ids), 2), np.int64)
    for column, (ids, counts) in enumerate((matches, inliers)):
        columns[np.searchsorted(pair_ids, ids), column] = counts
    index = rows[np.stack(np.divmod(pair_ids, _MAX_IMAGES), axis=1)]
    known = (index >= 0).all(axis=1)
    return PairTable(
        names=names,
        index=np.sort(index[known], axis=1),
        num_matches=columns[known, 0],
        num_inliers=columns[known, 1],
        verified=verified,
    )


def _by_pair(database: sqlite3.Connection, table: str) -> tuple[Index, Index]:
    """Ids of pairs and their counts as arrays: a fifth of what lists take."""
    found = database.execute(f"SELECT pair_id, rows FROM {table} WHERE rows > 0")
    both = np.fromiter(found, np.dtype([("pair_id", np.int64), ("rows", np.int64)]))
    return both["pair_id"], both["rows"]


def parts(num_images: int, index: Index) -> list[Index]:
    """The connected parts of two or more images, largest first."""
    graph = coo_matrix((np.ones(len(index)), index.T), (num_images, num_images))
    count, labels = connected_components(graph, directed=False)
    order = np.argsort(labels, kind="stable")
    groups = np.split(order, np.flatnonzero(np.diff(labels[order])) + 1)
    found = [group for group in groups if len(group) > 1] if count else []
    return sorted(found, key=len, reverse=True)


def strongest_edges(index: Index, weights: Index, per_image: int) -> Mask:
    """Which edges are among the `per_image` strongest of one of their two images."""
    keep = np.zeros(len(index), bool)
    ends = np.concatenate([index[:, 0], index[:, 1]])
    edge = np.tile(np.arange(len(index)), 2)
    order = np.lexsort((edge, -weights[edge], ends))
    ends, edge = ends[order], edge[order]
    first = np.searchsorted(ends, ends)  # where each image's run begins
    keep[edge[np.arange(len(ends)) - first < per_image]] = True
    return keep


def thin_cuts(
    num_images: int, index: Index, weights: Index, *, max_cuts: int, min_side: int
) -> list[Cut]:
    """The thinnest of the cuts at the edges of the maximum spanning tree.

    No pair across such a cut is stronger than its tree edge, so wherever a capture is
    weakly held together, one of these cuts runs. Images that are not connected to the
    largest part are passed over; no edges, no cuts.

    Args:
        num_images: Images; those without an edge may be among them.
        index: Edges [E, 2], each pair of images once, the lower row first.
        weights: Their matches [E], 1 or more.
        max_cuts: The most cuts to return, fewest matches first.
        min_side: The thinnest cut with so many images on both sides is always added.
    """
    if not len(index):
        return []
    shape = (num_images, num_images)
    # an order of the edges is all that a spanning tree needs: 1 / matches turns it
    tree = minimum_spanning_tree(coo_matrix((1 / weights, index.T), shape).tocsr())
    root = int(parts(num_images, index)[0][0])
    order, parent = breadth_first_order(tree, root, directed=False)
    depth = np.full(num_images, -1)
    depth[root] = 0
    for node in order[1:]:
        depth[node] = depth[parent[node]] + 1
    inside = depth[index[:, 0]] >= 0
    index, weights = index[inside], weights[inside]
    # below a node: all ends of edges, less both ends of those that stay below it
    sums = np.zeros((num_images, 3), np.int64)  # images, pairs, matches
    sums[order, 0] = 1
    amounts = np.column_stack([np.ones_like(weights), weights])
    for end in index.T:
        np.add.at(sums[:, 1:], end, amounts)
    np.subtract.at(sums[:, 1:], _common_ancestors(index, parent, depth), 2 * amounts)
    for node in order[:0:-1]:
        sums[parent[node]] += sums[node]
    nodes = order[1:]
    nodes = nodes[np.lexsort((nodes, sums[nodes, 2]))]
    side = np.minimum(sums[nodes, 0], len(order) - sums[nodes, 0])
    chosen = [*nodes[:max_cuts], *nodes[side >= min_side][:1]]
    strength = dict(zip(map(tuple, index.tolist()), weights.tolist(), strict=True))
    return [_cut(node, order, parent, strength, sums) for node in dict.fromkeys(chosen)]


def _common_ancestors(index: Index, parent: Index, depth: Index) -> Index:
    """For each edge, the deepest node of the tree that has both ends below it."""
    low, high = index[:, 0].copy(), index[:, 1].copy()
    while (apart := low != high).any():
        climb_low = apart & (depth[low] >= depth[high])
        climb_high = apart & ~climb_low
        low[climb_low] = parent[low[climb_low]]
        high[climb_high] = parent[high[climb_high]]
    return low


def _cut(
    node: int,
    order: Index,
    parent: Index,
    strength: dict[tuple[int, ...], int],
    sums: Index,
) -> Cut:
    """The cut between a node of the tree and its parent."""
    below = np.zeros(len(parent), bool)
    below[node] = True
    for other in order[1:]:
        below[other] |= below[parent[other]]
    members = np.flatnonzero(below)
    if 2 * len(members) > len(order):
        members = np.sort(order[~below[order]])
    first, second = sorted((int(node), int(parent[node])))
    return Cut(
        strongest=(first, second),
        num_inliers=strength[first, second],
        num_pairs=int(sums[node, 1]),
        num_matches=int(sums[node, 2]),
        smaller=members,
    )
