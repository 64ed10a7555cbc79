"""The authors' own weights, against kornia's networks with the same weights."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from kornia.feature import DISK
from kornia.feature import LightGlue as KorniaLightGlue

from sfmprep.config import AlikedConfig, DiskConfig, LightGlueConfig
from sfmprep.models.extractors.aliked import Aliked
from sfmprep.models.extractors.disk import Disk
from sfmprep.models.matchers.lightglue import LightGlue
from sfmprep.models.shared import adapter
from sfmprep.types import Features
from sfmprep.weights import load_tensors, resolve_weights
from tests.support.batches import photograph
from tests.support.lightglue import as_dict, kornia_match

pytestmark = pytest.mark.usefixtures("genuine_weights")
NUM_KEYPOINTS = 512
SIZE = 480
THRESHOLD = 0.1  # of scores, LightGlue's default

Pairs = list[tuple[Features, Features]]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@functools.cache
def features_of(features: str, path: Path, size: int) -> Features:
    network: Aliked | Disk
    if features == "disk":
        network = Disk(DiskConfig(max_keypoints=NUM_KEYPOINTS))
    else:
        network = Aliked(AlikedConfig(model="aliked-n16", max_keypoints=NUM_KEYPOINTS))
    return network.extract(photograph(path, size))[0]


def pairs_of(features: str, paths: list[Path], size: int = SIZE) -> Pairs:
    """Neighbours of each other, and the first with the last."""
    found = [features_of(features, path, size) for path in paths]
    return [*itertools.pairwise(found), (found[0], found[-1])]


@pytest.fixture
def real_pairs(features: str, shared: Path) -> Pairs:
    """Photographs of a church, near and far from each other, and one of a fountain."""
    scenes = shared / "data" / "scenes"
    church = sorted((scenes / "Herz-Jesus-P8" / "images").iterdir())
    fountain = sorted((scenes / "fountain-P11" / "images").iterdir())
    return pairs_of(features, [church[2], church[3], church[7], fountain[4]])


def kornia_network(features: str, **config: float) -> KorniaLightGlue:
    """Kornia's network with the authors' weights, renamed as kornia does."""
    settings = {"depth_confidence": -1, "width_confidence": -1, **config}
    network = KorniaLightGlue(features=None, input_dim=128, **settings).eval()
    tensors = load_tensors(resolve_weights(f"{features}-lightglue"))
    for layer in range(9):
        for kind in ("self_attn", "cross_attn"):
            old, new = f"{kind}.{layer}.", f"transformers.{layer}.{kind}."
            tensors = {
                new + name.removeprefix(old) if name.startswith(old) else name: tensor
                for name, tensor in tensors.items()
            }
    missing, unexpected = network.load_state_dict(tensors, strict=False)
    assert missing == ["confidence_thresholds"]  # a constant
    unused = [f"log_assignment.{layer}.r" for layer in range(9)]
    assert unexpected == (unused if features == "disk" else [])
    return network


def matcher(features: str, **config: object) -> LightGlue:
    settings = {"depth_confidence": None, "width_confidence": None, **config}
    return LightGlue(
        LightGlueConfig.model_validate({"model": f"{features}-lightglue", **settings})
    )


def assert_same(
    found: dict[tuple[int, int], float], expected: dict[tuple[int, int], float]
) -> None:
    """The same matches and scores; at the threshold rounding may decide."""
    for pair in found.keys() | expected.keys():
        assert found.get(pair, THRESHOLD) == pytest.approx(
            expected.get(pair, THRESHOLD), abs=1e-3
        )


@pytest.mark.parametrize("features", ["aliked", "disk"])
@pytest.mark.shared
@pytest.mark.slow
def test_lightglue_matches_photographs_as_kornia_does(
    features: str, real_pairs: Pairs
) -> None:
    network = kornia_network(features)
    found = matcher(features).match(real_pairs)
    sure = [(matches.scores > 0.9).mean() > 0.5 for matches in found]
    assert sure == [True, True, False, False]
    for pair, matches in zip(real_pairs, found, strict=True):
        assert_same(as_dict(matches), kornia_match(network, pair)[0])


@pytest.mark.parametrize("features", ["aliked", "disk"])
@pytest.mark.parametrize(("depth", "width"), [(None, 0.99), (0.95, 0.99)])
@pytest.mark.shared
@pytest.mark.slow
def test_the_trained_confidences_stop_and_prune_as_in_kornia(
    features: str, depth: float | None, width: float | None, real_pairs: Pairs
) -> None:
    network = kornia_network(
        features, depth_confidence=depth or -1, width_confidence=width or -1
    )
    adaptive = matcher(features, depth_confidence=depth, width_confidence=width)
    found = adaptive.match(real_pairs)
    expected = [kornia_match(network, pair) for pair in real_pairs]
    if depth is not None:
        assert len({stop for _, stop in expected}) > 1, "pairs must stop apart"
    for matches, (kornias, _) in zip(found, expected, strict=True):
        assert_same(as_dict(matches), kornias)


@pytest.mark.parametrize("features", ["aliked", "disk"])
@pytest.mark.shared
@pytest.mark.slow
def test_half_precision_keeps_the_matches_of_photographs(
    features: str, real_pairs: Pairs, monkeypatch: pytest.MonkeyPatch
) -> None:
    # On a CPU, which does half precision slowly, but by the same code.
    neighbours = real_pairs[:1]
    [expected] = matcher(features).match(neighbours)
    monkeypatch.setattr(adapter, "use_half", lambda precision, device: True)
    half = matcher(features)
    assert half._network.transformers[0].self_attn.Wqkv.weight.dtype == torch.half
    found, exact = (
        as_dict(matches) for matches in (half.match(neighbours)[0], expected)
    )
    common = found.keys() & exact.keys()
    moved = [abs(found[pair] - exact[pair]) for pair in common]
    assert len(common) > 0.99 * len(exact) > 300
    assert (np.mean(moved) < 0.002, max(moved) < 0.05) == (True, True)
    for pair in found.keys() ^ exact.keys():
        assert {**found, **exact}[pair] < THRESHOLD + 0.05


@pytest.mark.slow
@pytest.mark.parametrize("features", ["aliked", "disk"])
def test_rendered_pictures_are_matched_as_in_kornia(
    features: str, demo_scene: Path
) -> None:
    paths = sorted((demo_scene / "images").iterdir())[:2]
    pair = pairs_of(features, paths, 360)[0]
    [matches] = matcher(features).match([pair])
    assert len(matches) > 100
    assert_same(as_dict(matches), kornia_match(kornia_network(features), pair)[0])


@pytest.mark.shared
@pytest.mark.slow
def test_disk_finds_in_a_photograph_what_kornia_finds(shared: Path) -> None:
    scene = shared / "data" / "scenes" / "Herz-Jesus-P8" / "images"
    batch = photograph(scene / "0003.jpg", SIZE)
    width, height = batch.network_size
    [features] = Disk(DiskConfig(max_keypoints=100_000)).extract(batch)
    network = DISK().eval()
    tensors = load_tensors(resolve_weights("disk"))
    network.load_state_dict(
        {
            name.removeprefix("extractor."): tensor
            for name, tensor in tensors.items()
            if name.startswith("extractor.")
        }
    )
    with torch.inference_mode():
        [expected] = network(torch.from_numpy(batch.pixels), pad_if_not_divisible=True)

    scale = np.array(features.image_size) / (width, height)
    ours = np.rint(features.xy / scale - 0.5).astype(int)
    kornias = expected.keypoints.int().numpy()
    rows = {tuple(xy): row for row, xy in enumerate(kornias.tolist())}
    inside = ((ours >= 2) & (ours < np.array([width, height]) - 2)).all(1)
    assert inside.sum() > 1000
    same = [rows[tuple(xy)] for xy in ours[inside].tolist()]
    at_border = len(kornias) - len(same)
    assert 0 <= at_border < 0.05 * len(kornias)
    np.testing.assert_allclose(
        features.scores[inside], expected.detection_scores[same], atol=1e-3
    )
    np.testing.assert_allclose(
        features.descriptors[inside], expected.descriptors[same], atol=1e-4
    )
