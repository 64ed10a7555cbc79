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

from collections import defaultdict
from collections.abc import Iterable, Mapping, Set
from functools import lru_cache

import numpy as np
import pycolmap
from scipy.spatial import KDTree

from sfmprep.capture.batches import fit_size
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import drop_masked, read_mask
from sfmprep.config import DenseConfig
from sfmprep.frontend.match_order import order_for_cache
from sfmprep.geometry.epipolar import sampson_errors_px
from sfmprep.pairing.pairs import Pairs
from sfmprep.progress import Progress, batched, silent
from sfmprep.semidense.contradictions import PairLinks, cut_contradictions
from sfmprep.semidense.keypoints import (
    Endpoints,
    add_keypoints,
    nearest_in,
    read_endpoints,
)
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import DenseStore, FeatureStore, MatchStore
from sfmprep.types import Features, Float32, Float64, Index, Mask, Matches, Pair

_MAX_ERROR_PX = 3.0  # of the matcher's input, from the epipolar line
_MIN_INLIERS = 15
_MAX_SAMPLED = 1000
_NUM_TRIALS = 100, 10_000
_CACHED_TABLES = 256
_BLOCK_PAIRS = 256


def aggregate(
    images: ImageSet,
    features: FeatureStore | None,
    sparse: MatchReader | None,
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
    directed = chosen(dense.pairs(), tried)
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
    matched = chosen(sparse.pairs(), pairs) if sparse is not None else set()
    joined = _join_pairs(
        *(tables, scales, config.radius, sparse, matched, dense, directed),
        seed=seed,
        progress=progress,
    )
    keep = cut_contradictions(joined, tables, radii)
    for block in batched(zip(joined.items(), keep, strict=True), _BLOCK_PAIRS):
        new_matches.append([(pair, links.matches(k)) for (pair, links), k in block])


def chosen(there: Iterable[Pair], wanted: Pairs | None) -> set[Pair]:
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
def _join_pairs(
    tables: Mapping[str, Float32],
    scales: Mapping[str, float],
    radius: float,
    sparse: MatchReader | None,
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
    errors = sampson_errors_px(found["F"], points[:, 0], points[:, 1])
    inlier: Mask = errors <= max_error_px
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
