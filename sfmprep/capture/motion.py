"""How far the picture of a film has moved, and where the film is cut.

Points on a grid are carried along by optical flow from frame to frame, so that what
counts is how far they are from where they were, not the way that a shaking hand took.
Frames are evened out in brightness and contrast first: a change of exposure is no
motion.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from sfmprep.types import Float32

Grey = NDArray[np.uint8]  # [H, W]
Flow = Callable[[Grey, Grey, Float32 | None], tuple[Float32, Float32]]
"""Optical flow [H, W, 2] from one picture to the next, and back.

The third is a flow to begin with, or None.
"""

_LONGER_SIDE = 480
_AROUND = 41  # pixels of it, over which brightness and contrast are evened out
_SPACING = 12  # of the grid, in pixels of the reduced picture
_MIN_TEXTURE = 2.0  # standard deviation of grey levels around a point
_CHECK_PX, _CHECK_SHARE = 0.7, 0.05  # forward and backward flow agree so well
_MIN_CONSISTENT = 0.2  # share of points; below it two frames show different things
_MIN_BRIDGED = 0.4  # the same where frames are missing, which a guess is made for
_MIN_ALIVE = 0.2  # share of the points that were there when a frame was taken
_LOST_FRAMES = 3  # in a row, after which it was no flash but a cut
_TURN_PX, _TURN_SHARE = 1.0, 0.02  # a homography explains a point so well
_FEW_POINTS = 20


@dataclass(frozen=True)
class Motion:
    """What one frame shows against the frames before."""

    moved: float  # 0..1: share of the picture that is new since the origin
    is_lost: bool = False  # it does not go together with the frame before
    is_cut: bool = False  # a new scene begins


@dataclass(frozen=True, eq=False)
class Mark:
    """Where the points were in one frame; what `MotionTracker.restart` goes back to."""

    sowing: int  # which set of points
    xy: Float32  # [N, 2]
    alive: NDArray[np.bool_]  # [N]


class MotionTracker:
    """Follows points through a film, frame by frame.

    Args:
        flow: Optical flow.
    """

    def __init__(self, flow: Flow) -> None:
        self._flow = flow
        self._grey: Grey | None = None  # the last frame that went together
        self._lost: Grey | None = None
        self._num_missing = 0  # frames since then
        self._num_lost = 0  # of these the last ones, which go together
        self._speed: Float32 = np.empty(
            (0, 0, 2), np.float32
        )  # flow [H, W, 2] of a frame
        self._xy = self._origin = np.empty((0, 2), np.float32)
        self._alive = np.empty(0, np.bool_)
        self._sowing = 0

    def push(self, picture: Grey) -> Motion:
        """Looks at the next frame, of any size but always the same."""
        grey = _evened(picture)
        if self._grey is None:
            self._begin(grey)
            return Motion(0.0)
        if self._follow(self._grey, grey):
            self._grey, self._lost = grey, None
            self._num_lost = self._num_missing = 0
            return Motion(self.moved())
        self._num_missing += 1
        if self._lost is not None and _goes_together(self._flow, self._lost, grey):
            self._num_lost += 1
        else:
            self._num_lost = 1
        self._lost = grey
        if self._num_lost < _LOST_FRAMES:
            return Motion(1.0, is_lost=True)
        self._begin(grey)
        return Motion(0.0, is_cut=True)

    def mark(self) -> Mark:
        """Where the points are in the frame that was pushed last."""
        return Mark(self._sowing, self._xy.copy(), self._alive.copy())

    def restart(self, mark: Mark) -> float:
        """Counts motion from that frame on, and seeds points where there are none.

        Returns:
            The share, 0..1, of points that moved from the old origin to the new one as
            no turn of the camera and no flat scene explains; nan for too few points.
        """
        if mark.sowing != self._sowing:  # points of a scene before
            return float("nan")
        parallax = _parallax(self._origin[mark.alive], mark.xy[mark.alive])
        self._origin = mark.xy.copy()
        dead = ~(self._alive & mark.alive)
        grid = self._grid()
        self._alive &= mark.alive
        if self._grey is not None and dead.any():
            cell = (1, 1 << 16)  # one number for each cell of the grid
            taken = (self._xy[~dead] // _SPACING) @ cell
            fresh = grid[~np.isin((grid // _SPACING) @ cell, taken)][: dead.sum()]
            rows = np.flatnonzero(dead)[: len(fresh)]
            self._xy[rows] = self._origin[rows] = fresh
            self._alive[rows] = True
        return parallax

    # ------------------------------------------------------------------- internals
    def _begin(self, grey: Grey) -> None:
        self._grey, self._lost = grey, None
        self._num_lost = self._num_missing = 0
        self._speed = np.zeros((*grey.shape, 2), np.float32)
        self._xy = self._grid()
        self._sowing += 1
        self._origin = self._xy.copy()
        self._alive = np.ones(len(self._xy), np.bool_)

    def _grid(self) -> Float32:
        """Points of the frame now that have texture around them, [N, 2]."""
        assert self._grey is not None
        height, width = self._grey.shape
        xs = np.arange(_SPACING // 2, width, _SPACING)
        ys = np.arange(_SPACING // 2, height, _SPACING)
        grid = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2).astype(np.float32)
        return grid[_has_texture(self._grey, grid)]

    def _follow(self, before: Grey, now: Grey) -> bool:
        """Carries the points on; False, and nothing changed, if hardly any go on."""
        if len(self._alive) < _FEW_POINTS:  # too plain a picture to tell, until now
            self._begin(now)
            return True
        inside = self._alive.copy()
        if inside.sum() < _FEW_POINTS:
            return True
        start = self._xy[inside]
        # over frames that are lost it goes on as before
        count = self._num_missing + 1
        guess = self._speed * count if count > 1 else None
        there, end, good = _carried(self._flow, before, now, start, guess)
        if good.mean() < (_MIN_BRIDGED if count > 1 else _MIN_CONSISTENT):
            return False
        self._speed = there / np.float32(count)
        self._xy[inside] = end
        self._alive[inside] = good & _is_inside(end, now)
        return True

    def moved(self) -> float:
        """How far the frame that was pushed last is from the origin, as in `Motion`."""
        if len(self._alive) < _FEW_POINTS:
            return 0.0
        if self._alive.mean() < _MIN_ALIVE:
            return 1.0
        assert self._grey is not None
        height, width = self._grey.shape
        shift = np.abs(self._xy[self._alive] - self._origin[self._alive])
        x, y = np.median(shift, axis=0) / (width, height)
        return float(1 - max(1 - x, 0) * max(1 - y, 0))

    def grey(self) -> Grey:
        """The frame that was pushed last, small and evened out."""
        assert self._grey is not None
        return self._grey

    def joins(self, before: Grey, now: Grey) -> bool:
        """Whether one frame goes together with another, see `grey`, in one step."""
        return _goes_together(self._flow, before, now)

    def speed(self) -> float:
        """How far the picture moved in the last step, median, in its longer sides."""
        if not self._speed.size:
            return 0.0
        length = np.linalg.norm(self._speed[::8, ::8], axis=2)
        return float(float(np.median(length)) / max(self._speed.shape))

    def faded(self) -> float:
        """Share of the points that were followed from the origin and are lost."""
        if len(self._alive) < _FEW_POINTS:
            return 0.0
        return 1 - float(self._alive.mean())


def _evened(picture: Grey) -> Grey:
    """A small picture with the same brightness and contrast everywhere."""
    scale = _LONGER_SIDE / max(picture.shape)
    size = [max(round(side * scale), 16) for side in picture.shape[::-1]]
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    grey = small.astype(np.float32)
    mean = cv2.blur(grey, (_AROUND, _AROUND))
    deviation = np.sqrt(cv2.blur((grey - mean) ** 2, (_AROUND, _AROUND)))
    even = 128 + (grey - mean) * (40 / (deviation + 4))
    return np.clip(even, 0, 255).astype(np.uint8)


def _carried(
    flow: Flow,
    before: Grey,
    now: Grey,
    xy: Float32,
    guess: Float32 | None = None,
) -> tuple[Float32, Float32, NDArray[np.bool_]]:
    """The flow, where points [N, 2] go, and whether the way back leads back."""
    there, back = flow(before, now, guess)
    shift = _sampled(there, xy)
    end: Float32 = np.asarray(xy + shift, np.float32)
    error = np.linalg.norm(shift + _sampled(back, end), axis=1)
    good = error < _CHECK_PX + _CHECK_SHARE * np.linalg.norm(shift, axis=1)
    # where nothing is to be seen, as in a flash, everything fits
    return there, end, good & _has_texture(now, end)


def _has_texture(grey: Grey, xy: Float32) -> NDArray[np.bool_]:
    """Whether grey levels differ around points [N, 2], which may lie outside."""
    values = grey.astype(np.float32)
    mean = cv2.blur(values, (_SPACING, _SPACING))
    variance = cv2.blur(values**2, (_SPACING, _SPACING)) - mean**2
    height, width = grey.shape
    column, row = np.clip(xy.astype(np.int64), 0, (width - 1, height - 1)).T
    textured: NDArray[np.bool_] = variance[row, column] >= _MIN_TEXTURE**2
    return textured


def _goes_together(flow: Flow, before: Grey, now: Grey) -> bool:
    height, width = now.shape
    xs, ys = np.arange(8, width, 24), np.arange(8, height, 24)
    xy = np.stack(np.meshgrid(xs, ys), -1).reshape(-1, 2).astype(np.float32)
    return bool(_carried(flow, before, now, xy)[2].mean() > _MIN_BRIDGED)


def _sampled(field: Float32, xy: Float32) -> Float32:
    """A field [H, W, 2] at points [N, 2], bilinear."""
    columns, rows = (np.ascontiguousarray(each[:, None]) for each in xy.T)
    return np.asarray(
        cv2.remap(
            *(field, columns, rows, cv2.INTER_LINEAR), borderMode=cv2.BORDER_REPLICATE
        ),
        np.float32,
    ).reshape(-1, 2)


def _is_inside(xy: Float32, grey: Grey) -> NDArray[np.bool_]:
    height, width = grey.shape
    fits = (xy >= 0) & (xy <= (width - 1, height - 1))
    inside: NDArray[np.bool_] = fits[:, 0] & fits[:, 1]
    return inside


def _parallax(before: Float32, after: Float32) -> float:
    """The share of points that the best homography leaves; nan for too few."""
    if len(before) < _FEW_POINTS:
        return float("nan")
    length = float(np.median(np.linalg.norm(after - before, axis=1)))
    allowed = _TURN_PX + _TURN_SHARE * length
    cv2.setRNGSeed(0)
    _, inliers = cv2.findHomography(before, after, cv2.RANSAC, allowed)
    return float("nan") if inliers is None else 1 - float(inliers.mean())
