"""The records refuse arrays that do not fit together."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest

from sfmprep.types import DenseMatches, Features, ImageBatch, Matches

FEATURES: dict[str, Any] = {
    "xy": np.zeros((3, 2), np.float32),
    "scores": np.zeros(3, np.float32),
    "descriptors": np.zeros((3, 8), np.float16),
    "image_size": (4, 3),
}
MATCHES: dict[str, Any] = {
    "index": np.array([[0, 5], [1, 4]], np.int32),
    "scores": np.array([0.9, 0.8], np.float32),
}
DENSE: dict[str, Any] = {
    "xy0": np.zeros((3, 2), np.float32),
    "xy1": np.zeros((3, 2), np.float32),
    "scores": np.zeros(3, np.float32),
}
BATCH: dict[str, Any] = {
    "pixels": np.zeros((2, 3, 4, 6), np.float32),
    "sizes": np.full((2, 2), 6, np.int32),
    "orientations": np.ones(2, np.int32),
}


@pytest.mark.parametrize(
    ("kind", "good", "change", "message"),
    [
        (Features, FEATURES, {"xy": np.zeros((3, 3), np.float32)}, "xy.shape=(3, 3)"),
        (Features, FEATURES, {"xy": np.zeros((3, 2))}, "xy.dtype=float64"),
        (Features, FEATURES, {"xy": np.zeros((3, 2), np.float16)}, "xy.dtype=float16"),
        (Features, FEATURES, {"scores": np.zeros(2)}, "scores.shape=(2,)"),
        (Features, FEATURES, {"scores": np.zeros(3, int)}, "scores.dtype=int64"),
        (Features, FEATURES, {"descriptors": np.zeros(3)}, "descriptors.shape=(3,)"),
        (
            Features,
            FEATURES,
            {"descriptors": np.zeros((3, 8), np.int32)},
            "descriptors.dtype=int32",
        ),
        (Features, FEATURES, {"scale": np.zeros(4)}, "scale.shape=(4,)"),
        (Features, FEATURES, {"angle": np.zeros((3, 1))}, "angle.shape=(3, 1)"),
        (Matches, MATCHES, {"index": np.zeros((2, 3), int)}, "index.shape=(2, 3)"),
        (Matches, MATCHES, {"index": np.zeros((2, 2))}, "index.dtype=float64"),
        (Matches, MATCHES, {"scores": np.zeros(3)}, "scores.shape=(3,)"),
        (
            DenseMatches,
            DENSE,
            {"xy1": np.zeros((2, 2), np.float32)},
            "xy1.shape=(2, 2)",
        ),
        (DenseMatches, DENSE, {"xy0": np.zeros((3, 2))}, "xy0.dtype=float64"),
        (DenseMatches, DENSE, {"scores": np.zeros((3, 1))}, "scores.shape=(3, 1)"),
        (ImageBatch, BATCH, {"pixels": np.zeros((2, 1, 4, 6))}, "pixels.shape="),
        (ImageBatch, BATCH, {"sizes": np.zeros((1, 2), int)}, "sizes.shape=(1, 2)"),
        (ImageBatch, BATCH, {"sizes": np.zeros((2, 2))}, "sizes.dtype=float64"),
        (ImageBatch, BATCH, {"orientations": np.ones(3, int)}, "orientations.shape="),
    ],
)
def test_what_does_not_fit_is_refused_with_its_name(
    kind: Any, good: dict[str, Any], change: dict[str, Any], message: str
) -> None:
    kind(**good)
    with pytest.raises(ValueError) as caught:
        kind(**(good | change))
    assert str(caught.value).startswith(message)
    assert "but expected" in str(caught.value)


@pytest.mark.parametrize(
    ("kind", "good"), [(Features, FEATURES), (Matches, MATCHES), (ImageBatch, BATCH)]
)
def test_records_are_frozen(kind: Any, good: dict[str, Any]) -> None:
    record = kind(**good)
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(record, next(iter(good)), None)


def test_nothing_found_is_a_valid_record() -> None:
    none = Features(
        xy=np.empty((0, 2), np.float32),
        scores=np.empty(0, np.float32),
        descriptors=np.empty((0, 64), np.float32),
        image_size=(4, 3),
    )
    assert (len(none), len(Matches.none()), len(Matches.none().reversed())) == (0, 0, 0)


def test_reversed_matches_swap_columns_and_keep_scores() -> None:
    matches = Matches(**MATCHES)
    assert matches.reversed().index.tolist() == [[5, 0], [4, 1]]
    assert matches.reversed().index.flags.c_contiguous
    assert matches.reversed().scores.tolist() == matches.scores.tolist()
    assert matches.index.tolist() == [[0, 5], [1, 4]]


def test_network_size_is_width_and_height_of_the_pixels() -> None:
    assert ImageBatch(**BATCH).network_size == (6, 4)
    assert len(ImageBatch(**BATCH)) == 2
