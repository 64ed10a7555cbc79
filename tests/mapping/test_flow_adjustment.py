"""Poses, inverse depths and focal length of a window, from noise and from nothing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sfmprep.mapping.flow_adjustment import (
    Sightings,
    Window,
    adjust_window,
    errors_px,
    focal_deviation,
)

FOCAL, SIZE = 500.0, (640, 480)


def scene(
    seed: int,
    num_frames: int = 6,
    num_points: int = 120,
    walk: float = 0.12,
    turn: float = 0.02,
) -> tuple[Window, Sightings]:
    """A camera that goes sideways and turns a little, and what it sees of a cloud."""
    rng = np.random.default_rng(seed)
    turns = np.cumsum(rng.normal(0, turn, (num_frames, 3)), axis=0)
    moves = np.cumsum(rng.normal((walk, 0, 0), walk / 4, (num_frames, 3)), axis=0)
    turns[0] = moves[0] = 0
    rotations = Rotation.from_rotvec(turns).as_matrix()
    half = np.array(SIZE) / 2
    pixel = rng.uniform(-0.9 * half, 0.9 * half, (num_points, 2))
    window = Window(
        rotations=rotations,
        translations=-np.einsum("nij,nj->ni", rotations, moves),
        focal=FOCAL,
        anchor=rng.integers(0, 2, num_points),
        pixel=pixel,
        inverse_depth=1 / rng.uniform(1.5, 8, num_points),
    )
    point, frame = (grid.ravel() for grid in np.mgrid[0:num_points, 0:num_frames])
    other = frame != window.anchor[point]
    point, frame = point[other], frame[other]
    nowhere = Sightings(
        point=point,
        frame=frame,
        xy=np.zeros((len(point), 2)),
        weight=np.ones(len(point)),
    )
    return window, replace(nowhere, xy=projected(window, nowhere))


def projected(window: Window, seen: Sightings) -> np.ndarray:
    """By whole matrices, point by point: another way than that of the code."""
    found = []
    for point, frame in zip(seen.point, seen.frame, strict=True):
        anchor = window.anchor[point]
        ray = np.append(window.pixel[point] / window.focal, 1)
        depth = 1 / window.inverse_depth[point]
        rotation, shift = window.rotations[anchor], window.translations[anchor]
        world = rotation.T @ (depth * ray - shift)
        x, y, z = window.rotations[frame] @ world + window.translations[frame]
        found.append((window.focal * x / z, window.focal * y / z))
    return np.array(found)


def disturbed(window: Window, seed: int, free: np.ndarray) -> Window:
    rng = np.random.default_rng([seed, 1])
    count = len(window.rotations)
    turn = Rotation.from_rotvec(rng.normal(0, 0.02, (count, 3))).as_matrix()
    rotations, translations = window.rotations.copy(), window.translations.copy()
    rotations[free] = (turn @ rotations)[free]
    translations[free] += rng.normal(0, 0.05, (count, 3))[free]
    return replace(
        window,
        rotations=rotations,
        translations=translations,
        focal=1.15 * window.focal,
        inverse_depth=window.inverse_depth
        * np.exp(rng.normal(0, 0.3, len(window.anchor))),
    )


def turn_deg(a: np.ndarray, b: np.ndarray) -> float:
    return float(
        np.degrees(Rotation.from_matrix(a @ b.swapaxes(-1, -2)).magnitude()).max()
    )


@pytest.mark.parametrize("seed", range(8))
def test_truth_is_found_again_from_disturbed_poses_depths_and_focal(seed: int) -> None:
    truth, seen = scene(seed)
    free = np.arange(6) >= 2
    start = disturbed(truth, seed, free)
    assert np.median(errors_px(start, seen)) > 3
    found = adjust_window(start, seen, free, guessed_focal=1.15 * FOCAL, max_steps=100)
    assert np.median(errors_px(found, seen)) < 0.02
    assert found.focal == pytest.approx(FOCAL, rel=0.005)
    assert turn_deg(found.rotations, truth.rotations) < 0.05
    np.testing.assert_allclose(found.translations, truth.translations, atol=0.01)
    near = np.abs(found.inverse_depth / truth.inverse_depth - 1)
    assert np.quantile(near, 0.9) < 0.02


@pytest.mark.parametrize("seed", range(4))
def test_noise_and_wrong_sightings_are_borne(seed: int) -> None:
    truth, seen = scene(seed, num_frames=8, num_points=300)
    rng = np.random.default_rng([seed, 2])
    xy = seen.xy + rng.normal(0, 0.3, seen.xy.shape)
    wrong = rng.uniform(size=len(xy)) < 0.1
    xy[wrong] += rng.uniform(-40, 40, (wrong.sum(), 2))
    free = np.arange(8) >= 2
    found = adjust_window(
        *(disturbed(truth, seed, free), replace(seen, xy=xy), free),
        guessed_focal=1.15 * FOCAL,
        max_steps=100,
    )
    assert found.focal == pytest.approx(FOCAL, rel=0.02)
    assert turn_deg(found.rotations, truth.rotations) < 0.3
    np.testing.assert_allclose(found.translations, truth.translations, atol=0.05)


def test_a_focal_length_is_as_sure_as_it_comes_out() -> None:
    """Its standard deviation is that of trials with other noise."""
    free, found, told = np.arange(6) >= 1, [], []
    for seed in range(12):
        truth, seen = scene(0)
        noise = np.random.default_rng(seed).normal(0, 0.4, seen.xy.shape)
        noisy = replace(seen, xy=seen.xy + noise)
        window = adjust_window(truth, noisy, free, guessed_focal=FOCAL)
        found.append(np.log(window.focal / FOCAL))
        told.append(focal_deviation(window, noisy, free))
    assert np.ptp(told) < 0.5 * np.mean(told)
    assert 0.5 < np.std(found) / np.mean(told) < 2


def test_a_focal_length_that_nothing_tells_is_not_sure() -> None:
    truth, seen = scene(0)
    free = np.arange(6) >= 1
    none = seen.take(np.zeros(len(seen.xy), bool))
    assert focal_deviation(truth, none, free) == np.inf
    # a plane from the front, and a camera that does not turn: focal length for depth
    still = replace(
        truth,
        rotations=np.tile(np.eye(3), (6, 1, 1)),
        translations=truth.translations * (1, 1, 0),
        inverse_depth=np.full(len(truth.inverse_depth), 0.25),
    )
    rng = np.random.default_rng(0)
    xy = projected(still, seen) + rng.normal(0, 0.4, seen.xy.shape)
    plain = focal_deviation(truth, seen, free)
    assert focal_deviation(still, replace(seen, xy=xy), free) > max(0.02, 4 * plain)


def test_sightings_count_by_their_weights() -> None:
    truth, seen = scene(0, num_frames=8, num_points=300)
    rng = np.random.default_rng(3)
    wrong = rng.uniform(size=len(seen.xy)) < 0.7
    xy = seen.xy + wrong[:, None] * (12, 5)  # so many alike that no loss bears them
    free = np.arange(8) >= 2
    start = disturbed(truth, 0, free)
    turns = []
    for weight in (np.where(wrong, 0.0, 0.5), np.ones(len(xy))):
        noted = replace(seen, xy=xy, weight=weight)
        how = {"guessed_focal": 1.15 * FOCAL, "max_steps": 100}
        found = adjust_window(start, noted, free, **how)
        turns.append(turn_deg(found.rotations, truth.rotations))
    assert turns[0] < 0.05 < turns[1]


@pytest.mark.parametrize("seed", range(4))
def test_nothing_known_is_enough_of_a_short_walk(seed: int) -> None:
    """No rotation, no translation, all depths 1: rotations and directions come out."""
    truth, seen = scene(seed, num_frames=5, num_points=200, walk=0.08)
    nothing = replace(
        truth,
        rotations=np.tile(np.eye(3), (5, 1, 1)),
        translations=np.zeros((5, 3)),
        inverse_depth=np.ones(200),
    )
    found = adjust_window(nothing, seen, np.arange(5) > 0, max_steps=200)
    assert np.median(errors_px(found, seen)) < 0.05
    assert turn_deg(found.rotations, truth.rotations) < 0.2
    ways = found.translations[1:], truth.translations[1:]
    a, b = (way / np.linalg.norm(way, axis=1, keepdims=True) for way in ways)
    assert np.degrees(np.arccos((a * b).sum(axis=1).clip(-1, 1))).max() < 2


@pytest.mark.parametrize("seed", range(4))
def test_a_camera_that_only_turns_finds_turns_and_focal_and_stays(seed: int) -> None:
    truth, seen = scene(seed, num_frames=6, num_points=150, walk=0, turn=0.08)
    start = replace(
        disturbed(truth, seed, np.arange(6) > 0), inverse_depth=np.ones(150)
    )
    found = adjust_window(
        start, seen, np.arange(6) > 0, guessed_focal=1.15 * FOCAL, max_steps=100
    )
    assert np.median(errors_px(found, seen)) < 0.1
    assert turn_deg(found.rotations, truth.rotations) < 0.5
    assert found.focal == pytest.approx(FOCAL, rel=0.05)
    assert np.isfinite(found.translations).all()
    # how far it went against how far the points are: nowhere
    moved = np.linalg.norm(found.translations, axis=1).max()
    assert moved * np.median(found.inverse_depth) < 0.02


def test_frames_that_hold_do_not_move_and_unseen_points_stay() -> None:
    truth, seen = scene(0)
    free = np.arange(6) >= 3
    start = disturbed(truth, 0, free)
    unseen = seen.take(seen.point != 7)
    found = adjust_window(start, unseen, free)
    assert (found.rotations[:3] == start.rotations[:3]).all()
    assert (found.translations[:3] == start.translations[:3]).all()
    assert found.focal == start.focal  # which is only moved where it is a guess
    assert found.inverse_depth[7] == start.inverse_depth[7]


def test_without_sightings_nothing_moves() -> None:
    truth, seen = scene(0)
    none = seen.take(np.zeros(len(seen.point), bool))
    found = adjust_window(truth, none, np.arange(6) > 0)
    assert (found.translations == truth.translations).all()


def test_a_frame_must_hold_the_world() -> None:
    truth, seen = scene(0)
    with pytest.raises(ValueError) as caught:
        adjust_window(truth, seen, np.ones(6, bool))
    assert str(caught.value) == (
        "all frames are free but expected one that holds the world"
    )


def test_what_is_behind_a_camera_has_no_error_that_counts() -> None:
    truth, seen = scene(0)
    behind = replace(truth, rotations=truth.rotations.copy())
    behind.rotations[5] = np.diag([-1.0, 1, -1]) @ behind.rotations[5]
    behind.translations[5] = 0
    errors = errors_px(behind, seen)
    assert np.isinf(errors[seen.frame == 5]).all()
    assert np.isfinite(errors[seen.frame == 4]).all()
