"""From matches of pairs to tracks of keypoints, where the poses are known.

A match is kept if both keypoints lie near each other's epipolar line. Chains of matches
are one track as long as they close: a chain that comes back to an image at another
keypoint is not consistent, and the matches that other matches support least are cut
until none does.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pycolmap
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from sfmprep.errors import StoreError
from sfmprep.geometry.epipolar import epipolar_errors_px
from sfmprep.geometry.views import ModelArrays, Observations, Views
from sfmprep.progress import Progress, silent
from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import FeatureStore
from sfmprep.types import Array, Float32, Float64, Index, Int32, Mask, Matches, Pair

logger = logging.getLogger(__name__)

_BLOCK_MATCHES = 1 << 18
_CUT_SHARE = 4  # of a track that contradicts itself, one match in so many at a time
_MAX_MOVED_PX = 0.01
_NUM_COMPARED = 15  # keypoints of an image, to tell whether the model has the same


@dataclass(frozen=True, kw_only=True, eq=False)
class Keypoints:
    """The keypoints of all views, one view behind the other."""

    offsets: Index  # [V + 1] the first keypoint of every view
    xy: Float32  # [K, 2] COLMAP pixels
    ray: Float32  # [K, 3] unit, world axes; NaN where a camera sees nothing

    def __len__(self) -> int:
        return len(self.xy)

    def view(self, keypoint: Index) -> Index:
        """The rows of the views that have these keypoints."""
        return np.searchsorted(self.offsets, keypoint, side="right") - 1

    def observations(self, keypoint: Index, point: Index) -> Observations:
        """These keypoints as observations of these points, in the order given."""
        view = self.view(keypoint)
        return Observations(
            point=point,
            view=view,
            keypoint=keypoint - self.offsets[view],
            xy=self.xy[keypoint].astype(np.float64),
            ray=self.ray[keypoint].astype(np.float64),
        )

    @staticmethod
    def read(
        model: pycolmap.Reconstruction, arrays: ModelArrays, features: FeatureStore
    ) -> Keypoints:
        """Reads the keypoints of all views, without their descriptors.

        Args:
            model: Its images' keypoints are compared with those of the store.
            arrays: Of this model.
            features: What it was made from.

        Raises:
            StoreError: The model has other keypoints than the store.
        """
        views, observations = arrays.views, arrays.observations
        rows = {name: row for row, name in enumerate(views.names)}
        xys: list[Float32] = [np.empty((0, 2), np.float32)] * len(views)
        for name, found in features.keypoints():
            if name in rows:
                xys[rows[name]] = found.xy
        for row, own in enumerate(observations.by_view(len(views))):
            image = model.images[int(views.ids[row])]
            seen = observations.keypoint[own]
            _expect_same(image, xys[row], seen, features)
            # refinement moves keypoints of tracks in the model alone
            xys[row] = xys[row].copy()
            xys[row][seen] = observations.xy[own]
        rays = [
            views.rays(row, xy.astype(np.float64)).astype(np.float32)
            for row, xy in enumerate(xys)
        ]
        counts = [len(xy) for xy in xys]
        return Keypoints(
            offsets=np.concatenate(([0], np.cumsum(counts, dtype=np.int64))),
            xy=np.concatenate([*xys, np.empty((0, 2), np.float32)]),
            ray=np.concatenate([*rays, np.empty((0, 3), np.float32)]),
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Links:
    """Matches that fit the poses."""

    ends: Int32  # [E, 2] keypoints, counted over all views
    scores: Float32  # [E] in 0..1

    def select(self, rows: Mask) -> Links:
        """Some of them."""
        return Links(ends=self.ends[rows], scores=self.scores[rows])


def _expect_same(
    image: pycolmap.Image, xy: Float32, seen: Index, features: FeatureStore
) -> None:
    """The model's keypoints are the store's; some of those without a point tell.

    Most of them: refinement may have moved one that lost its point afterwards.
    """
    count = image.num_points2D()
    same = count == len(xy)
    rest = np.setdiff1d(np.arange(count), seen)
    if same and len(rest):
        some = rest[np.linspace(0, len(rest) - 1, _NUM_COMPARED).astype(int)]
        places = np.array([image.points2D[row].xy for row in some.tolist()])
        moved = np.abs(places - xy[some]).max(axis=1)
        same = bool(np.median(moved) < _MAX_MOVED_PX)
    if not same:
        raise StoreError(
            f"{features.place} has {len(xy)} keypoints of {image.name!r}, the model has"
            f" {count}, and they are not the same. Use the features that the model was"
            " made from, or export with seed.level=sparse."
        )


# --------------------------------------------------------------- matches to links
def consistent_links(
    views: Views,
    keypoints: Keypoints,
    matches: MatchReader,
    *,
    max_error_px: float,
    scales: Float64 | None = None,
    progress: Progress = silent,
) -> Links:
    """The matches of all pairs of views that fit their epipolar geometry.

    Pairs that COLMAP did not verify count as well: with the poses known, the epipolar
    line of a pair with few matches is as good as any.

    Args:
        views: The poses.
        keypoints: Of all views.
        matches: Of pairs of images; those of images without a pose are passed over.
        max_error_px: The largest distance from the epipolar line in either image.
        scales: What `max_error_px` is multiplied by [V], of two views the larger; None
            for 1.
        progress: Wraps the loop over pairs.

    Raises:
        StoreError: Matches name keypoints that are not there.
    """
    rows = {name: row for row, name in enumerate(views.names)}
    factors = np.ones(len(views)) if scales is None else scales
    found: list[Links] = []
    for block in _blocks(matches, rows, progress):
        links, count = block
        ends = links.ends.astype(np.int64)
        view0 = np.repeat(count[:, 0], count[:, 2])
        view1 = np.repeat(count[:, 1], count[:, 2])
        limit = keypoints.offsets[1:] - keypoints.offsets[:-1]
        if (ends < 0).any() or (ends >= np.c_[limit[view0], limit[view1]]).any():
            raise StoreError(
                f"{matches.place} names keypoints that the features do not have; match"
                " again with these features"
            )
        ends = ends + np.c_[keypoints.offsets[view0], keypoints.offsets[view1]]
        rays = keypoints.ray[ends].astype(np.float64)
        errors = epipolar_errors_px(views, view0, view1, rays[:, 0], rays[:, 1])
        links = Links(ends=ends.astype(np.int32), scores=links.scores)
        limit_px = max_error_px * np.maximum(factors[view0], factors[view1])
        found.append(links.select(errors <= limit_px))
    return Links(
        ends=np.concatenate([np.empty((0, 2), np.int32), *(k.ends for k in found)]),
        scores=np.concatenate([np.empty(0, np.float32), *(k.scores for k in found)]),
    )


def _blocks(
    matches: MatchReader, rows: dict[str, int], progress: Progress
) -> Iterator[tuple[Links, Index]]:
    """Matches of many pairs at once, and [P, 3] of each pair: views, and how many."""
    items: list[Matches] = []
    counts: list[tuple[int, int, int]] = []
    size = 0

    def block() -> tuple[Links, Index]:
        ends = np.concatenate([item.index for item in items])
        scores = np.concatenate([item.scores for item in items])
        return Links(ends=ends, scores=scores), np.array(counts, np.int64)

    pairs: Iterator[tuple[Pair, Matches]] = matches.items()
    for (name0, name1), item in progress(pairs, desc="seed", total=len(matches)):
        if len(item) and name0 in rows and name1 in rows:
            items.append(item)
            counts.append((rows[name0], rows[name1], len(item)))
            size += len(item)
        if size >= _BLOCK_MATCHES:
            yield block()
            items, counts, size = [], [], 0
    if items:
        yield block()


# ---------------------------------------------------------------- links to tracks
def link_tracks(links: Links, keypoints: Keypoints) -> tuple[Index, Index]:
    """Joins linked keypoints to tracks with at most one keypoint of an image.

    Returns:
        Keypoints [M] and their tracks [M] = 0, 0, 1, 1, 1, ...; within a track sorted.
    """
    numbers, ends = np.unique(links.ends.astype(np.int64), return_inverse=True)
    ends = ends.reshape(-1, 2)
    nodes = Nodes(
        view=keypoints.view(numbers),
        place=np.arange(len(numbers))[:, None],  # no two keypoints of one image
        limit=np.zeros(len(keypoints.offsets) - 1),
    )
    kept = consistent(ends, links.scores, np.ones(len(ends), bool), nodes)
    track = components(ends[kept], len(numbers))
    long = np.bincount(track, minlength=1)[track] >= 2
    order = np.flatnonzero(long)[np.argsort(track[long], kind="stable")]
    _, number = np.unique(track[order], return_inverse=True)
    return numbers[order], number.astype(np.int64)


@dataclass(frozen=True, kw_only=True, eq=False)
class Nodes:
    """The keypoints that links join."""

    view: Index  # [K]
    place: Array  # [K, D] where they lie in their images
    limit: Float64  # [V] how far apart keypoints of one track may, along an axis


def consistent(ends: Index, scores: Float32, loose: Mask, nodes: Nodes) -> Mask:
    """Which links [E] stay, so that no track with a loose link contradicts itself.

    A track does where two of its keypoints lie in one image and further apart than its
    limit along an axis. Its weakest loose links go, a quarter of it at a time at most:
    those with the fewest third keypoints that are linked to both ends, then those of
    the lowest score.

    Args:
        ends: [E, 2] rows of `nodes`.
        scores: [E] in 0..1.
        loose: [E] which of them may be cut.
        nodes: The keypoints.
    """
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
            *(num_torn, len(ends), int((~kept).sum())),
        )
    return kept


def components(ends: Index, size: int) -> Index:
    """The track [N] of each of `size` keypoints that links [E, 2] join."""
    graph = coo_array((np.ones(len(ends), bool), ends.T), shape=(size, size))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def support(ends: Index, size: int) -> Float64:
    """How many third keypoints are linked to both ends of every link."""
    both = np.concatenate((ends, ends[:, ::-1])).T
    graph = coo_array((np.ones(both.shape[1]), both), shape=(size, size)).tocsr()
    shared = graph[ends[:, 0]].multiply(graph[ends[:, 1]])
    return np.asarray(shared.sum(axis=1), np.float64).ravel()


def _torn(rows: Index, ends: Index, nodes: Nodes) -> tuple[Index, Index]:
    """Those of these links whose tracks contradict themselves, and the tracks."""
    used, inner = np.unique(ends[rows], return_inverse=True)
    inner = inner.reshape(-1, 2)
    track = components(inner, len(used))
    found = _contradicting(track, nodes.view[used], nodes.place[used], nodes.limit)
    track = track[inner[:, 0]]
    return rows[found[track]], track[found[track]]


def _contradicting(track: Index, view: Index, place: Array, limit: Float64) -> Mask:
    """Which tracks [T] have keypoints of one image further apart than its limit."""
    found = np.zeros(int(track.max(initial=-1)) + 1, bool)
    if not len(track):
        return found
    order = np.lexsort((view, track))
    new = (np.diff(track[order]) != 0) | (np.diff(view[order]) != 0)
    starts = np.concatenate(([0], np.flatnonzero(new) + 1))
    low = np.minimum.reduceat(place[order], starts)
    high = np.maximum.reduceat(place[order], starts)
    wide = (high - low).max(axis=1) > limit[view[order[starts]]]
    found[track[order[starts[wide]]]] = True
    return found


def _without_weakest(track: Index, strength: Float64) -> Mask:
    """False for the weakest links of every track, at least for one.

    At most for a quarter, and only for those with as little support as the weakest.
    """
    order = np.lexsort((strength, track))
    sizes = np.bincount(track)[track[order]]
    first = np.searchsorted(track[order], track[order])
    later = np.arange(len(track)) - first >= np.maximum(sizes // _CUT_SHARE, 1)
    supported = strength[order] >= np.floor(strength[order])[first] + 1
    kept = np.empty(len(track), bool)
    kept[order] = later | supported
    return kept
