"""The way of a camera through a long film of points."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from sfmprep.mapping.odometry import Odometry

FOCAL, HALF = 520.0, np.array([320.0, 240.0])


class Film:
    """A camera that walks around a cloud of points, half a circle in 30 frames."""

    def __init__(self, seed: int, *, turns_only: bool = False) -> None:
        rng = np.random.default_rng(seed)
        cloud = rng.uniform(-1.5, 1.5, (900, 3))
        self.rotations, self.translations, self.xy = [], [], []
        for k in range(30):
            angle = np.radians(6 * k)
            turn = Rotation.from_euler("y", 0.1 * angle if turns_only else angle)
            rotation = turn.as_matrix()
            shift = np.array([0.05 * np.sin(k), 0.03 * np.cos(k), 5.0])
            if turns_only:
                shift = rotation @ (0, 0, 5)
            seen = cloud @ rotation.T + shift
            xy = FOCAL * seen[:, :2] / seen[:, 2:]
            self.rotations.append(rotation)
            self.translations.append(shift)
            self.xy.append(xy + rng.normal(0, 0.1, xy.shape))
        # a point is followed for eight frames and then lost
        self.begin = rng.integers(-8, 30, len(cloud))

    def followed(self, k: int) -> np.ndarray:
        """Points of frames k - 1 and k."""
        both = (np.abs(self.xy[k - 1]) < HALF) & (np.abs(self.xy[k]) < HALF)
        alive = (self.begin < k) & (self.begin >= k - 8)
        return np.flatnonzero(both.all(axis=1) & alive)


def run(film: Film, guess: float = 1.2 * 640) -> tuple[Odometry, list[float]]:
    way, kept = Odometry(guess), []
    for k in range(1, 30):
        track = film.followed(k)
        kept.append(way.push(track, film.xy[k - 1][track], film.xy[k][track]).mean())
    return way, kept


@pytest.mark.parametrize("seed", range(3))
def test_half_a_circle_and_the_focal_length_come_from_nothing(seed: int) -> None:
    film = Film(seed)
    way, kept = run(film)
    assert way.is_whole
    assert min(kept) > 0.97
    assert way.focal == pytest.approx(FOCAL, rel=0.03)
    assert abs(way.focal / FOCAL - 1) < 20 * way.focal_deviation < 0.2
    rotations, translations = way.cam_from_world
    true = np.array(film.rotations)
    step = (rotations @ rotations[0].T) @ (true @ true[0].T).swapaxes(1, 2)
    assert np.degrees(Rotation.from_matrix(step).magnitude()).max() < 4
    centres = -np.einsum("nji,nj->ni", rotations, translations)
    wanted = -np.einsum("nji,nj->ni", true, np.array(film.translations))
    # of the right shape: the best similarity leaves little
    a, b = centres - centres.mean(axis=0), wanted - wanted.mean(axis=0)
    u, s, vt = np.linalg.svd(a.T @ b)
    s[2] *= np.sign(np.linalg.det(u @ vt))
    left = 1 - s.sum() ** 2 / ((a**2).sum() * (b**2).sum())
    assert left < 0.01


def test_what_moves_by_itself_does_not_fit() -> None:
    film, rng = Film(0), np.random.default_rng(5)
    moving = rng.uniform(size=900) < 0.15
    for k in range(30):
        film.xy[k][moving] += (2.0 * k, -1.5 * k)
    way, gone, wrong = Odometry(1.2 * 640), np.zeros(900, bool), 0
    for k in range(1, 30):
        track = film.followed(k)
        track = track[~gone[track]]
        fits = way.push(track, film.xy[k - 1][track], film.xy[k][track])
        gone[track[~fits]] = True
        wrong += (~fits & ~moving[track]).sum()
    seen = film.begin < 24
    assert gone[moving & seen].mean() > 0.6
    assert wrong < 0.05 * seen.sum()


def test_a_camera_that_only_turns_stays_where_it_is() -> None:
    way, kept = run(Film(0, turns_only=True), guess=FOCAL)
    rotations, translations = way.cam_from_world
    assert np.isfinite(translations).all()
    assert min(kept) > 0.9
    turned = Rotation.from_matrix(rotations[-1]).magnitude()
    assert np.degrees(turned) == pytest.approx(0.6 * 29, rel=0.05)


def test_frames_that_share_nothing_are_told() -> None:
    film = Film(1)
    way = Odometry(FOCAL, is_known=True)
    for k in range(1, 12):
        track = film.followed(k)[: 0 if k == 8 else None]
        fits = way.push(track, film.xy[k - 1][track], film.xy[k][track])
        assert len(fits) == len(track)
        assert way.is_whole == (k < 8)
    assert way.focal == FOCAL and way.focal_deviation == np.inf
    assert len(way.cam_from_world[0]) == 12
