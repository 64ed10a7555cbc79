"""From semi-dense matches of pairs to keypoints and matches that form tracks.

A match of a semi-dense matcher starts at a keypoint that its first image always has and
ends anywhere in its second, at another place for every partner. With one keypoint an
endpoint no track is longer than a star around one image, and most are pairs. So the
points of an image are named first:

1. the detector's keypoints keep their rows, so that matches of the features stay valid;
2. a match's start is a keypoint of its own, unless a detector's is within the radius;
3. an end within the radius of a keypoint is that keypoint;
4. the ends that are left are gathered in bins as wide as the radius. The best bins,
   none within the radius of a better one, become keypoints at the mean of the ends
   around them, weighted by confidence.

Then each pair is verified on the places that were measured, which are more exact than
the keypoints they got the names of; both directions and the matches of the features
become one list, one-to-one. At last the tracks that contradict themselves are cut:
where a chain of matches comes back to an image further away than the radius, the
semi-dense matches that others support least are taken out until none does.

Quantising ends is what hloc does for LoFTR (Sarlin et al., CVPR 2019); starts as fixed
keypoints are the idea of S2LD. What each step brings, `tests/bench/tracks.py` measures.
"""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pycolmap
from numpy.typing import NDArray
from scipy.spatial import KDTree

from sfmprep.capture.image_set import ImageSet, fit_size
from sfmprep.capture.masks import drop_masked, read_mask
from sfmprep.config import DenseConfig
from sfmprep.coords import Float64
from sfmprep.frontend.match_order import order_for_cache
from sfmprep.geometry.tracks import components, support, without_weakest
from sfmprep.geometry.triangulate import Index, Mask
from sfmprep.pairing.pairs import Pair, Pairs
from sfmprep.progress import Progress, batched, silent
from sfmprep.semidense.keypoints import (
    Endpoints,
    add_keypoints,
    nearest_in,
    read_endpoints,
)
from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore
from sfmprep.types import Features, Float32, Matches

logger = logging.getLogger(__name__)

_MAX_ERROR_PX = 3.0  # of the matcher's input, from the epipolar line
_MIN_INLIERS = 15
_MAX_SAMPLED = 1000
_NUM_TRIALS = 100, 10_000
_CACHED_TABLES = 256
_BLOCK_PAIRS = 256


def aggregate(
    images: ImageSet,
    features: FeatureStore | None,
    sparse: MatchStore | None,
    dense: DenseStore,
    config: DenseConfig,
    *,
    new_features: FeatureStore,
    new_matches: MatchStore,
    pairs: Pairs | None = None,
    tried: Pairs | None = None,
    seed: int = 0,
    progress: Progress = silent,
) -> None:
    """Joins features, their matches and semi-dense matches to keypoints and matches.

    The first keypoints of an image in `new_features` are those of `features`, in their
    order; then come those that were added, best first. Descriptors are left out (zero
    columns), scale and angle too, since what is added has none. The same stores give
    the same result.

    Images are read one by one and pairs one by one; what is held of the whole capture
    are 20 bytes a keypoint and some 60 a match, and another 100 a match of tracks that
    contradict themselves.

    Args:
        images: The capture.
        features: The detector's keypoints; an image that is not here is left out. None
            for semi-dense matches alone.
        sparse: Matches of `features`, all of which are kept; None without features.
        dense: Both directions of pairs; may be empty.
        config: The radius, and how many keypoints may be added.
        new_features: Where keypoints go; it must not hold any of these images.
        new_matches: Where matches go; it must not hold any of these pairs.
        pairs: Those whose matches in `sparse` count; None: all that it holds.
        tried: Those whose matches in `dense` count, name0 < name1; None: all.
        seed: Of RANSAC.
        progress: Wraps the loops over images and over pairs.

    Raises:
        StoreError: a store that is written to holds something of this capture already.
        ImageError: a mask cannot be used, and there are no features to tell that the
            image is left out.
    """
    scales = network_scales(images, config)
    radii = {name: config.radius * scale for name, scale in scales.items()}
    partners: defaultdict[str, list[Pair]] = defaultdict(list)
    directed = _chosen(dense.pairs(), tried)
    for pair in sorted(directed):
        for name in pair:
            partners[name].append(pair)
    names = [
        name
        for name in images.names
        if (name in partners if features is None else name in features)
    ]
    for name in progress(names, desc="keypoints", total=len(names)):
        found = read_endpoints(name, partners[name], dense)
        old = features.get(name) if features is not None else None
        new_features.append(
            [(name, _merged(images, name, found, old, radii[name], config))]
        )
    tables = {name: k.xy for name, k in new_features.keypoints() if name in radii}
    matched = _chosen(sparse.pairs(), pairs) if sparse is not None else set()
    joined = _join_pairs(
        *(tables, scales, config.radius, sparse, matched, dense, directed),
        seed=seed,
        progress=progress,
    )
    keep = cut_contradictions(joined, tables, radii)
    for block in batched(zip(joined.items(), keep, strict=True), _BLOCK_PAIRS):
        new_matches.append([(pair, links.matches(k)) for (pair, links), k in block])


def _chosen(there: Iterable[Pair], wanted: Pairs | None) -> set[Pair]:
    """The pairs of a store that are wanted, in either order of their names."""
    if wanted is None:
        return set(there)
    both = {*wanted, *((second, first) for first, second in wanted)}
    return {pair for pair in there if pair in both}


def network_scales(images: ImageSet, config: DenseConfig) -> dict[str, float]:
    """How many pixels of its file a pixel of the matcher's input is, of every image."""
    scales = {}
    for name in images.names:
        size = images.infos[name].size
        scales[name] = max(size) / max(fit_size(size, config.matcher.max_size))
    return scales


def _merged(
    images: ImageSet,
    name: str,
    found: Endpoints,
    old: Features | None,
    radius: float,
    config: DenseConfig,
) -> Features:
    """The keypoints of an image: those it had, then those that are added."""
    had = old.xy if old is not None else np.empty((0, 2), np.float32)
    scores = old.scores if old is not None else np.empty(0, np.float32)
    if len(found.starts) + len(found.ends):
        found = _unmasked(images, name, found)
    xy, weights = add_keypoints(
        had, found, radius=radius, max_added=config.max_keypoints
    )
    return _features(
        images,
        name,
        np.concatenate((had, xy)),
        np.concatenate((scores.astype(np.float32), weights)),
    )


def _unmasked(images: ImageSet, name: str, found: Endpoints) -> Endpoints:
    """Leaves out the endpoints on masked pixels."""
    mask = read_mask(images, name)
    if mask is None:
        return found
    starts, ends = (
        drop_masked(_features(images, name, xy, scores.astype(np.float32)), mask)
        for xy, scores in (
            (found.starts, found.start_scores),
            (found.ends, found.end_scores),
        )
    )
    return Endpoints(
        starts=starts.xy,
        start_scores=starts.scores.astype(np.float64),
        ends=ends.xy,
        end_scores=ends.scores.astype(np.float64),
    )


def _features(images: ImageSet, name: str, xy: Float32, scores: Float32) -> Features:
    """Keypoints without descriptors."""
    info = images.infos[name]
    return Features(
        xy=xy,
        scores=scores,
        descriptors=np.empty((len(xy), 0), np.float16),
        image_size=info.size,
        orientation=info.orientation,
    )


# --------------------------------------------------------------------------- matches
@dataclass(frozen=True, kw_only=True, eq=False)
class PairLinks:
    """Matches of one pair, those of the features first."""

    index: NDArray[np.int32]  # [M, 2] keypoints of both images
    scores: Float32  # [M] in 0..1
    num_sparse: int  # the first ones, which are never cut

    def matches(self, kept: Mask) -> Matches:
        """Some of them."""
        return Matches(index=self.index[kept], scores=self.scores[kept])


def _join_pairs(
    tables: Mapping[str, Float32],
    scales: Mapping[str, float],
    radius: float,
    sparse: MatchStore | None,
    matched: Set[Pair],
    dense: DenseStore,
    directed: Set[Pair],
    *,
    seed: int,
    progress: Progress,
) -> dict[Pair, PairLinks]:
    """The verified matches of all pairs in terms of the new keypoints."""

    @lru_cache(_CACHED_TABLES)
    def tree(name: str) -> KDTree:
        return KDTree(tables[name])

    pairs = Pairs.of(pair for pair in directed | matched if tables.keys() >= {*pair})
    ordered = order_for_cache(pairs.items, _CACHED_TABLES)
    joined = {}
    for name0, name1 in progress(ordered, desc="join", total=len(ordered)):
        rows, xys, scores = [], [], []
        for names01, columns in (((name0, name1), (0, 1)), ((name1, name0), (1, 0))):
            if names01 not in directed:
                continue
            found = dense.get(*names01)
            ends = [
                nearest_in(tree(name), xy, radius * scales[name])
                for name, xy in zip(names01, (found.xy0, found.xy1), strict=True)
            ]
            rows.append(np.stack(ends, axis=1)[:, columns])
            xys.append(np.stack((found.xy0, found.xy1), axis=1)[:, columns])
            scores.append(found.scores)
        fixed = Matches.none()
        if sparse is not None and (name0, name1) in matched:
            fixed = sparse.get(name0, name1)
        joined[name0, name1] = join_pair(
            fixed,
            np.concatenate([np.empty((0, 2), np.int64), *rows]),
            np.concatenate([np.empty((0, 2, 2), np.float32), *xys]),
            np.concatenate([np.empty(0, np.float32), *scores]),
            tables[name0],
            tables[name1],
            max_error_px=_MAX_ERROR_PX * max(scales[name0], scales[name1]),
            seed=seed,
        )
    return joined


def join_pair(
    fixed: Matches,
    index: Index,
    xy: Float32,
    scores: Float32,
    keypoints0: Float32,
    keypoints1: Float32,
    *,
    max_error_px: float,
    seed: int = 0,
) -> PairLinks:
    """Adds the semi-dense matches of a pair to those of the features, one-to-one.

    A match that both directions found counts with `1 - (1 - s0) (1 - s1)`. Where
    matches compete for a keypoint, those of the features go first, then the best score.

    Args:
        fixed: The matches of the features.
        index: [M, 2] keypoints of both images, -1 for none.
        xy: [M, 2, 2] where both ends were measured.
        scores: [M] in 0..1.
        keypoints0: [K, 2] of the first image, for the places of `fixed`.
        keypoints1: Of the second.
        max_error_px: The largest distance from the epipolar line.
        seed: Of RANSAC.
    """
    places = np.stack(
        (keypoints0[fixed.index[:, 0]], keypoints1[fixed.index[:, 1]]), axis=1
    )
    inlier = _verified(np.concatenate((places, xy)), max_error_px, seed)[len(fixed) :]
    named = inlier & (index >= 0).all(axis=1)
    unique, row = np.unique(index[named], axis=0, return_inverse=True)
    doubt = np.ones(len(unique))
    np.multiply.at(doubt, row.ravel(), 1 - scores[named].astype(np.float64))
    taken = np.isin(unique[:, 0], fixed.index[:, 0]) | np.isin(
        unique[:, 1], fixed.index[:, 1]
    )
    unique, total = unique[~taken], (1 - doubt)[~taken]
    best = _one_to_one(unique, total)
    return PairLinks(
        index=np.concatenate((fixed.index, unique[best])).astype(np.int32),
        scores=np.concatenate((fixed.scores, total[best])).astype(np.float32),
        num_sparse=len(fixed),
    )


def _verified(xy: Float32, max_error_px: float, seed: int) -> Mask:
    """Which matches [M, 2, 2] fit one epipolar geometry; none where too few do."""
    nothing = np.zeros(len(xy), bool)
    if len(xy) < _MIN_INLIERS:
        return nothing
    options = pycolmap.RANSACOptions()
    options.max_error = max_error_px
    options.random_seed = seed
    options.min_num_trials, options.max_num_trials = _NUM_TRIALS
    points = xy.astype(np.float64)
    # a thousand tell the geometry as well as all, in a tenth of the time
    some = points[:: max(len(xy) // _MAX_SAMPLED, 1)]
    found = pycolmap.estimate_fundamental_matrix(some[:, 0], some[:, 1], options)
    if found is None:
        return nothing
    matrix, (one0, one1) = (
        found["F"],
        np.pad(points.transpose(1, 0, 2), ((0, 0), (0, 0), (0, 1)), constant_values=1),
    )
    line0, line1 = one1 @ matrix, one0 @ matrix.T
    across = np.abs(np.einsum("mi,mi->m", one0, line0))
    slope = np.linalg.norm(np.c_[line0[:, :2], line1[:, :2]], axis=1)
    inlier: Mask = across <= max_error_px * slope  # Sampson's distance
    return inlier if inlier.sum() >= _MIN_INLIERS else nothing


def _one_to_one(index: Index, scores: Float64) -> Index:
    """Rows such that each keypoint is matched once, greedily by falling score."""
    order = np.argsort(-scores, kind="stable")
    taken: list[Index] = []
    while len(order):
        first = np.ones(len(order), bool)
        for column in index[order].T:
            leads = np.zeros(len(order), bool)
            leads[np.unique(column, return_index=True)[1]] = True
            first &= leads
        chosen = order[first]
        taken.append(chosen)
        used = [np.isin(index[order, k], index[chosen, k]) for k in (0, 1)]
        order = order[~(used[0] | used[1])]
    rows = np.concatenate([np.empty(0, np.int64), *taken])
    return rows[np.argsort(-scores[rows], kind="stable")]


# ---------------------------------------------------------------------------- tracks
def cut_contradictions(
    joined: Mapping[Pair, PairLinks],
    tables: Mapping[str, Float32],
    radii: Mapping[str, float],
) -> list[Mask]:
    """Which matches of every pair stay, so that no track contradicts itself.

    A track does where two of its keypoints lie in one image and further apart than its
    radius along x or y. Its weakest semi-dense matches go, a quarter at a time at most:
    those with the fewest third keypoints that match both ends, then the lowest score.
    Contradictions of the features' matches alone stay.
    """
    offsets = dict(
        zip(tables, np.cumsum([0, *map(len, tables.values())]).tolist(), strict=False)
    )
    view = np.repeat(np.arange(len(tables)), [len(xy) for xy in tables.values()])
    xy = np.concatenate([np.empty((0, 2), np.float32), *tables.values()])
    limit = np.array([radii[name] for name in tables])
    nothing = np.empty((0, 2), np.int64)
    ends = np.concatenate(
        [
            nothing,
            *(
                links.index + np.array([offsets[name0], offsets[name1]])
                for (name0, name1), links in joined.items()
            ),
        ]
    )
    scores = np.concatenate(
        [np.empty(0, np.float32), *(k.scores for k in joined.values())]
    )
    loose = np.concatenate(
        [
            np.empty(0, bool),
            *(np.arange(len(k.index)) >= k.num_sparse for k in joined.values()),
        ]
    )
    kept = _consistent(ends, scores, loose, _Nodes(view=view, xy=xy, limit=limit))
    sizes = [len(links.index) for links in joined.values()]
    return np.split(kept, np.cumsum(sizes)[:-1]) if sizes else []


@dataclass(frozen=True, kw_only=True, eq=False)
class _Nodes:
    """The keypoints of all images."""

    view: Index  # [K]
    xy: Float32  # [K, 2]
    limit: Float64  # [V] how far apart keypoints of one track may lie


def _consistent(ends: Index, scores: Float32, loose: Mask, nodes: _Nodes) -> Mask:
    """Which links stay, so that no track with a loose link contradicts itself."""
    kept = np.ones(len(ends), bool)
    torn, track = _torn(np.arange(len(ends)), ends, nodes)
    num_torn = len(torn)
    strength = np.zeros(len(ends))
    numbers, inner = np.unique(ends[torn], return_inverse=True)
    strength[torn] = support(inner.reshape(-1, 2), len(numbers)) + 0.5 * scores[torn]
    while loose[torn].any():
        rows, of_rows = torn[loose[torn]], track[loose[torn]]
        kept[rows] = _without_weakest(of_rows, strength[rows])
        torn, track = _torn(torn[kept[torn]], ends, nodes)
    if num_torn:
        logger.info(
            "%d of %d matches were in tracks that contradict themselves; %d were cut",
            num_torn,
            len(ends),
            int((~kept).sum()),
        )
    return kept


def _torn(rows: Index, ends: Index, nodes: _Nodes) -> tuple[Index, Index]:
    """Those of these links whose tracks contradict themselves, and the tracks."""
    used, inner = np.unique(ends[rows], return_inverse=True)
    inner = inner.reshape(-1, 2)
    track = components(inner, len(used))
    found = _contradicting(track, nodes.view[used], nodes.xy[used], nodes.limit)
    track = track[inner[:, 0]]
    return rows[found[track]], track[found[track]]


def _without_weakest(track: Index, strength: Float64) -> Mask:
    """As `tracks.without_weakest`, but of those with as little support as the worst."""
    least = np.full(int(track.max()) + 1, np.inf)
    np.minimum.at(least, track, np.floor(strength))
    return without_weakest(track, strength) | (strength >= least[track] + 1)


def _contradicting(track: Index, view: Index, xy: Float32, limit: Float64) -> Mask:
    """Which tracks [T] have keypoints of one image further apart than its limit."""
    found = np.zeros(int(track.max(initial=-1)) + 1, bool)
    if not len(track):
        return found
    order = np.lexsort((view, track))
    new = (np.diff(track[order]) != 0) | (np.diff(view[order]) != 0)
    starts = np.concatenate(([0], np.flatnonzero(new) + 1))
    low = np.minimum.reduceat(xy[order], starts)
    high = np.maximum.reduceat(xy[order], starts)
    wide = (high - low).max(axis=1) > limit[view[order[starts]]]
    found[track[order[starts[wide]]]] = True
    return found
