"""Which frames of a film become photographs.

A frame is taken where enough of the picture is new since the last one, and of those
around it the sharpest. Standing still adds nothing, a fast pan gets more. Sharpness is
only ever compared between frames that show nearly the same.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from sfmprep.capture.film import Frame
from sfmprep.capture.motion import Flow, Grey, Mark, MotionTracker

_MAX_RATE = 31.0  # frames a second that are looked at
_LONGER_SIDE = 960  # at which sharpness is measured
_WINDOW = 0.6  # of the step: from here on frames are candidates
_MOST = 1.8  # of the step: so long a sharp one is waited for
_PASSED, _MOST_PASSED = 0.25, 4  # of the step, and frames, from a look to the next
_BEFORE = 8  # looks, in all of which little moved before a frame is passed over
_FADED = 0.6  # share of the followed points that are lost, which counts as a step
_BLURRED = 0.6  # of the sharpness that is usual around it
_AROUND = 15  # frames before and after
_FAST = 0.01  # of the longer side, from a frame to the next
_BACK = 8  # sharp frames that were taken, which a later one may show again


@dataclass(frozen=True, eq=False)
class Look:
    """What was measured of one frame."""

    number: int
    seconds: float
    sharpness: float  # of the Laplacian against the picture itself
    segment: int  # 0, and one more after every cut
    speed: float = 0.0  # of the picture, in its longer sides, a frame of the film


@dataclass(frozen=True, eq=False)
class Keyframe:
    """A frame that is taken."""

    frame: Frame
    look: Look
    moved: float  # 0..1: share of the picture that is new since the one before
    parallax: float  # share of points that moved as no turn explains; nan if unknown

    def without_pixels(self) -> Keyframe:
        """The same without what takes memory."""
        nothing = np.empty((0, 0, 3), np.uint8)
        return replace(self, frame=replace(self.frame, pixels=nothing))

    def after(self, moved: float) -> Keyframe:
        """The same, so far from the one before."""
        return replace(self, moved=min(moved, 1.0))


def sharpness(grey: NDArray[np.uint8]) -> float:
    """How much of the contrast of a picture [H, W] is in its finest detail.

    Neither exposure nor contrast changes it. 0 for a plain picture.
    """
    contrast = float(cv2.meanStdDev(grey)[1][0, 0])
    if contrast < 1:
        return 0.0
    detail = cv2.meanStdDev(cv2.Laplacian(grey, cv2.CV_16S))[1][0, 0]
    return float((detail / contrast) ** 2)


def _reduced(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture [H, W, 3] BGR in grey, its longer side 960 pixels or fewer."""
    grey = cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    while max(grey.shape) >= 2 * _LONGER_SIDE:  # a mean of means, and faster
        grey = cv2.resize(grey, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA)
    scale = min(_LONGER_SIDE / max(grey.shape), 1)
    size = [max(round(side * scale), 1) for side in grey.shape[::-1]]
    return np.asarray(cv2.resize(grey, size, interpolation=cv2.INTER_AREA), np.uint8)


def find_blurred(looks: Sequence[Look]) -> list[bool]:
    """Which frames are blurred: less sharp than those that show nearly the same.

    Args:
        looks: Of a film, in order; may be empty. The 15 before and after a frame count,
            as far as there is no cut between.
    """
    return [_is_blurred(looks, place) for place in range(len(looks))]


def _is_blurred(looks: Sequence[Look], place: int) -> bool:
    look = looks[place]
    around = looks[max(place - _AROUND, 0) : place + _AROUND + 1]
    alike = [each.sharpness for each in around if each.segment == look.segment]
    return look.sharpness < _BLURRED * float(np.median(alike))


class _Candidate(NamedTuple):
    """The best frame so far."""

    frame: Frame
    place: int  # of its look
    mark: Mark
    moved: float
    grey: Grey  # as the tracker has it


class Chooser:
    """Chooses among the frames of a film as they come.

    No more than the best frame so far is kept in memory, and a few small ones. Where
    little moves, and no frame can be taken yet, not every frame is looked at.

    Attributes:
        looks: What was measured of each frame that was looked at, in order.
        spared: Numbers of blurred frames that were taken, before a later frame showed
            again what the sharp ones before them do: nothing needs them.

    Args:
        max_overlap: Share of the picture, below 1, that two frames that are taken one
            after the other have in common.
        flow: Optical flow.
    """

    def __init__(self, max_overlap: float, flow: Flow) -> None:
        self.looks: list[Look] = []
        self._step = 1 - max_overlap
        self._tracker = MotionTracker(flow)
        self._segment = 0
        self._has_one = False  # in this segment
        self._best: _Candidate | None = None
        self._sharp: deque[tuple[int, Grey]] = deque(maxlen=_BACK)  # places
        self._taken: list[int] = []  # places from the first of these on
        self.spared: set[int] = set()
        self._reached = 0.0  # of a step
        self._rates: deque[float] = deque(maxlen=_BEFORE)
        self._next, self._pace = 0, 1  # which frame is looked at, and then how many on

    def passes_over(self, number: int) -> bool:
        """Whether a frame will not be looked at, so that it needs no pixels.

        Args:
            number: Of the frame after the one that is pushed next, or earlier.
        """
        return number < self._next or (number > self._next and self._pace > 1)

    def push(self, frame: Frame) -> Iterator[Keyframe]:
        """Looks at the next frame; yields those before it that are taken."""
        if frame.number < self._next:
            return
        if self.looks and frame.seconds - self.looks[-1].seconds < 1 / _MAX_RATE:
            self._next = frame.number + self._ahead()
            return
        gap = frame.number - self.looks[-1].number if self.looks else 1
        grey = _reduced(frame.pixels)
        motion = self._tracker.push(grey)
        if motion.is_cut:
            yield from self.finish()
            self._sharp.clear()  # a shot in between is needed, whatever comes again
            self._taken.clear()
            self._segment += 1
            self._has_one = False
        look = Look(
            number=frame.number,
            seconds=frame.seconds,
            sharpness=sharpness(grey),
            segment=self._segment,
            speed=self._tracker.speed() / gap,
        )
        self.looks.append(look)
        if motion.is_lost or motion.is_cut:
            self._rates.clear()
        if motion.is_lost:
            self._plan(look, 1)
            return
        before, progress = self._reached, self._progress()
        if self._best is not None and self._is_due(progress):
            yield self._take()
            progress = self._progress()
        if progress >= (_WINDOW if self._has_one else 0.0):
            self._consider(frame)
        self._reached = progress
        self._rates.append(max((progress - before) / gap, look.speed / self._step))
        self._plan(look, self._room(progress))

    def finish(self) -> Iterator[Keyframe]:
        """Yields what is left at the end of the film."""
        if self._best is not None:
            yield self._take()

    # ------------------------------------------------------------------- internals
    def _room(self, progress: float) -> int:
        """How many frames on is the next that has to be looked at; 1 or less: all."""
        if not self._has_one or len(self._rates) < _BEFORE:
            return 1
        return int(min(_PASSED, _WINDOW - progress) / max(*self._rates, 1e-6))

    def _plan(self, look: Look, room: int) -> None:
        """Says which frame is looked at next."""
        least = self._ahead()
        self._pace = min(max(room, 1), _MOST_PASSED)
        self._next = look.number + max(self._pace, least)

    def _ahead(self) -> int:
        """How many frames on is the next that can have pixels."""
        return 2 if self._pace > 1 else 1  # what was passed over ahead has none

    def _progress(self) -> float:
        """How much of a step the last frame is from the one that was taken; 1: due."""
        faded = self._tracker.faded() / _FADED
        return max(self._tracker.moved() / self._step, faded)

    def _is_due(self, progress: float) -> bool:
        assert self._best is not None
        # the first of a segment is one of its first frames
        end = 1.0 if self._has_one else 1 - _WINDOW
        if _is_blurred(self.looks, self._best.place):
            end *= _MOST
        return progress >= end

    def _consider(self, frame: Frame) -> None:
        place, tracker = len(self.looks) - 1, self._tracker
        best = None if self._best is None else self.looks[self._best.place]
        if best is None or self.looks[place].sharpness > best.sharpness:
            self._best = _Candidate(
                *(frame, place, tracker.mark(), tracker.moved(), tracker.grey())
            )

    def _take(self) -> Keyframe:
        assert self._best is not None
        frame, place, mark, moved, grey = self._best
        self._spare(place, grey)
        parallax = self._tracker.restart(mark)
        if not self._has_one:
            parallax = float("nan")
        self._best, self._has_one = None, True
        return Keyframe(frame, self.looks[place], moved, parallax)

    def _spare(self, place: int, grey: Grey) -> None:
        """Finds which blurred frames the one that is taken makes needless."""
        last = [sharp for sharp, _ in self._sharp][-1:]
        if self._is_worse(place, *last):
            self._taken.append(place)
            return
        for sharp, before in reversed(self._sharp):
            needless = {
                k for k in self._taken if k > sharp and self._is_worse(k, sharp, place)
            }
            if needless and self._tracker.joins(before, grey):
                self.spared |= {self.looks[k].number for k in needless}
                self._taken = [k for k in self._taken if k not in needless]
                left = [each for each in self._sharp if each[0] not in needless]
                self._sharp = deque(left, _BACK)
                break
        self._sharp.append((place, grey))
        first = self._sharp[0][0]
        self._taken = [k for k in [*self._taken, place] if k >= first]

    def _is_worse(self, place: int, *others: int) -> bool:
        """Whether a frame is blurred, at least against others that show one scene."""
        if _is_blurred(self.looks, place):
            return True
        look = self.looks[place]
        least = min((self.looks[k].sharpness for k in others), default=0.0)
        return look.speed > _FAST and look.sharpness < _BLURRED * least


def choose(frames: Iterable[Frame], chooser: Chooser) -> Iterator[Keyframe]:
    """The frames of a film that are taken, in order."""
    for frame in frames:
        yield from chooser.push(frame)
    yield from chooser.finish()


def thin_out(
    moved: Sequence[float], sharp: Sequence[float], segments: Sequence[int], most: int
) -> list[int]:
    """Which of the frames that were taken to keep, where they are too many.

    Again and again the frame goes between whose neighbours least is new, a blurred one
    sooner; never the first or the last of a segment, of which there may be more than
    `most`.

    Args:
        moved: Share of the picture that is new since the frame before, each.
        sharp: Sharpness, each.
        segments: Number of the segment, each, ascending.
        most: How many may stay, 1 or more.

    Returns:
        Positions in these sequences, ascending.
    """
    kept = list(range(len(moved)))
    gaps = list(moved)
    while len(kept) > most:
        costs = [
            (gaps[k] + gaps[k + 1]) * sharp[kept[k]]
            if segments[kept[k - 1]] == segments[kept[k]] == segments[kept[k + 1]]
            else np.inf
            for k in range(1, len(kept) - 1)
        ]
        if not costs or not np.isfinite(min(costs)):
            break
        k = int(np.argmin(costs)) + 1
        gaps[k + 1] += gaps[k]
        del kept[k], gaps[k]
    return kept
