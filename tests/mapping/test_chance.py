"""The fewest inliers that random matches are not expected to have."""

from __future__ import annotations

import math

import numpy as np
import pycolmap
import pytest

from sfmprep.mapping.chance import least_inliers, share_of_band


def expected(n: int, k: int, p: float, s: int) -> float:
    """The number of geometries with k inliers, as the paper has it."""
    return (n - s) * math.comb(n, k) * math.comb(k, s) * p ** (k - s)


@pytest.mark.parametrize("sample", [5, 7])
@pytest.mark.parametrize("n", [15, 40, 200, 600])
def test_least_inliers_is_where_the_expectation_falls_below_one(
    n: int, sample: int
) -> None:
    k = least_inliers(n, 0.02, sample)

    assert expected(n, k, 0.02, sample) < 1 <= expected(n, k - 1, 0.02, sample)
    assert all(expected(n, more, 0.02, sample) < 1 for more in range(k, n + 1))


def test_more_matches_and_larger_errors_need_more_inliers() -> None:
    assert [least_inliers(n, 0.017, 7) for n in (30, 100, 300, 1000)] == sorted(
        least_inliers(n, 0.017, 7) for n in (30, 100, 300, 1000)
    )
    assert least_inliers(300, 0.0085, 7) < least_inliers(300, 0.017, 7)


def test_too_few_matches_prove_nothing() -> None:
    assert least_inliers(0, 0.02, 7) == 8
    assert least_inliers(7, 0.02, 7) == 8
    assert least_inliers(9, 0.5, 7) == 10
    assert least_inliers(100, 1.0, 7) == 101


def test_share_of_band() -> None:
    # 800 x 600: the diagonal is 1000
    assert share_of_band((800, 600), 4) == pytest.approx(8 * 1000 / 480_000)
    assert share_of_band((8, 6), 4) == 1.0


def test_random_matches_do_not_reach_it() -> None:
    """RANSAC finds the best of many geometries; chance must stay below all the same."""
    rng = np.random.default_rng(0)
    camera = pycolmap.Camera.create_from_model_name(0, "SIMPLE_PINHOLE", 960, 800, 600)
    options = pycolmap.TwoViewGeometryOptions()
    options.ransac.random_seed, options.ransac.max_num_trials = 0, 1000
    share = share_of_band((800, 600), options.ransac.max_error)
    counts = []
    for n in (50, 100, 200, 400):
        rows = np.repeat(np.arange(n, dtype=np.uint32)[:, None], 2, axis=1)
        points = [rng.uniform(0, (800, 600), (n, 2)) for _ in range(2)]
        found = pycolmap.estimate_two_view_geometry(
            camera, points[0], camera, points[1], rows, options
        )
        counts.append(len(found.inlier_matches))
        assert counts[-1] < least_inliers(n, share, 7)
    assert max(counts) >= 15  # which COLMAP takes for a pair
