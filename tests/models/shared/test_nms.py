from __future__ import annotations

import numpy as np
import pytest
import torch

from sfmprep.models.shared.nms import best_of_each, strict_maxima


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_strict_maxima_equal_those_of_brute_force(radius: int) -> None:
    # Few levels make many ties.
    heatmaps = np.random.default_rng(radius).integers(0, 90, (2, 23, 31))
    expected = []
    for item, heatmap in enumerate(heatmaps):
        for row in range(radius, 23 - radius):
            for column in range(radius, 31 - radius):
                window = heatmap[
                    row - radius : row + radius + 1,
                    column - radius : column + radius + 1,
                ]
                value = heatmap[row, column]
                if value > 10 and (window >= value).sum() == 1:
                    expected.append((item, row, column))
    found = strict_maxima(
        torch.from_numpy(heatmaps).float(), radius=radius, threshold=10
    )
    assert [tuple(place) for place in found.tolist()] == expected
    assert {item for item, *_ in expected} == {0, 1}


def test_pixel_at_the_threshold_is_no_maximum() -> None:
    heatmaps = torch.zeros(1, 9, 9)
    heatmaps[0, 4, 4] = 0.5
    assert len(strict_maxima(heatmaps, radius=2, threshold=0.5)) == 0
    found = strict_maxima(heatmaps, radius=2, threshold=0.49)
    assert found.tolist() == [[0, 4, 4]]


@pytest.mark.parametrize("shape", [(0, 0), (1, 9), (4, 4), (5, 5)])
def test_map_smaller_than_the_window_or_flat_has_no_maxima(shape) -> None:
    found = strict_maxima(torch.ones(2, *shape), radius=2, threshold=0)
    assert found.shape == (0, 3)


def test_best_of_each_image_in_falling_order_of_score() -> None:
    image = torch.tensor([2, 0, 2, 0, 2, 0, 2])
    scores = torch.tensor([0.1, 0.5, 0.9, 0.5, 0.3, 0.7, 0.2])
    best = best_of_each(image, scores, limit=3)
    assert best.tolist() == [5, 1, 3, 2, 4, 6]
    assert best_of_each(image, scores, limit=9).tolist() == [5, 1, 3, 2, 4, 6, 0]


def test_best_of_nothing_is_nothing() -> None:
    best = best_of_each(torch.empty(0, dtype=torch.int64), torch.empty(0), limit=3)
    assert best.shape == (0,)
