"""The way of a camera through a film, frame by frame, from points that flow followed.

Each new frame begins where the last two lead to; then the last frames, the points that
they see and the focal length are adjusted together (see `flow_adjustment`), and points
that do not fit are told, so that they are followed no further. What lies further back
holds still. Nothing closes loops: poses drift, and are a start for others.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from sfmprep.mapping.flow_adjustment import (
    Sightings,
    Window,
    adjust_window,
    errors_px,
    focal_deviation,
)
from sfmprep.types import Float64, Index, Mask

FIRST = 4  # frames from which on there are poses
_WINDOW = 8  # frames that move
_HELD = 4  # frames before those, whose sightings count
_SETTLING = 16  # frames until which all but the first move, and the focal length too
_STEPS, _FIRST_STEPS = 8, 60
_FEW = 12  # points, with which a frame does not hang on to the one before
_WIDE = (64.0, 16.0, 4.0)  # of the loss, at first, times the usual scale
_POINTS = 500  # of a frame, for its pose; the depths of the others follow from poses
# Times 1.48 medians of the errors, which is some ten standard deviations.
_MISFIT = 6.0
_MIN_NOISE = 0.5  # pixels of the reduced frame, which is the least that is told apart


class Odometry:
    """Poses of one shot, from its frames as they come.

    Args:
        guessed_focal: Focal length in pixels, or about.
        is_known: Whether that is the focal length, which then stays.
        pixel: How many pixels of the file one of the reduced frame is.

    Attributes:
        is_whole: Whether each frame until now hangs on to the one before.
        focal_deviation: How sure `focal` is, see `focal_deviation`. Errors of one point
            are alike from frame to frame: where the truth is known, up to twenty times
            as much was off.
    """

    def __init__(
        self, guessed_focal: float, *, is_known: bool = False, pixel: float = 1.0
    ) -> None:
        self._guess = None if is_known else guessed_focal
        self._pixel = pixel
        self.is_whole = True
        self.focal_deviation = np.inf
        self._track = np.empty(0, np.int64)  # [P] numbers of points, ascending
        self._window = Window(
            rotations=np.eye(3)[None],
            translations=np.zeros((1, 3)),
            focal=guessed_focal,
            anchor=np.empty(0, np.int64),
            pixel=np.empty((0, 2)),
            inverse_depth=np.empty(0),
        )
        self._seen = Sightings(
            point=np.empty(0, np.int64),
            frame=np.empty(0, np.int64),
            xy=np.empty((0, 2)),
            weight=np.empty(0),
        )

    @property
    def cam_from_world(self) -> tuple[Float64, Float64]:
        """Rotations [N, 3, 3] and translations [N, 3] of the frames until now.

        The first is the world. The unit of length is any.
        """
        return self._window.rotations, self._window.translations

    @property
    def focal(self) -> float:
        """The focal length in pixels, as far as it is known."""
        return self._window.focal

    def push(
        self, track: Index, before: Float64, now: Float64, sure: Float64 | None = None
    ) -> Mask:
        """Takes the next frame.

        Args:
            track: Numbers [N] of the points that it and the frame before see,
                ascending.
            before: Where they were [N, 2], pixels from the principal point.
            now: Where they are, likewise.
            sure: How much each counts [N], 0..1; None for all alike.

        Returns:
            Which of them fit [N]; all of them while there are too few frames.
        """
        frame = len(self._window.rotations)
        self.is_whole &= len(track) >= _FEW
        sure = np.ones(len(track)) if sure is None else sure
        self._add(track, before, now, sure, frame)
        if frame + 1 < FIRST:
            return np.ones(len(track), bool)
        rows = np.arange(frame + 1)
        is_early = frame < _SETTLING
        free = (rows > 0) & (rows > (0 if is_early else frame - _WINDOW))
        recent = self._seen
        is_first = frame + 1 == FIRST
        steps = _FIRST_STEPS if is_first else _STEPS
        stride = max(len(track) // _POINTS, 1)
        some = recent.take(self._track[recent.point] % stride == 0)
        loss_scale = self._pixel
        guess = self._guess if is_early else None

        def adjusted(start: Window) -> Window:
            # from nothing most is far off, and none of it wrong
            for wide in _WIDE if is_first else ():
                start = adjust_window(
                    *(start, some, free),
                    guessed_focal=guess,
                    loss_scale=wide * loss_scale,
                    max_steps=steps,
                )
            return adjust_window(
                *(start, some, free),
                guessed_focal=guess,
                loss_scale=loss_scale,
                max_steps=steps,
            )

        def loss(found: Window) -> float:
            shares = errors_px(found, some) / loss_scale
            return float((some.weight * np.log1p(shares.clip(max=10) ** 2)).sum())

        found = [adjusted(self._window)]
        if is_first:
            found.append(adjusted(_mirrored(found[0])))
        self._window = min(found, key=loss)
        if guess is not None:
            self.focal_deviation = focal_deviation(self._window, some, free)
        if stride > 1:
            self._window = adjust_window(
                *(self._window, recent, np.zeros(frame + 1, bool)),
                loss_scale=loss_scale,
                max_steps=steps,
            )
        errors = errors_px(self._window, recent)
        noise = 1.4826 * float(np.median(errors)) if len(errors) else 0.0
        limit = _MISFIT * max(noise, _MIN_NOISE * self._pixel)
        worst = np.zeros(len(self._track))
        np.maximum.at(worst, recent.point, errors)
        fits = worst <= limit
        return np.asarray(fits[np.searchsorted(self._track, track)])

    def _add(
        self, track: Index, before: Float64, now: Float64, sure: Float64, frame: int
    ) -> None:
        """Adds a frame and what it sees; forgets points that it does not see."""
        window, seen = self._window, self._seen
        rotations, translations = window.rotations, window.translations
        turn, shift = np.eye(3), np.zeros(3)
        if frame >= 2:
            turn = rotations[-1] @ rotations[-2].T
            shift = translations[-1] - turn @ translations[-2]
        kept = np.isin(self._track, track)
        new_row = np.cumsum(kept) - 1
        seen = seen.take(kept[seen.point] & (seen.frame >= _since(frame)))
        window = window.take_points(kept)
        known = self._track[kept]
        is_new = ~np.isin(track, known)
        usual = 1.0
        if len(known):
            usual = float(np.median(self._seen_from(window, frame - 1)))
        all_tracks = np.concatenate((known, track[is_new]))
        order = np.argsort(all_tracks, kind="stable")
        place = np.empty(len(order), np.int64)
        place[order] = np.arange(len(order))
        self._track = all_tracks[order]
        window = replace(
            window,
            rotations=np.concatenate((rotations, (turn @ rotations[-1])[None])),
            translations=np.concatenate(
                (translations, (turn @ translations[-1] + shift)[None])
            ),
            anchor=np.concatenate((window.anchor, np.full(is_new.sum(), frame - 1))),
            pixel=np.concatenate((window.pixel, before[is_new])),
            inverse_depth=np.concatenate(
                (window.inverse_depth, np.full(is_new.sum(), usual))
            ),
        )
        self._window = window.take_points(order)
        self._seen = Sightings(
            point=np.concatenate(
                (place[new_row[seen.point]], np.searchsorted(self._track, track))
            ),
            frame=np.concatenate((seen.frame, np.full(len(track), frame))),
            xy=np.concatenate((seen.xy, now)),
            weight=np.concatenate((seen.weight, sure)),
        )

    @staticmethod
    def _seen_from(window: Window, frame: int) -> Float64:
        """The inverse depths [P] of points in a frame."""
        turns = window.rotations[frame] @ window.rotations[window.anchor].swapaxes(1, 2)
        shifts = window.translations[frame] - np.einsum(
            "pij,pj->pi", turns, window.translations[window.anchor]
        )
        rays = np.ones((len(window.anchor), 3))
        rays[:, :2] = window.pixel / window.focal
        depth = np.einsum("pi,pi->p", turns[:, 2], rays)
        depth += window.inverse_depth * shifts[:, 2]
        found: Float64 = window.inverse_depth / np.maximum(depth, 0.05)
        return found


def _mirrored(window: Window) -> Window:
    """What looks nearly the same from afar: near and far exchanged, turns reversed."""
    middle = 1 / max(float(np.median(window.inverse_depth)), 1e-6)
    flip, centre = np.diag([1.0, 1, -1]), np.array([0, 0, middle])
    rotations = flip @ window.rotations @ flip
    translations = (window.rotations - rotations) @ centre + window.translations
    depth = 2 * middle - 1 / np.maximum(window.inverse_depth, 0.6 / middle)
    return replace(
        window,
        rotations=rotations,
        translations=translations,
        inverse_depth=1 / np.maximum(depth, 0.3 * middle),
    )


def _since(frame: int) -> int:
    """The first frame whose sightings count in one."""
    return 0 if frame < _SETTLING else frame - _WINDOW - _HELD
