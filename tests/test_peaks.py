from __future__ import annotations

import numpy as np
import pytest
import torch

from sfmprep.models.peaks import strict_maxima


@pytest.mark.parametrize("radius", [1, 2, 4])
def test_strict_maxima_equal_those_of_brute_force(radius: int) -> None:
    # Few levels make many ties.
    heatmap = np.random.default_rng(radius).integers(0, 90, (23, 31))
    expected = []
    for row in range(radius, 23 - radius):
        for column in range(radius, 31 - radius):
            window = heatmap[
                row - radius : row + radius + 1, column - radius : column + radius + 1
            ]
            value = heatmap[row, column]
            if value > 10 and (window >= value).sum() == 1:
                expected.append((column, row))
    found = strict_maxima(
        torch.from_numpy(heatmap).float(), radius=radius, threshold=10
    )
    assert [tuple(xy) for xy in found.tolist()] == expected
    assert len(expected) > 0


@pytest.mark.parametrize("shape", [(0, 0), (1, 9), (4, 4), (5, 5)])
def test_map_smaller_than_the_window_or_flat_has_no_maxima(shape) -> None:
    found = strict_maxima(torch.ones(shape), radius=2, threshold=0)
    assert found.shape == (0, 2)
