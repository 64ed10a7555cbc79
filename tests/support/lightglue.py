"""LightGlue of kornia, and how its matches are compared with ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from kornia.feature import LightGlue as KorniaLightGlue

from sfmprep.coords import centre_from_colmap
from sfmprep.types import Features, Matches


def kornia_match(
    network: KorniaLightGlue, pair: tuple[Features, Features]
) -> tuple[dict[tuple[int, int], float], int]:
    """The scores of kornia's matches, and after how many layers it stopped."""
    sides = {}
    for k, side in enumerate(pair):
        zeros = np.zeros(len(side), np.float32)
        sides[f"image{k}"] = {
            "keypoints": torch.from_numpy(centre_from_colmap(side.xy))[None],
            "descriptors": torch.from_numpy(side.descriptors)[None],
            "image_size": torch.tensor([side.image_size]),
            "scales": torch.from_numpy(zeros if side.scale is None else side.scale)[
                None
            ],
            "oris": torch.from_numpy(zeros if side.angle is None else side.angle)[None],
        }
    with torch.inference_mode():
        result = network(sides)
    index = result["matches"][0].tolist()
    scores = result["scores"][0].tolist()
    return dict(zip(map(tuple, index), scores, strict=True)), result["stop"]


def as_dict(matches: Matches) -> dict[tuple[int, int], float]:
    index = map(tuple, matches.index.tolist())
    return dict(zip(index, matches.scores.tolist(), strict=True))


def assert_close_in_half(found: Matches, exact: Matches) -> None:
    """Matches that are not close calls are the same, their scores within 0.02."""
    scores, expected = as_dict(found), as_dict(exact)
    common = scores.keys() & expected.keys()
    assert len(common) > 0.95 * len(expected) > 10
    for pair in common:
        assert scores[pair] == pytest.approx(expected[pair], abs=0.02)
    for pair in scores.keys() ^ expected.keys():
        assert {**scores, **expected}[pair] < 0.1
