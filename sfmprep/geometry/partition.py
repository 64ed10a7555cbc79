"""A graph of views cut into parts of about one size, where it is held least.

Each connected part is cut along the vector of its second smallest eigenvalue (Fiedler,
Czechoslovak Mathematical Journal 23, 1973, of the normalised Laplacian as in Shi and
Malik, TPAMI 22, 2000), near the middle where fewest matches go across. So it goes on
until all are of the size that is wanted.
"""

from __future__ import annotations

import numpy as np
from scipy.sparse import coo_matrix, csr_matrix, diags, identity
from scipy.sparse.csgraph import connected_components
from scipy.sparse.linalg import eigsh

from sfmprep.types import Float64, Index, Mask

_SLACK = 0.1  # of the views of a part: how far from its place a cut may lie
_AS_THIN = 1.05  # of two cuts that are as thin as this, the more even one is taken
_MOST_NEIGHBOURS = 8  # of a part that lend it views: those that hold most to it
_DENSE = 64  # views up to which the eigenvectors are computed all
_SHIFT = 1e-4  # below the smallest eigenvalue, which is 0


def cut(num_views: int, index: Index, weights: Index, *, size: int) -> list[Index]:
    """Cuts a graph into parts that share no view.

    Args:
        num_views: How many there are.
        index: Edges [E, 2], each once.
        weights: What they count [E], 1 or more.
        size: How many views of a part are wanted, 2 or more; no part has more than half
            as many again.

    Returns:
        Rows of the views of each part, rising; largest part first. Views without an
        edge are in none.
    """
    first, second = index.T
    shape = (num_views, num_views)
    half = coo_matrix((weights.astype(np.float64), (first, second)), shape)
    graph = (half + half.T).tocsr()
    waiting = [np.flatnonzero(np.diff(graph.indptr))]
    found: list[Index] = []
    while waiting:
        rows = waiting.pop()
        inside = graph[rows][:, rows]
        count, label = connected_components(inside, directed=False)
        if count > 1:
            waiting += [rows[label == k] for k in range(count)]
        elif (pieces := round(len(rows) / size)) <= 1:
            found.append(rows)
        else:
            is_left = _cut_in_two(inside, (pieces // 2) / pieces)
            waiting += [rows[is_left], rows[~is_left]]
    return sorted((p for p in found if len(p)), key=lambda p: (-len(p), int(p[0])))


def widened(
    parts: list[Index], num_views: int, index: Index, weights: Index, *, overlap: int
) -> list[Index]:
    """Adds to each part the views of its neighbours that hold most to it.

    Args:
        parts: Of `cut`, of the same graph.
        num_views: As there.
        index: As there.
        weights: As there.
        overlap: How many views of each neighbour, if so many have an edge to the part.

    Returns:
        Rows of the views of each part, rising, in the order of `parts`.
    """
    owner = np.full(num_views, -1)
    for number, rows in enumerate(parts):
        owner[rows] = number
    ends = np.concatenate([index, index[:, ::-1]])  # each edge from either side
    both = np.tile(weights, 2)
    across = owner[ends[:, 0]] != owner[ends[:, 1]]
    ends, both = ends[across], both[across]
    # what each view of another part is held by, in all
    pull = coo_matrix(
        (both.astype(np.float64), (owner[ends[:, 0]], ends[:, 1])),
        (len(parts), num_views),
    ).tocsr()
    wide = []
    for number, rows in enumerate(parts):
        low, high = pull.indptr[number : number + 2]
        others, sums = pull.indices[low:high], pull.data[low:high]
        order = np.lexsort((others, -sums))
        others = others[order]
        held = np.bincount(owner[others], sums[order], minlength=len(parts))
        nearest = np.argsort(-held, kind="stable")[:_MOST_NEIGHBOURS]
        chosen = [
            others[owner[others] == other][:overlap]
            for other in nearest[held[nearest] > 0].tolist()
        ]
        wide.append(np.sort(np.concatenate([rows, *chosen])))
    return wide


def _cut_in_two(graph: csr_matrix, share: float) -> Mask:
    """The views on one side, about a share of them, of the best cut of a graph."""
    count = graph.shape[0]
    order = np.argsort(_fiedler(graph), kind="stable")
    ordered = graph[order][:, order].tocoo()
    # an edge between places a < b is cut by every cut behind a and not behind b
    upper = ordered.row < ordered.col
    steps = np.zeros(count + 1)
    np.add.at(steps, ordered.row[upper] + 1, ordered.data[upper])
    np.subtract.at(steps, ordered.col[upper] + 1, ordered.data[upper])
    across = np.cumsum(steps)  # of a cut in front of each place
    low = max(int(np.ceil((share - _SLACK) * count)), 1)
    high = min(int((share + _SLACK) * count), count - 1)
    places = np.arange(low, high + 1)
    thin = places[across[places] <= _AS_THIN * across[places].min()]
    behind = int(thin[np.argmin(np.abs(thin - share * count))])
    is_left = np.zeros(count, bool)
    is_left[order[:behind]] = True
    return is_left


def _fiedler(graph: csr_matrix) -> Float64:
    """The second eigenvector of the normalised Laplacian, as a value of each view."""
    count = graph.shape[0]
    scale = 1 / np.sqrt(np.asarray(graph.sum(axis=1)).ravel())
    laplacian = identity(count) - diags(scale) @ graph @ diags(scale)
    if count <= _DENSE:
        vectors = np.linalg.eigh(laplacian.toarray())[1]
    else:
        start = np.random.default_rng(0).standard_normal(count)
        vectors = eigsh(laplacian.tocsc(), 2, sigma=-_SHIFT, v0=start)[1]
    return np.asarray(vectors[:, 1] * scale, np.float64)
