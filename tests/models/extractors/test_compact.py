"""The packaged features: where they put their keypoints, what they weigh and cost."""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from sfmprep.config import CompactConfig
from sfmprep.errors import WeightsError
from sfmprep.models.extractors.compact import Compact
from sfmprep.models.extractors.compact_network import CompactNetwork
from sfmprep.types import Features
from sfmprep.weights import WEIGHTS, resolve_weights
from tests.support.batches import batch_of
from tests.support.textures import texture


@pytest.fixture(scope="module")
def compact() -> Compact:
    return Compact(CompactConfig(max_keypoints=1000))


def extract(compact: Compact, picture: np.ndarray) -> Features:
    [features] = compact.extract(batch_of(picture))
    return features


def residuals(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """From each point of the first to the nearest of the second, where within 1.5."""
    away = second[None] - first[:, None]
    distance = np.linalg.norm(away, axis=2)
    nearest = away[np.arange(len(first)), distance.argmin(1)]
    return nearest[distance.min(1) < 1.5]


@pytest.mark.parametrize("shift", [(1, 0), (0, 3), (5, 2), (8, 8), (13, 7)])
def test_keypoints_move_with_the_picture(
    compact: Compact, shift: tuple[int, int]
) -> None:
    picture = texture(0, (420, 340))
    x, y = shift
    here = extract(compact, picture[20:300, 20:380]).xy
    there = extract(compact, picture[20 + y : 300 + y, 20 + x : 380 + x]).xy
    inner = here[((here > 40) & (here < (320, 240))).all(1)]
    away = residuals(inner, there + np.float32(shift))
    assert len(away) > 0.8 * len(inner) > 50
    assert np.abs(away.mean(0)).max() < 0.1
    assert np.median(np.abs(away)) < 0.2


@pytest.mark.shared
def test_keypoints_lie_beside_their_places_as_the_teachers_do(
    compact: Compact, shared: Path
) -> None:
    """A habit of half a pixel turns with the picture, so that a turned one tells.

    It was measured once, like those of the extractor contract: half a pixel of the
    adapter would add to it. Within one orientation it moves all keypoints alike.
    """
    path = shared / "data" / "scenes" / "fountain-P11" / "images" / "0005.jpg"
    picture = np.asarray(Image.open(path).convert("RGB").reduce(2))
    height, width = picture.shape[:2]
    apart = []
    for angle in (-40, 40):
        turn = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, 1.0)
        here = extract(compact, picture).xy - 0.5
        there = (
            extract(compact, cv2.warpAffine(picture, turn, (width, height))).xy - 0.5
        )
        # where the found places are in the picture, and the habit seen from there
        back = cv2.invertAffineTransform(turn)
        found = (there @ back[:, :2].T + back[:, 2]).astype(np.float32)
        away = residuals(here, found)
        assert len(away) > 0.3 * len(here)
        apart.append(np.linalg.solve(back[:, :2] - np.eye(2), away.mean(0)))
    np.testing.assert_allclose(np.mean(apart, axis=0), (0.7, -0.2), atol=0.25)


def test_a_darker_picture_has_the_same_keypoints(compact: Compact) -> None:
    picture = texture(1, (320, 240))
    darker = (picture * 0.5 + 20).astype(np.uint8)
    here, there = extract(compact, picture), extract(compact, darker)
    away = residuals(here.xy, there.xy)
    assert len(away) > 0.85 * len(here)
    assert np.median(np.abs(away)) < 0.1


def test_the_network_is_small_and_its_weights_are_in_the_package() -> None:
    assert sum(p.numel() for p in CompactNetwork().parameters()) <= 700_000
    weights = resolve_weights("compact")
    assert weights.path.parent.name == "weights"
    assert weights.path.stat().st_size <= 1_500_000
    assert WEIGHTS["compact"].licence == "Apache-2.0"


def test_a_copy_without_the_packaged_weights_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("sfmprep.weights.resolve.__file__", "/nowhere/resolve.py")
    with pytest.raises(WeightsError, match="this copy of it lacks them"):
        resolve_weights("compact")


@pytest.mark.gpu
def test_half_precision_finds_the_same() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    picture = texture(2, (640, 480))
    single = extract(
        Compact(CompactConfig(), device="cuda", precision="float32"), picture
    )
    half = extract(Compact(CompactConfig(), device="cuda", precision="half"), picture)
    assert len(residuals(single.xy, half.xy)) > 0.9 * len(single)


def test_the_model_card_is_of_the_packaged_files() -> None:
    folder = resolve_weights("compact").path.parent
    card = (folder / "MODEL_CARD.md").read_text("utf-8")
    for name in ("compact", "compact-lightglue"):
        assert resolve_weights(name).sha256 in card
    assert not re.search(r"@[A-Z]", card)  # nothing was left to be filled in
