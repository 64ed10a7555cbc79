"""What whole runs compute again and again of the same photographs, computed once.

Two thirds of a run on the demo scene are COLMAP's SIFT and the trials of focal lengths,
both pure functions of arrays. Tests of what is around them ask for the fixture
`remembered` and go through the same code, but for these two answers, which come from
the first test that asked with the same arrays and settings. Tests of SIFT and of
calibration themselves do without.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pycolmap
import pytest

from sfmprep.mapping import focal_length
from sfmprep.mapping.focal_length import MatchedViews
from sfmprep.models.extractors.sift import Sift
from sfmprep.types import Features, Float64, ImageBatch
from tests.support.made_once import made_in

T = TypeVar("T")


def remember(patch: pytest.MonkeyPatch, common: Path) -> None:
    """Sets both functions to ones that look first whether another test asked.

    Answers are in the folder `common`, that of `made_once`.
    """
    extract, costs = Sift.extract, focal_length._costs

    def extract_each(self: Sift, batch: ImageBatch) -> list[Features]:
        found = []
        for k in range(len(batch)):
            item = ImageBatch(
                pixels=batch.pixels[k : k + 1],
                sizes=batch.sizes[k : k + 1],
                orientations=batch.orientations[k : k + 1],
            )
            question = ("sift", self._max_keypoints, dataclasses.astuple(item))
            one = functools.partial(extract, self, item)
            found += _answer(common, question, one)
        return found

    def costs_of(
        pair: MatchedViews,
        key: int,
        cameras: Mapping[int, pycolmap.Camera],
        trusted: Mapping[int, pycolmap.Camera],
        pixels: Float64,
        seed: int,
        trials: tuple[int, int],
    ) -> Float64:
        lenses = [
            {k: (each[k].model_name, each[k].params, each[k].width, each[k].height)}
            for each in (cameras, trusted)
            for k in sorted(set(pair.camera_ids) & each.keys())
        ]
        asked = pixels, seed, trials
        question = ("costs", dataclasses.astuple(pair), key, lenses, asked)
        ask = functools.partial(costs, pair, key, cameras, trusted, *asked)
        return _answer(common, question, ask)

    patch.setattr(Sift, "extract", extract_each)
    patch.setattr(focal_length, "_costs", costs_of)


def _answer(common: Path, question: Any, compute: Callable[[], T]) -> T:
    digest = hashlib.sha256(pickle.dumps(question)).hexdigest()

    def make(folder: Path) -> None:
        (folder / "answer.pickle").write_bytes(pickle.dumps(compute()))

    path = made_in(common, digest, make) / "answer.pickle"
    answer: T = pickle.loads(path.read_bytes())
    return answer
