"""Points followed through films by optical flow, as features and matches.

    corners -> flow to the next frame, and back -> points that return to where they were

A point that is followed through several frames is one keypoint in each of them, and all
its keypoints match. It ends at the edge of the picture, behind what covers it, under a
mask, where the way back does not lead back, and where what is around it is not what it
was; then corners are looked for anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from scipy.spatial import KDTree

from sfmprep.capture.batches import load_batches
from sfmprep.capture.image_set import ImageSet
from sfmprep.capture.masks import read_mask
from sfmprep.config import TracksConfig
from sfmprep.coords import Placed, colmap_from_centre, upright_pixels
from sfmprep.models.protocols import ConfidentFlowEstimator, FlowEstimator
from sfmprep.progress import Progress, silent
from sfmprep.stores.tables import FeatureStore, MatchStore
from sfmprep.types import (
    Bytes,
    Features,
    Float32,
    ImageBatch,
    Index,
    Mask,
    Matches,
    Pair,
)

_CHECK_PX, _CHECK_SHARE = 0.7, 0.02  # forward and backward flow agree so well
_MIN_CONSISTENT = 0.2  # share of points; below it two frames show different things
_MIN_TEXTURE = 2.0  # standard deviation of grey levels around a point
_AROUND = 9  # pixels, for that
_MIN_LIKENESS = 0.8  # correlation of as many pixels in both frames
_CORNER_QUALITY = 0.005  # of the best corner's smaller eigenvalue
_SPACING = 8  # pixels between a new point and others
_MIN_SPACING = 2.0  # pixels; of two points that came so near one has been dragged along
_MIN_SHARED = 15  # points, for a pair to be matched


Judge = Callable[[Index, Float32, Float32, Float32], Mask]
"""Tells which points fit: numbers [N], where they were and are, [N, 2] each, and how
sure the flow of each is [N], 0..1."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Followed:
    """The points of one frame that are also seen in the one before or after."""

    name: str
    track: Index  # [N] numbers, ascending; a point has the same in every frame
    features: Features  # scores: how sure, and falling with how the way back misses


def follow_points(
    images: ImageSet,
    names: Sequence[str],
    estimator: FlowEstimator,
    config: TracksConfig,
    *,
    first_track: int = 0,
    judge: Judge | None = None,
    progress: Progress = silent,
) -> Iterator[Followed]:
    """Follows points through the frames of a film, in this order.

    Two frames are in memory at a time. Nothing is followed across a cut, or from one
    size of frames to another.

    Args:
        images: The capture; what its masks leave out is not followed.
        names: Of the frames; one that cannot be decoded is left out.
        estimator: Of optical flow.
        config: The other settings.
        first_track: The number of the first point.
        judge: Asked of every frame but the first, in turn; points that do not fit are
            followed no further. None to keep all.
        progress: Wraps the loop over frames.

    Yields:
        Each frame that was decoded; one that goes with none has no points.
    """
    last: _Picture | None = None
    points, number = _Points.none(), first_track
    loaded = load_batches(images, names, max_size=config.max_size)
    for (name,), batch in progress(loaded, desc="follow", total=len(names)):
        picture = _Picture(images, name, batch, estimator)
        carried = _Points.none()
        if last is not None:
            if last.size == picture.size:
                carried = _carried(points, last, picture, estimator)
            if judge is not None:
                start = points.xy[np.searchsorted(points.track, carried.track)]
                places = last.stored(start), picture.stored(carried.xy)
                carried = carried.take(judge(carried.track, *places, carried.sure))
            yield last.followed(points.take(points.seen_with(carried)))
        points = _with_corners(carried, picture, config.max_points, number)
        number = max(number, int(points.track.max(initial=-1)) + 1)
        last = picture
    if last is not None:
        yield last.followed(points.take(points.is_old))


def write_tracks(
    images: ImageSet,
    films: Iterable[Sequence[str]],
    pairs: Iterable[Pair],
    estimator: FlowEstimator,
    config: TracksConfig,
    features: FeatureStore,
    matches: MatchStore,
    *,
    new_judge: Callable[[Sequence[str]], Judge] | None = None,
    progress: Progress = silent,
) -> None:
    """Writes the points of all frames of films, and the matches of pairs among them.

    Args:
        images: The capture.
        films: Names of the frames of each, in the order of time.
        pairs: Which images may be matched; those that share few points are not.
        estimator: See `follow_points`, like `config`.
        config: See `follow_points`.
        features: Gets the points of each frame, without descriptors.
        matches: Gets the matches of each pair with 15 or more; their scores are those
            of the worse end.
        new_judge: Makes the judge of a film, see `follow_points`; None for none.
        progress: Wraps the loops over frames.
    """
    partners: dict[str, list[str]] = {}
    for pair in pairs:
        for name, other in (pair, pair[::-1]):
            partners.setdefault(name, []).append(other)
    number = 0
    for film in films:
        open_: dict[str, Followed] = {}  # frames whose points go on
        followed = follow_points(
            *(images, film, estimator, config),
            first_track=number,
            judge=None if new_judge is None else new_judge(film),
            progress=progress,
        )
        ahead = set(film)
        for frame in followed:
            ahead.discard(frame.name)
            features.append([(frame.name, frame.features)])
            found = []
            for other in partners.get(frame.name, ()):
                if other in open_:
                    # by name; of a film "9.jpg" may come before "10.jpg"
                    first, second = sorted(
                        (open_[other], frame), key=lambda each: each.name
                    )
                    shared = _shared(first, second)
                    if len(shared) >= _MIN_SHARED:
                        found.append(((first.name, second.name), shared))
            matches.append(found)
            open_ = {
                name: earlier
                for name, earlier in open_.items()
                if not ahead.isdisjoint(partners.get(name, ()))
                and np.isin(earlier.track, frame.track).any()
            }
            open_[frame.name] = frame
            number = max(number, int(frame.track.max(initial=-1)) + 1)


def _shared(first: Followed, second: Followed) -> Matches:
    """The points that both frames see."""
    _, row0, row1 = np.intersect1d(
        first.track, second.track, assume_unique=True, return_indices=True
    )
    scores = np.minimum(first.features.scores[row0], second.features.scores[row1])
    order = np.argsort(-scores, kind="stable")
    index = np.stack([row0, row1], axis=1)[order]
    return Matches(index=index.astype(np.int32), scores=scores[order])


# --------------------------------------------------------------------------- internals
@dataclass(frozen=True, kw_only=True, eq=False)
class _Points:
    """Points of the frame that was looked at last."""

    track: Index  # [N] ascending
    xy: Float32  # [N, 2] array places of the reduced frame
    miss: Float32  # [N] pixels by which the way back missed; 0 for new ones
    sure: Float32  # [N] 0..1, by the estimator; 1 where it tells nothing, and for new
    is_old: Mask  # [N] whether the frame before sees it too

    @staticmethod
    def none() -> _Points:
        return _Points(
            track=np.empty(0, np.int64),
            xy=np.empty((0, 2), np.float32),
            miss=np.empty(0, np.float32),
            sure=np.empty(0, np.float32),
            is_old=np.empty(0, np.bool_),
        )

    def __len__(self) -> int:
        return len(self.track)

    def take(self, rows: Mask) -> _Points:
        return _Points(
            track=self.track[rows],
            xy=self.xy[rows],
            miss=self.miss[rows],
            sure=self.sure[rows],
            is_old=self.is_old[rows],
        )

    def seen_with(self, after: _Points) -> Mask:
        """Whether the frame before or the one after sees a point too."""
        seen: Mask = self.is_old | np.isin(self.track, after.track)
        return seen


class _Picture:
    """One frame in small, as it is followed."""

    def __init__(
        self, images: ImageSet, name: str, batch: ImageBatch, estimator: FlowEstimator
    ) -> None:
        [self.prepared] = estimator.prepare(batch)
        self.name = name
        self.placed = Placed.of(batch, 0)
        self.size = batch.network_size
        grey = np.asarray(255 * batch.pixels[0].mean(axis=0), np.float32)
        self.grey: Bytes = np.rint(grey).astype(np.uint8)
        mean = cv2.blur(grey, (_AROUND, _AROUND))
        variance = cv2.blur(grey**2, (_AROUND, _AROUND)) - mean**2
        self.is_open: Mask = variance >= _MIN_TEXTURE**2
        if (mask := read_mask(images, name)) is not None:
            upright = upright_pixels(mask.astype(np.uint8), self.placed.orientation)
            small = cv2.resize(upright, self.size, interpolation=cv2.INTER_NEAREST)
            self.is_open &= small > 0

    def holds(self, xy: Float32) -> Mask:
        """Whether array places [N, 2] are in the picture, open and with texture."""
        inside = ((xy >= 0) & (xy <= np.subtract(self.size, 1))).all(axis=1)
        column, row = np.rint(np.clip(xy, 0, np.subtract(self.size, 1))).astype(int).T
        found: Mask = inside & self.is_open[row, column]
        return found

    def stored(self, xy: Float32) -> Float32:
        """Array places [N, 2] as COLMAP pixels of the file."""
        return self.placed.stored(colmap_from_centre(xy))

    def followed(self, points: _Points) -> Followed:
        features = Features(
            xy=self.stored(points.xy),
            scores=np.asarray(points.sure / (1 + points.miss), np.float32),
            descriptors=np.empty((len(points), 0), np.float16),
            image_size=self.placed.size,
            orientation=self.placed.orientation,
        )
        return Followed(name=self.name, track=points.track, features=features)


def _carried(
    points: _Points, before: _Picture, now: _Picture, estimator: FlowEstimator
) -> _Points:
    """The points that the flow leads to the next frame, and back."""
    if not len(points):
        return points
    pictures = before.prepared, now.prepared
    if isinstance(estimator, ConfidentFlowEstimator):
        (there, sureness), (back, _) = estimator.confident_flow(
            [pictures, pictures[::-1]]
        )
        sure = _at(sureness, points.xy)
    else:
        there, back = estimator.flow([pictures, pictures[::-1]])
        sure = np.ones(len(points), np.float32)
    shift = _at(there, points.xy)
    end: Float32 = points.xy + shift
    miss = np.linalg.norm(shift + _at(back, end), axis=1)
    good = miss < _CHECK_PX + _CHECK_SHARE * np.linalg.norm(shift, axis=1)
    good &= now.holds(end)
    if good.mean() < _MIN_CONSISTENT:  # a cut, or too large a step
        return _Points.none()
    # beside an edge the flow may drag along both ways what does not move with it
    good[good] = _likeness(before, now, points.xy[good], end[good]) > _MIN_LIKENESS
    carried = _Points(
        track=points.track,
        xy=end,
        miss=miss.astype(np.float32),
        sure=sure,
        is_old=np.ones(len(points), np.bool_),
    ).take(good)
    return carried.take(_apart(carried.xy))


def _likeness(before: _Picture, now: _Picture, start: Float32, end: Float32) -> Float32:
    """The correlation [N], -1..1, of what is around places [N, 2] of two frames."""
    reach = np.arange(_AROUND, dtype=np.float32) - _AROUND // 2
    around = np.stack(np.meshgrid(reach, reach), -1).reshape(-1, 2)

    def normalised(grey: Bytes, xy: Float32) -> Float32:
        places = xy[:, None] + around
        columns, rows = (np.ascontiguousarray(places[..., k]) for k in (0, 1))
        seen = np.asarray(
            cv2.remap(
                *(grey.astype(np.float32), columns, rows, cv2.INTER_LINEAR),
                borderMode=cv2.BORDER_REPLICATE,
            )
        )
        seen -= seen.mean(axis=1, keepdims=True)
        length = np.linalg.norm(seen, axis=1, keepdims=True)
        return np.asarray(seen / np.maximum(length, 1e-6), np.float32)

    first, second = normalised(before.grey, start), normalised(now.grey, end)
    return np.asarray((first * second).sum(axis=1), np.float32)


def _apart(xy: Float32) -> Mask:
    """Which points [N, 2] have no earlier one beside them."""
    near = KDTree(xy).query_pairs(_MIN_SPACING, output_type="ndarray")
    kept = np.ones(len(xy), np.bool_)
    kept[near.max(axis=1)] = False
    return kept


def _with_corners(
    points: _Points, picture: _Picture, most: int, first_track: int
) -> _Points:
    """The points, and corners where there are none."""
    missing = most - len(points)
    if missing <= 0:
        return points
    free = picture.is_open.astype(np.uint8)
    for x, y in np.rint(points.xy).astype(int).tolist():
        cv2.circle(free, (x, y), _SPACING, 0, -1)
    found = cv2.goodFeaturesToTrack(
        picture.grey, missing, _CORNER_QUALITY, _SPACING, mask=free
    )
    if found is None:
        return points
    xy = np.asarray(found, np.float32).reshape(-1, 2)
    count = len(xy)
    return _Points(
        track=np.concatenate((points.track, first_track + np.arange(count))),
        xy=np.concatenate((points.xy, xy)),
        miss=np.concatenate((points.miss, np.zeros(count, np.float32))),
        sure=np.concatenate((points.sure, np.ones(count, np.float32))),
        is_old=np.concatenate((points.is_old, np.zeros(count, np.bool_))),
    )


def _at(flow: Float32, xy: Float32) -> Float32:
    """A field [H, W, ...] at array places [N, 2], bilinear; beyond it its edge's."""
    columns, rows = (np.ascontiguousarray(each[:, None]) for each in xy.T)
    sampled = cv2.remap(
        flow, columns, rows, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE
    )
    return np.asarray(sampled, np.float32).reshape(len(xy), *flow.shape[2:])
