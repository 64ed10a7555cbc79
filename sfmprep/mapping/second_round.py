"""Pairs that a model proposes: who should see the same, and was never matched."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Collection, Iterable, Iterator, Sequence

import numpy as np
import pycolmap
from scipy.sparse import csr_matrix
from scipy.spatial import cKDTree

from sfmprep.geometry.views import ModelArrays
from sfmprep.mapping.view_graph import PairTable
from sfmprep.pairing.pairs import in_turn, natural_order
from sfmprep.types import Float64, Index, Mask, Pair

# A view is compared with so many others that look at the same place from the same side,
# by so many of its points: linear in the number of images.
_CANDIDATES = 60
_SAMPLED = 200
_MAX_ANGLE_DEG = 60.0  # between two rays to a point, beyond which features differ
_MAX_SCALE = 2.5  # between the sizes at which two views see a point
_MIN_SHARE = 0.2  # of the points of a view that another must be able to see
_HELD_BY = 2  # other views, by which points of a view are located
_PARTNERS = 10  # strongest verified partners of an image that are asked


def propose_pairs(
    models: Sequence[pycolmap.Reconstruction],
    pairs: PairTable,
    tried: Collection[Pair],
    *,
    per_image: int = 10,
    max_pairs: int = 10_000,
) -> list[Pair]:
    """Chooses pairs that should match by what models say, and were not tried.

    Three kinds, in this order:

    - images that are not in the largest model, with those of its views that see most
      of what their verified partners see; partners by matches alone where there is no
      verified one;
    - between two models without any verified pair, the views that see most points;
    - two views of a model that are able to see the same points: inside both images, at
      similar scale, 60 degrees apart or less. What hides a point is not known.

    Args:
        models: Largest first; without any, nothing is proposed.
        pairs: Matches and inliers of the images; those of models that are not among
            its names are passed over.
        tried: Pairs that were matched already, lower name first.
        per_image: How many new pairs an image may ask for; others may ask for it too.
        max_pairs: The most pairs altogether, the best of each kind first.

    Returns:
        The most wanted of each kind first, lower names first; none of them in `tried`.
    """
    if not models:
        return []
    arrays = [ModelArrays.of(model) for model in models]
    done = set(tried)
    chosen: dict[Pair, None] = {}

    def wishes(name: str, others: Iterator[str]) -> list[Pair]:
        """The first pairs of an image that were not tried."""
        pairs = ((name, o) if name < o else (o, name) for o in others if o != name)
        new = (pair for pair in pairs if pair not in done)
        return list(itertools.islice(new, per_image))

    def ask(wanted: Iterable[Sequence[Pair]]) -> None:
        for pair in in_turn(wanted):
            if len(chosen) < max_pairs:
                chosen.setdefault(pair)

    table = _Partners(pairs)
    largest = _Shared(arrays[0])
    inside = set(arrays[0].views.names)
    ask(
        wishes(name, largest.with_most_of(table.of(name, inside)))
        for name in pairs.names
        if name not in inside
    )
    for first, second in itertools.combinations(arrays, 2):
        if not table.join(first.views.names, second.views.names):
            best = [_busiest(model, per_image) for model in (first, second)]
            ask(wishes(name, iter(best[1])) for name in best[0])
    # turn by turn, so that a limit takes no more from the last images than the first
    turns = [
        (share, name, other)
        for model in arrays
        for name, other, share in _covisible(model, done, per_image)
    ]
    for _, name, other in sorted(turns, key=lambda turn: (-turn[0], turn[1:])):
        ask([wishes(name, iter((other,)))])
    return list(chosen)


def pairs_of_lost(
    models: Sequence[pycolmap.Reconstruction],
    pairs: PairTable,
    *,
    per_image: int = 10,
    max_pairs: int = 1000,
    excluded: Collection[Pair] = (),
) -> list[Pair]:
    """Chooses the pairs of a closer look at images that no model holds.

    Each such image is paired with views of the model that its verified partners are in,
    the largest where it has none: with the strongest partners, those that see most of
    what these see, then with its neighbours in the natural order of names. Pairs among
    the views themselves come too, for each the two strongest with views before it: a
    new keypoint needs points of its own kind to be located by.

    Args:
        models: Largest first; without any, nothing is chosen.
        pairs: Matches and inliers of the images.
        per_image: With how many views one image is paired.
        max_pairs: The most pairs altogether.
        excluded: Pairs that are never chosen, lower name first.

    Returns:
        Image by image, those first whose partners see most; lower names first. Pairs
        that were matched already are among them.
    """
    inside = [{m.images[key].name for key in m.reg_image_ids()} for m in models]
    lost = [name for name in pairs.names if not any(name in own for own in inside)]
    if not models or not lost:
        return []
    never, shared = set(excluded), dict[int, _Shared]()
    table, order = _Partners(pairs), natural_order(pairs.names)
    position = {name: k for k, name in enumerate(order)}
    promising: list[tuple[int, str, list[Pair]]] = []
    for name in lost:
        weights = [sum(w for _, w in table.verified(name, names)) for names in inside]
        best = max(range(len(models)), key=lambda k: weights[k])
        if best not in shared:
            shared[best] = _Shared(ModelArrays.of(models[best]))
        there = {o for o in inside[best] if (min(name, o), max(name, o)) not in never}
        near = heapq.nsmallest(
            per_image, there, key=lambda o: (abs(position[o] - position[name]), o)
        )
        seeing = shared[best].with_most_of(table.of(name, there))
        partners = [o for o, _ in table.verified(name, there)][: per_image // 2]
        every = dict.fromkeys((*partners, *seeing, *near))
        views = [view for view in every if view in there][:per_image]
        own: list[Pair] = []
        for k, view in enumerate(views):
            strongest = table.verified(view, set(views[:k]))[:_HELD_BY]
            own += [(name, view), *((view, other) for other, _ in strongest)]
        promising.append((-weights[best], name, own))
    chosen = [(min(pair), max(pair)) for *_, own in sorted(promising) for pair in own]
    return list(dict.fromkeys(chosen))[:max_pairs]


class _Partners:
    """Who matches whom, strongest first."""

    def __init__(self, pairs: PairTable) -> None:
        self._edges: dict[str, list[tuple[int, int, str]]] = {}
        columns = (pairs.index, pairs.num_inliers, pairs.num_matches)
        for (row0, row1), inliers, matches in zip(
            *(column.tolist() for column in columns), strict=True
        ):
            name0, name1 = pairs.names[row0], pairs.names[row1]
            self._edges.setdefault(name0, []).append((inliers, matches, name1))
            self._edges.setdefault(name1, []).append((inliers, matches, name0))
        for edges in self._edges.values():
            edges.sort(reverse=True)

    def of(self, name: str, inside: Collection[str]) -> list[tuple[str, int]]:
        """The strongest partners among some images, with their weights."""
        edges = [e for e in self._edges.get(name, ()) if e[2] in inside][:_PARTNERS]
        verified = [(other, inliers) for inliers, _, other in edges if inliers]
        return verified or [(other, matches) for _, matches, other in edges]

    def verified(self, name: str, inside: Collection[str]) -> list[tuple[str, int]]:
        """The strongest verified partners among some images, with their inliers."""
        edges = (e for e in self._edges.get(name, ()) if e[0] and e[2] in inside)
        return [
            (other, count) for count, _, other in itertools.islice(edges, _PARTNERS)
        ]

    def join(self, first: Collection[str], second: Collection[str]) -> bool:
        """Whether a verified pair joins two sets of images."""
        small, large = sorted((first, second), key=len)
        into = set(large)
        return any(
            inliers and other in into
            for name in small
            for inliers, _, other in self._edges.get(name, ())
        )


class _Shared:
    """Which views see how much of what others see."""

    def __init__(self, arrays: ModelArrays) -> None:
        found = arrays.observations
        self._names = arrays.views.names
        self._row_of = {name: row for row, name in enumerate(self._names)}
        ones = np.ones(len(found), np.float64)
        shape = (len(self._names), len(arrays.xyz))
        self._sees = csr_matrix((ones, (found.view, found.point)), shape)
        self._sees.data[:] = 1  # also where a view sees a point twice
        self._seen_by = self._sees.T.tocsr()

    def with_most_of(self, partners: list[tuple[str, int]]) -> Iterator[str]:
        """Views by how much they see of what some others see, most first."""
        scores = csr_matrix((1, len(self._names)), dtype=np.float64)
        for name, weight in partners:
            own = self._sees[self._row_of[name]]
            scores = scores + own @ self._seen_by * (weight / max(own.nnz, 1))
        order = np.lexsort((scores.indices, -scores.data))
        for row in scores.indices[order].tolist():
            yield self._names[row]


def _busiest(arrays: ModelArrays, limit: int) -> list[str]:
    """The views that see most points."""
    counts = np.bincount(arrays.observations.view, minlength=len(arrays.views))
    order = np.argsort(-counts, kind="stable")[:limit]
    return [arrays.views.names[row] for row in order.tolist()]


def _covisible(
    arrays: ModelArrays, done: Collection[Pair], per_image: int
) -> Iterator[tuple[str, str, float]]:
    """For each view, others that can see its points, and which share of them."""
    views, seen = arrays.views, arrays.observations
    points = [seen.point[rows] for rows in seen.by_view(len(views))]
    rows = np.array([k for k, own in enumerate(points) if len(own)], np.int64)
    if len(rows) < 2:
        return
    sampled = {k: _sample(points[k]) for k in rows.tolist()}
    places = np.array([np.median(arrays.xyz[sampled[k]], axis=0) for k in rows])
    ahead = places - views.centres[rows]
    depths = np.maximum(np.linalg.norm(ahead, axis=1), 1e-12)
    # Places in units of the depth from which they are seen, beside unit directions.
    where = np.hstack([places / np.median(depths), ahead / depths[:, None]])
    count = min(_CANDIDATES + 1, len(rows))
    _, near = cKDTree(where).query(where, k=count)
    known: dict[tuple[int, int], float] = {}
    for k, others in zip(rows.tolist(), rows[near], strict=True):
        shares = []
        for other in others.tolist():
            low, high = min(k, other), max(k, other)
            pair = sorted((views.names[low], views.names[high]))
            if low == high or (pair[0], pair[1]) in done:
                continue
            if (low, high) not in known:
                known[low, high] = min(
                    _share_visible(arrays, sampled[low], low, high),
                    _share_visible(arrays, sampled[high], high, low),
                )
            if known[low, high] >= _MIN_SHARE:
                shares.append((known[low, high], views.names[other]))
        shares.sort(key=lambda found: (-found[0], found[1]))
        for share, name in shares[:per_image]:
            yield views.names[k], name, share


def _sample(points: Index) -> Index:
    """Some of the points, evenly spread over their ids."""
    steps = np.linspace(0, len(points) - 1, min(len(points), _SAMPLED))
    return points[steps.astype(np.int64)]


def _share_visible(arrays: ModelArrays, points: Index, view: int, other: int) -> float:
    """Which share of the points of a view another view is able to see."""
    views, xyz = arrays.views, arrays.xyz[points]
    rays = [xyz - views.centres[k] for k in (view, other)]
    lengths = [np.maximum(np.linalg.norm(ray, axis=1), 1e-12) for ray in rays]
    cosines = np.einsum("ni,ni->n", *rays) / (lengths[0] * lengths[1])
    sizes = views.focals[view] / lengths[0], views.focals[other] / lengths[1]
    scale = np.abs(np.log(sizes[0] / sizes[1]))
    visible = _inside(arrays, other, rays[1])
    visible &= cosines > np.cos(np.radians(_MAX_ANGLE_DEG))
    visible &= scale < np.log(_MAX_SCALE)
    return float(visible.mean())


def _inside(arrays: ModelArrays, view: int, rays: Float64) -> Mask:
    """Which rays [N, 3] from the centre of a view, world axes, meet its image."""
    camera = arrays.views.cameras[view]
    local = rays @ arrays.views.rotations[view].T
    ahead = local[:, 2] > 0
    local[~ahead] = (0, 0, 1)
    xy = np.asarray(camera.img_from_cam(local), np.float64)
    size = np.array([camera.width, camera.height])
    # NaN, where a lens shows nothing, is in no image
    inside: Mask = ahead & ((xy >= 0) & (xy <= size)).all(axis=1)
    return inside
