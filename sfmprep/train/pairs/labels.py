"""What a matcher should do with keypoints: match, leave alone, or no verdict.

Owns the three verdicts for every keypoint of a pair. Positions here have pixel centres
at integers, as in `Views` and `PosedPair`.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial import cKDTree

from sfmprep.train.pairs.posed import PosedPair
from sfmprep.train.pairs.views import Views
from sfmprep.types import Float32, Float64, Index, Mask

_POSITIVE_PX, _NEGATIVE_PX = 3.0, 5.0  # distances of a match, and of none
_MAX_STEP_PX = 6.0  # between the places of neighbouring pixels of one surface


def label_keypoints(
    pair: Views | PosedPair,
    xy0: Float32,  # [N, 2]
    xy1: Float32,  # [M, 2]
) -> tuple[Index, Mask, Mask]:
    """Tells which keypoints match, which have no partner, and which stay undecided.

    Two keypoints match if each is the nearest to the other's place in its image and
    both distances are at most 3 pixels. A keypoint has no partner if it is known
    to be hidden or outside in the other image, or if no keypoint there is within 5
    pixels of its place; and none of the other image has its place as near as
    that to it. All others are undecided: a loss should pass over them. This is how
    LightGlue (Lindenberger et al., ICCV 2023) is supervised with depth and poses.

    Args:
        pair: Two views; of a `PosedPair` most keypoints stay undecided, since only
            those beside reconstructed points have a known depth.
        xy0: Keypoints of image 0, pixel centres at integers; N may be 0.
        xy1: Keypoints of image 1; M may be 0.

    Returns:
        1. The matches [K, 2] int64, rows of `xy0` and of `xy1`, one-to-one.
        2. Whether each keypoint of image 0 is known to have no partner, [N] bool.
        3. The same of image 1, [M] bool.
    """
    place1, known0 = _places(pair, xy0, 0)
    place0, known1 = _places(pair, xy1, 1)
    nearest1, distance1 = _nearest(place1, xy1)
    nearest0, distance0 = _nearest(place0, xy0)

    rows0 = np.flatnonzero(distance1 <= _POSITIVE_PX)
    rows1 = nearest1[rows0]
    mutual = (nearest0[rows1] == rows0) & (distance0[rows1] <= _POSITIVE_PX)
    matches = np.stack((rows0[mutual], rows1[mutual]), axis=1)

    unmatchable0 = known0 & (distance1 > _NEGATIVE_PX)
    unmatchable1 = known1 & (distance0 > _NEGATIVE_PX)
    unmatchable0[nearest0[distance0 <= _NEGATIVE_PX]] = False
    unmatchable1[nearest1[distance1 <= _NEGATIVE_PX]] = False
    return matches, unmatchable0, unmatchable1


def _places(pair: Views | PosedPair, xy: Float32, image: int) -> tuple[Float32, Mask]:
    """Where keypoints of image 0 or 1 are in the other one.

    Returns:
        1. The places [N, 2] float32, NaN where not visible or not known.
        2. Whether it is known what became of each keypoint, [N] bool.
    """
    xy = np.asarray(xy, np.float32).reshape(-1, 2)
    if isinstance(pair, PosedPair):
        return pair.places(xy, image)
    field = np.asarray(pair.to0 if image else pair.to1, np.float32)
    return _sample_field(field, xy), np.ones(len(xy), np.bool_)


def _sample_field(field: Float32, xy: Float32) -> Float32:
    """Values [N, 2] of a field [H, W, 2] between its pixels, NaN where it is NaN.

    Linear between four pixels of one surface. Beside an edge the nearest pixel that
    has a value counts alone, since a mean of two surfaces lies on neither.
    """
    height, width = field.shape[:2]
    corner = np.clip(np.floor(xy), 0, (width - 2, height - 2)).astype(np.int64)
    fraction = np.clip(xy - corner, 0, 1)
    dx, dy = np.array([0, 1, 0, 1]), np.array([0, 0, 1, 1])
    values = field[corner[:, 1:] + dy, corner[:, :1] + dx]  # [N, 4, 2]
    weights = np.where(dx, fraction[:, :1], 1 - fraction[:, :1]) * np.where(
        dy, fraction[:, 1:], 1 - fraction[:, 1:]
    )
    is_here = np.isfinite(values).all(axis=2)
    best = np.where(is_here, weights, -1).argmax(axis=1)
    nearest = values[np.arange(len(xy)), best]
    # NaN compares false: one missing corner is an edge too
    is_smooth = (np.ptp(values, axis=1) <= _MAX_STEP_PX).all(axis=1, keepdims=True)
    linear = (weights[:, :, None] * values).sum(axis=1)
    sampled: Float32 = np.where(is_smooth, linear, nearest).astype(np.float32)
    return sampled


def _nearest(places: Float32, xy: Float32) -> tuple[Index, Float64]:
    """The nearest keypoint to each place and its distance in pixels.

    Infinitely far, and row 0, where a place is NaN or there is no keypoint.
    """
    nearest = np.zeros(len(places), np.int64)
    distance = np.full(len(places), np.inf)
    here = np.flatnonzero(np.isfinite(places).all(axis=1))
    if len(here) and len(xy):
        distance[here], nearest[here] = cKDTree(xy).query(places[here])
    return nearest, distance
