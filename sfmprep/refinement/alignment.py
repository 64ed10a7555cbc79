"""Moves the patches of tracks until each agrees with the mean of its track.

Lucas-Kanade (IJCAI 1981) on normalised patches, so that gain and bias do not matter,
jointly over a track as in Pixel-Perfect Structure-from-Motion (Lindenberger et al.,
ICCV 2021), but on brightness: against the mean, no view's own error stays in the
others. A prior holds every patch where it was, as strongly as its noise demands: along
an edge, or where there is no texture, it stays. All tracks of a call at once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from sfmprep.types import Bytes, Float32, Float64, Index, Mask

Real = TypeVar("Real", np.float32, np.float64)

_RADIUS = 7  # of the window that is compared
_TAPER_PX = 5.0  # standard deviation of the weights over the window
_LEVELS = ((2.0, 3), (1.2, 2), (0.8, 4))  # blur in pixels, and steps at that blur
_FINEST = _LEVELS[-1][0]
_BLUR_RADIUS = 4
_MAX_STEP_PX = 1.0
_PRIOR_PX = 1.0  # standard deviation of a keypoint's error before
_COARSE_PRIOR = 0.001  # squared change of a unit patch for a step of a pixel
_NUM_INDEPENDENT = 50.0  # pixels of a window whose noise is not shared by neighbours
_BEST = 0.98  # warps are not exact, so no higher correlation is believed
_MIN_CONTRAST = 1.0  # standard deviation of a patch, grey levels


@dataclass(frozen=True, kw_only=True, eq=False)
class Alignment:
    """Where patches agree with the others of their track."""

    shifts: Float64  # [M, 2]
    before: Float64  # [M] correlation with the mean of the others, or -1 without any
    after: Float64  # [M]


def patch_radius(max_move: float) -> int:
    """The radius of patches that can be shifted by `max_move` pixels."""
    return _RADIUS + _BLUR_RADIUS + math.ceil(max_move)


def limit_steps(steps: NDArray[Real], longest: float) -> NDArray[Real]:
    """Steps [M, 2] in the same direction, none longer than `longest`."""
    length = np.linalg.norm(steps, axis=1, keepdims=True)
    shares = np.minimum(longest / np.maximum(length, 1e-6), 1)
    limited: NDArray[Real] = np.asarray(steps * shares, steps.dtype)
    return limited


def align_tracks(
    patches: Bytes, usable: Mask, starts: Index, max_move: float
) -> tuple[Alignment, Index]:
    """Moves patches until each agrees best with the mean of its track.

    Args:
        patches: [2, M, S, S] of the observations, by two guesses of the surface.
        usable: [2, M] which of them count.
        starts: [T] where each track begins, rising from 0.
        max_move: No shift is longer.

    Returns:
        The alignment in the frames of the tracks, and the guess [M] that was taken:
        that by which the unmoved patches of the track agree better.
    """
    track = np.repeat(np.arange(len(starts)), np.diff(starts, append=patches.shape[1]))
    unmoved = np.zeros((patches.shape[1], 2), np.float32)
    scores = []
    for pictures, usable_here in zip(patches, usable, strict=True):
        windows, contrast = _windows(pictures, unmoved, _LEVELS[0][0])
        weights = (usable_here & (contrast >= _MIN_CONTRAST)).astype(np.float32)
        correlation, _ = _agreement(windows, weights, starts, track)
        scores.append(np.add.reduceat(correlation, starts))
    guess = (scores[1] > scores[0]).astype(np.int64)[track]
    rows = np.arange(len(track))
    return (
        _align(patches[guess, rows], usable[guess, rows], starts, track, max_move),
        guess,
    )


def _align(
    patches: Bytes, usable: Mask, starts: Index, track: Index, max_move: float
) -> Alignment:
    """As `align_tracks`, by one guess [M, S, S]; `track` [M] numbers the tracks."""
    shifts = np.zeros((len(patches), 2), np.float32)
    weights = usable.astype(np.float32)
    for sigma, num_steps in _LEVELS:
        for _ in range(num_steps):
            windows, contrast = _windows(patches, shifts, sigma)
            weights *= contrast >= _MIN_CONTRAST
            correlation, _ = _agreement(windows, weights, starts, track)
            weights = (weights > 0) * np.clip(correlation, 0.01, 1) ** 2
            correlation, means = _agreement(windows, weights, starts, track)
            noise = 2 * (1 - np.clip(correlation, 0, _BEST)) / _NUM_INDEPENDENT
            prior = np.where(sigma > _FINEST, _COARSE_PRIOR, noise / _PRIOR_PX**2)
            prior = prior.astype(np.float32)
            shifts += _steps(windows, means, track, prior, shifts)
            shifts = limit_steps(_centre(shifts, weights, starts, track), max_move)
            shifts[weights == 0] = 0
    windows, _ = _windows(patches, shifts, _FINEST)
    after, _ = _agreement(windows, weights, starts, track)
    windows, _ = _windows(patches, np.zeros_like(shifts), _FINEST)
    before, _ = _agreement(windows, weights, starts, track)
    return Alignment(
        shifts=shifts.astype(np.float64),
        before=before.astype(np.float64),
        after=after.astype(np.float64),
    )


def _centre(shifts: Float32, weights: Float32, starts: Index, track: Index) -> Float32:
    """Shifts whose weighted mean is 0: where a track lies as a whole is not seen."""
    total = np.add.reduceat(weights[:, None] * shifts, starts)
    total /= np.maximum(np.add.reduceat(weights, starts), 1e-6)[:, None]
    centred: Float32 = shifts - total[track]
    return centred


_OFFSETS = np.arange(-_RADIUS, _RADIUS + 1, dtype=np.float32)
_TAPER = np.exp(-(_OFFSETS[:, None] ** 2 + _OFFSETS**2) / (2 * _TAPER_PX**2))
_ROOTS = np.sqrt(_TAPER / _TAPER.sum()).astype(np.float32)  # of weights of sum 1


def _windows(
    patches: Float32 | Bytes, shifts: Float32, sigma: float
) -> tuple[Float32, Float32]:
    """Blurred, shifted, weighted windows of mean 0 and norm 1, and their contrast.

    Returns:
        [M, 15, 15], and the standard deviations [M] in grey levels.
    """
    side = patches.shape[1]
    pixels = np.arange(side, dtype=np.float32) - side // 2
    across, down = (
        _kernel(shifts[:, k, None] + _OFFSETS, pixels, sigma) for k in (0, 1)
    )
    windows = down @ patches.astype(np.float32) @ across.swapaxes(1, 2)
    windows -= np.einsum("ij,mij->m", _ROOTS**2, windows)[:, None, None]
    windows *= _ROOTS
    contrast = np.sqrt(np.einsum("mij,mij->m", windows, windows))
    windows /= np.maximum(contrast, 1e-6)[:, None, None]
    return windows, contrast


def _kernel(places: Float32, pixels: Float32, sigma: float) -> Float32:
    """Gaussian weights [M, 15, S] of a row of pixels around places [M, 15]."""
    kernel = np.exp(np.square((places[..., None] - pixels) / np.float32(sigma)) / -2)
    kernel /= kernel.sum(axis=2, keepdims=True)
    return np.asarray(kernel, np.float32)


def _agreement(
    windows: Float32, weights: Float32, starts: Index, track: Index
) -> tuple[Float32, Float32]:
    """Correlation [M] of each window with the mean of the others, and all means [T].

    -1 where there is no other, or the weight is 0. Means have norm 1.
    """
    weights = weights.astype(np.float32)
    totals = np.add.reduceat(weights[:, None, None] * windows, starts)
    squares = np.einsum("tij,tij->t", totals, totals)
    product = np.einsum("mij,mij->m", windows, totals[track])
    others = squares[track] - 2 * weights * product + weights**2
    alone = (others < 1e-6) | (weights == 0)
    others = np.sqrt(np.maximum(others, 1e-6))
    correlation = np.where(alone, np.float32(-1), (product - weights) / others)
    totals /= np.sqrt(np.maximum(squares, 1e-12))[:, None, None]
    return correlation, totals


def _steps(
    windows: Float32, means: Float32, track: Index, prior: Float32, shifts: Float32
) -> Float32:
    """Gauss-Newton steps [M, 2] that bring windows nearer to the means of tracks.

    `prior` [M] weighs the squares of the shifts after the step against the difference.
    """
    pictures = means / _ROOTS
    slopes = np.stack([np.gradient(pictures, axis=k) * _ROOTS for k in (2, 1)], axis=1)
    # What a change of brightness or of contrast would explain as well is no motion.
    slopes -= np.einsum("tkij,ij->tk", slopes, _ROOTS)[..., None, None] * _ROOTS
    along = np.einsum("tkij,tij->tk", slopes, means)
    slopes -= along[..., None, None] * means[:, None]
    hessian = np.einsum("tkij,tlij->tkl", slopes, slopes)[track]
    hessian += (prior + np.float32(1e-6))[:, None, None] * np.eye(2, dtype=np.float32)
    right = np.einsum("mkij,mij->mk", slopes[track], windows) + prior[:, None] * shifts
    return limit_steps(
        -np.linalg.solve(hessian, right[..., None])[..., 0], _MAX_STEP_PX
    )
