"""Features and matches of random content, and their comparison."""

from __future__ import annotations

import numpy as np

from sfmprep.types import Features, Matches


def features(
    seed: int,
    count: int = 5,
    *,
    dims: int = 8,
    dtype: type = np.float16,
    scale: bool = False,
    angle: bool = False,
) -> Features:
    random = np.random.default_rng(seed)
    return Features(
        xy=random.uniform(0, 4000, (count, 2)).astype(np.float32),
        scores=random.random(count, np.float32),
        descriptors=(random.random((count, dims)) * 200).astype(dtype),
        image_size=(640 + seed, 480),
        orientation=seed % 8 + 1,
        scale=random.random(count, np.float32) if scale else None,
        angle=random.random(count, np.float32) if angle else None,
    )


def matches(seed: int, count: int = 5) -> Matches:
    random = np.random.default_rng(seed)
    return Matches(
        index=random.permutation(100)[: 2 * count].reshape(-1, 2).astype(np.int32),
        scores=random.random(count).astype(np.float16).astype(np.float32),
    )


def expect_features(found: Features, wanted: Features) -> None:
    assert (found.image_size, found.orientation) == (
        wanted.image_size,
        wanted.orientation,
    )
    assert found.xy.dtype == found.scores.dtype == np.float32
    for name in ("xy", "scores", "descriptors", "scale", "angle"):
        expected = getattr(wanted, name)
        if expected is None:
            assert getattr(found, name) is None
        else:
            assert getattr(found, name).shape == expected.shape
            np.testing.assert_array_equal(getattr(found, name), expected)


def expect_matches(found: Matches, wanted: Matches) -> None:
    assert (found.index.dtype, found.scores.dtype) == (np.int32, np.float32)
    np.testing.assert_array_equal(found.index, wanted.index)
    np.testing.assert_array_equal(found.scores, wanted.scores)
