"""The flow between grey pictures, as films ask for it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from sfmprep.config import FilmConfig
from sfmprep.models.build import build_flow_estimator
from sfmprep.models.flow.dis import Dis
from sfmprep.models.flow.pictures import FlowOfPictures
from tests.support.films import Walk

WALK = Walk()


def grey(place: float) -> np.ndarray:
    return cv2.cvtColor(WALK.at(place), cv2.COLOR_BGR2GRAY)


@pytest.mark.parametrize("has_guess", [False, True])
def test_of_films_it_is_opencvs_bit_for_bit(has_guess: bool) -> None:
    before, now = grey(0), grey(5)
    guess = np.full((*before.shape, 2), (-3, 0), np.float32) if has_guess else None
    flow = FlowOfPictures(build_flow_estimator(FilmConfig().flow))
    there, back = flow(before, now, guess)
    theirs = cv2.DISOpticalFlow_create(cv2.DISOPTICAL_FLOW_PRESET_FAST)
    start = None if guess is None else guess.copy()
    np.testing.assert_array_equal(there, theirs.calc(before, now, start))
    start = None if guess is None else -guess
    np.testing.assert_array_equal(back, theirs.calc(now, before, start))


def test_each_picture_of_a_film_is_prepared_once(monkeypatch) -> None:
    made, prepared = Dis(FilmConfig().flow), []
    prepare = made.prepare

    def noted(batch):
        prepared.append(len(batch))
        return prepare(batch)

    monkeypatch.setattr(made, "prepare", noted)
    flow = FlowOfPictures(made)
    pictures = [grey(k) for k in range(7)]
    for before, now in zip(pictures, pictures[1:], strict=False):
        flow(before, now)
    assert prepared == [1] * 7


def test_pictures_of_two_sizes_are_refused() -> None:
    flow = FlowOfPictures(Dis(FilmConfig().flow))
    with pytest.raises(ValueError, match="expected the same"):
        flow(grey(0), grey(0)[:-8])
