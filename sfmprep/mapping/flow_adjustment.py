"""Bundle adjustment of a window of a film: poses, inverse depths and one focal length.

A point is a pixel of the frame that saw it first, its anchor, and an inverse depth, so
that one as far as can be is as good as any other, and a camera that only turns leads to
nothing that has no value. Points are eliminated one by one (Schur complement), what is
left is dense. Steps are damped (Levenberg, Marquardt) and errors count as in Cauchy's
loss. Idea: DROID-SLAM (Teed & Deng, NeurIPS 2021), whose network is not used.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from scipy.spatial.transform import Rotation

from sfmprep.types import Float64, Index, Mask

_MIN_DEPTH = 0.05  # of the usual one; what is nearer does not count
_DAMPING, _MOST_DAMPING = 1e-3, 1e8
_LESS, _MORE = 0.2, 8.0  # after a step that helps, and after one that does not
_FLOOR = 1e-6  # added to the diagonal: of what nothing is seen
_SETTLED = 1e-5  # share by which the loss falls in a step, where it ends
_FOCAL_SHARE = 0.3  # standard deviation of a guessed focal length
_FAR_OFF = 8.0  # standard deviations; what is further off is wrong


@dataclass(frozen=True, kw_only=True, eq=False)
class Window:
    """Frames, and the points that were followed through them.

    The camera has square pixels and no distortion; `pixel` and `xy` are from its
    principal point.
    """

    rotations: Float64  # [N, 3, 3] camera from world
    translations: Float64  # [N, 3]
    focal: float  # pixels
    anchor: Index  # [P] the frame that a point was seen in first
    pixel: Float64  # [P, 2] where
    inverse_depth: Float64  # [P] 0 or more, in that frame

    def take_points(self, rows: Index | Mask) -> Window:
        """The same with some of the points."""
        return replace(
            self,
            anchor=self.anchor[rows],
            pixel=self.pixel[rows],
            inverse_depth=self.inverse_depth[rows],
        )


@dataclass(frozen=True, kw_only=True, eq=False)
class Sightings:
    """Where points are in frames other than their anchors."""

    point: Index  # [M]
    frame: Index  # [M]
    xy: Float64  # [M, 2]
    weight: Float64  # [M] 0..1: how sure they are

    def take(self, rows: Mask) -> Sightings:
        """Some of them."""
        return Sightings(
            point=self.point[rows],
            frame=self.frame[rows],
            xy=self.xy[rows],
            weight=self.weight[rows],
        )


def adjust_window(
    window: Window,
    seen: Sightings,
    free: Mask,
    *,
    guessed_focal: float | None = None,
    loss_scale: float = 1.0,
    max_steps: int = 30,
) -> Window:
    """Moves frames, points and focal length to where they fit what was seen.

    Args:
        window: Where to begin. Of nothing known: no rotation, no translation, inverse
            depths of 1.
        seen: What was seen; of a point without any the inverse depth stays.
        free: Which frames [N] may move. At least one must not, which holds the frame
            of the world; the scale is only held by two that do not move, and drifts
            otherwise.
        guessed_focal: What the focal length is about, to 30 %; None to leave it.
        loss_scale: Of Cauchy's loss, pixels.
        max_steps: Of the solver.

    Raises:
        ValueError: all frames are free.
    """
    if free.all():
        raise ValueError("all frames are free but expected one that holds the world")
    damping, loss = _DAMPING, _loss(window, seen, guessed_focal, loss_scale)
    for _ in range(max_steps):
        system = _System.of(window, seen, free, guessed_focal, loss_scale)
        while damping < _MOST_DAMPING:
            tried = _moved(window, free, system.solve(damping))
            new_loss = _loss(tried, seen, guessed_focal, loss_scale)
            if new_loss < loss:
                break
            damping *= _MORE
        else:
            return window
        window, fell, loss = tried, (loss - new_loss) / loss, new_loss
        damping *= _LESS
        if fell < _SETTLED:
            break
    return window


def errors_px(window: Window, seen: Sightings) -> Float64:
    """How far each sighting [M] is from where it should be; infinite behind the camera.

    The points behind a camera are those with less than a twentieth of the depth that
    they have in their anchor.
    """
    projected = _Projected.of(window, seen)
    errors = np.linalg.norm(seen.xy - projected.xy, axis=1)
    return np.where(projected.is_in_front, errors, np.inf)


def focal_deviation(window: Window, seen: Sightings, free: Mask) -> float:
    """How sure the focal length is: its standard deviation, as a share of it.

    By the noise of what was seen, from the median of the errors, which counts as
    independent from frame to frame. Infinite where nothing tells it, as without points.

    Args:
        window: Adjusted.
        seen: By what.
        free: Which frames [N] were free to move.
    """
    if not len(seen.point):
        return np.inf
    median = float(np.median(errors_px(window, seen)))
    noise = max(median / np.sqrt(2 * np.log(2)), 1e-3)  # of x, and of y
    scale = _FAR_OFF * noise  # so that all but what is wrong counts whole
    system = _System.of(window, seen, free, window.focal, scale)
    shared = system.mixed / (system.points + _FLOOR)
    reduced = system.cameras - shared @ system.mixed.T
    reduced[-1, -1] -= (scale / _FOCAL_SHARE) ** 2  # what was only guessed
    size = np.sqrt(np.maximum(np.diag(reduced), _FLOOR))
    one = np.zeros(len(reduced))
    one[-1] = 1
    # least squares, for the scale is free
    inverse = np.linalg.lstsq(reduced / np.outer(size, size), one, rcond=1e-9)[0]
    variance = inverse[-1] * noise**2 / reduced[-1, -1]
    is_told = np.isfinite(variance) and variance > 0 and reduced[-1, -1] > _FLOOR
    return float(np.sqrt(variance)) if is_told else np.inf


# --------------------------------------------------------------------------- internals
@dataclass(frozen=True, eq=False)
class _Projected:
    """Points where they should be seen."""

    xy: Float64  # [M, 2]
    turns: Float64  # [M, 3, 3] frame from anchor
    shifts: Float64  # [M, 3] likewise
    rays: Float64  # [M, 3] in the anchor, third coordinate 1
    places: Float64  # [M, 3] in the frame, times the inverse depth
    is_in_front: Mask  # [M]

    @staticmethod
    def of(window: Window, seen: Sightings) -> _Projected:
        anchor = window.anchor[seen.point]
        turned = window.rotations[seen.frame]
        turns = turned @ window.rotations[anchor].swapaxes(1, 2)
        shifts = window.translations[seen.frame] - _times(
            turns, window.translations[anchor]
        )
        rays = np.ones((len(anchor), 3))
        rays[:, :2] = window.pixel[seen.point] / window.focal
        places = _times(turns, rays)
        places += window.inverse_depth[seen.point, None] * shifts
        is_in_front = places[:, 2] > _MIN_DEPTH
        depth = np.where(is_in_front, places[:, 2], 1.0)
        xy = window.focal * places[:, :2] / depth[:, None]
        return _Projected(xy, turns, shifts, rays, places, is_in_front)


@dataclass(frozen=True, eq=False)
class _System:
    """Normal equations: C cameras' parameters (six a free frame, and the focal)."""

    cameras: Float64  # [C, C]
    mixed: Float64  # [C, P]
    points: Float64  # [P] a diagonal
    right: Float64  # [C]
    right_points: Float64  # [P]

    @staticmethod
    def of(
        window: Window,
        seen: Sightings,
        free: Mask,
        guessed_focal: float | None,
        loss_scale: float,
    ) -> _System:
        projected = _Projected.of(window, seen)
        residual = seen.xy - projected.xy
        weight = seen.weight / (1 + (residual**2).sum(axis=1) / loss_scale**2)
        weight[~projected.is_in_front] = 0
        by_anchor, by_frame, by_focal, by_depth = _jacobians(window, seen, projected)

        count, num_points = 6 * int(free.sum()) + 1, len(window.anchor)
        first = np.where(free, 6 * (np.cumsum(free) - 1), count)  # count: nowhere
        six = np.arange(6)
        place = np.concatenate(
            (
                np.minimum(first[window.anchor[seen.point], None] + six, count),
                np.minimum(first[seen.frame, None] + six, count),
                np.full((len(seen.point), 1), count - 1),
            ),
            axis=1,
        )  # [M, 13]
        both = np.concatenate((by_anchor, by_frame, by_focal[..., None]), axis=2)
        if guessed_focal is None:
            both[..., 12] = 0
        size = count + 1  # the last row is of frames that stay, and goes
        weighted = weight[:, None, None] * both
        cells = place[:, :, None] * size + place[:, None, :]
        cameras = _summed(cells, weighted.swapaxes(1, 2) @ both, size**2)
        mixed_cells = place * num_points + seen.point[:, None]
        mixed = _summed(
            mixed_cells, np.einsum("mki,mk->mi", weighted, by_depth), size * num_points
        )
        right = _summed(place, np.einsum("mki,mk->mi", weighted, residual), size)
        points = _summed(seen.point, weight * (by_depth**2).sum(axis=1), num_points)
        right_points = _summed(
            seen.point, weight * (by_depth * residual).sum(axis=1), num_points
        )
        cameras = cameras.reshape(size, size)[:count, :count]
        right = right[:count]
        if guessed_focal is not None:
            precision = (loss_scale / _FOCAL_SHARE) ** 2
            cameras[-1, -1] += precision
            right[-1] += precision * np.log(guessed_focal / window.focal)
        return _System(
            cameras,
            mixed.reshape(size, num_points)[:count],
            points,
            right,
            right_points,
        )

    def solve(self, damping: float) -> tuple[Float64, Float64]:
        """The step of all cameras' parameters [C] and of the inverse depths [P]."""
        diagonal = np.diag(self.cameras)
        points = self.points * (1 + damping) + _FLOOR
        reduced = self.cameras + np.diag(damping * diagonal + _FLOOR)
        shared = self.mixed / points
        reduced -= shared @ self.mixed.T
        right = self.right - shared @ self.right_points
        step = np.asarray(np.linalg.solve(reduced, right), np.float64)
        return step, (self.right_points - self.mixed.T @ step) / points


def _jacobians(
    window: Window, seen: Sightings, projected: _Projected
) -> tuple[Float64, Float64, Float64, Float64]:
    """Of the projections: by anchor's and frame's pose [M, 2, 6], focal and depth.

    Poses change from the left by (translation, rotation); the focal length by its
    logarithm.
    """
    places, turns = projected.places, projected.turns
    inverse = window.inverse_depth[seen.point]
    depth = np.where(projected.is_in_front, places[:, 2], 1.0)
    by_place = np.zeros((len(places), 2, 3))
    by_place[:, 0, 0] = by_place[:, 1, 1] = window.focal / depth
    by_place[:, :, 2] = -projected.xy / depth[:, None]

    by_frame = np.empty((len(places), 2, 6))
    by_frame[..., :3] = inverse[:, None, None] * by_place
    by_frame[..., 3:] = -by_place @ _cross(places)
    through = by_place @ turns
    by_anchor = np.empty((len(places), 2, 6))
    by_anchor[..., :3] = -inverse[:, None, None] * through
    by_anchor[..., 3:] = through @ _cross(projected.rays)
    sideways = np.concatenate(
        (projected.rays[:, :2], np.zeros((len(places), 1))), axis=1
    )
    by_focal = projected.xy - _times(through, sideways)
    by_depth = _times(by_place, projected.shifts)
    return by_anchor, by_frame, by_focal, by_depth


def _moved(window: Window, free: Mask, step: tuple[Float64, Float64]) -> Window:
    cameras, points = step
    poses = cameras[:-1].reshape(-1, 6)
    turn = Rotation.from_rotvec(poses[:, 3:]).as_matrix().reshape(-1, 3, 3)
    rotations, translations = window.rotations.copy(), window.translations.copy()
    rotations[free] = turn @ rotations[free]
    translations[free] = _times(turn, translations[free]) + poses[:, :3]
    return replace(
        window,
        rotations=rotations,
        translations=translations,
        focal=float(window.focal * np.exp(np.clip(cameras[-1], -0.5, 0.5))),
        inverse_depth=np.maximum(window.inverse_depth + points, 0),
    )


def _loss(
    window: Window, seen: Sightings, guessed_focal: float | None, scale: float
) -> float:
    """Cauchy's, halved as squares are; behind a camera as much as ten scales away."""
    errors = np.minimum(errors_px(window, seen) / scale, 10.0)
    total = 0.5 * scale**2 * (seen.weight * np.log1p(errors**2)).sum()
    if guessed_focal is not None:
        share = np.log(window.focal / guessed_focal) / _FOCAL_SHARE
        total += 0.5 * scale**2 * share**2
    return float(total)


def _times(matrices: Float64, vectors: Float64) -> Float64:
    """Matrices [M, K, 3] times vectors [M, 3]."""
    return np.asarray(np.einsum("mki,mi->mk", matrices, vectors))


def _cross(vectors: Float64) -> Float64:
    """The matrices [M, 3, 3] whose product with b is the cross product with b."""
    x, y, z = vectors.T
    zero = np.zeros(len(vectors))
    rows = [[zero, -z, y], [z, zero, -x], [-y, x, zero]]
    return np.array(rows).transpose(2, 0, 1)


def _summed(cells: Index, values: Float64, count: int) -> Float64:
    sums = np.bincount(cells.ravel(), values.ravel(), minlength=count)
    return sums.astype(np.float64)  # of no values they are integers
