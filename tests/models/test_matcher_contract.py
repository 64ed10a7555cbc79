"""What `protocols.Matcher` promises, asked of every matcher."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from sfmprep.config import LightGlueConfig, NearestConfig
from sfmprep.errors import ConfigError
from sfmprep.models.build import build_matcher
from sfmprep.models.identity import identity
from sfmprep.models.matchers.lightglue import SHAPES
from sfmprep.models.matchers.lightglue_network import LightGlueNetwork
from sfmprep.types import Features, Matches

DIM = 64
# Real LighterGlue amplifies the rounding of float32 (in float64, 1e-12 is enough).
ATOL = 5e-4
SIZES = [(90, 130), (130, 90), (1, 40), (64, 64), (5, 1), (130, 131)]


def images(seed: int, *counts: int) -> tuple[Features, ...]:
    """Images that show the same points, each another and disturbed selection."""
    rng = np.random.default_rng(seed)
    total = max(counts)
    xy = rng.uniform(0.5, (639.5, 479.5), (total, 2)).astype(np.float32)
    rows = rng.normal(size=(total, DIM))
    found = []
    for count in counts:
        chosen = rng.permutation(total)[:count]
        noisy = rows[chosen] + rng.normal(scale=0.2, size=(count, DIM))
        noisy /= np.linalg.norm(noisy, axis=1, keepdims=True)
        found.append(
            Features(
                xy=xy[chosen],
                scores=np.ones(count, np.float32),
                descriptors=noisy.astype(np.float32),
                image_size=(640, 480),
            )
        )
    return tuple(found)


def nothing() -> Features:
    return Features(
        xy=np.empty((0, 2), np.float32),
        scores=np.empty(0, np.float32),
        descriptors=np.empty((0, DIM), np.float32),
        image_size=(640, 480),
    )


@pytest.fixture(scope="module")
def random_lightglue(tmp_path_factory):
    """Weights of a network with all heads that tells keypoints apart."""
    torch.manual_seed(1)
    network = LightGlueNetwork(SHAPES["lighterglue"], adaptive=True)
    with torch.no_grad():
        for layer in range(network.shape.num_layers):
            network.assignment(layer).matchability.weight.mul_(12)
            network.assignment(layer).final_proj.weight.mul_(6)
        for head in network.token_confidence:
            head.token[0].weight.mul_(8)
            head.token[0].bias.add_(2)
    path = tmp_path_factory.mktemp("weights") / "random.pth"
    torch.save(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def random_sinkhorn(tmp_path_factory):
    """The same with a head by transport, which its file names."""
    torch.manual_seed(1)
    shape = replace(SHAPES["compact-lightglue"], head="sinkhorn")
    network = LightGlueNetwork(shape, adaptive=True)
    with torch.no_grad():
        for layer in range(shape.num_layers):
            network.assignment(layer).final_proj.weight.mul_(6)
        for head in network.token_confidence:
            head.token[0].weight.mul_(8)
            head.token[0].bias.add_(2)
    path = tmp_path_factory.mktemp("weights") / "sinkhorn.safetensors"
    save_file(network.state_dict(), path, {"head": "sinkhorn"})
    return path


@pytest.fixture(
    params=[
        "nearest",
        "nearest without thresholds",
        "lightglue",
        "adaptive lightglue",
        "sinkhorn",
        "adaptive sinkhorn",
        pytest.param("real lighterglue", marks=pytest.mark.shared),
    ]
)
def matcher(request, random_lightglue, random_sinkhorn):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    request.addfinalizer(lambda: torch.set_num_threads(threads))
    match request.param:
        case "nearest":
            config = NearestConfig()
        case "nearest without thresholds":
            config = NearestConfig(ratio=None)
        case "lightglue" | "adaptive lightglue":
            adaptive = request.param != "lightglue"
            config = LightGlueConfig(
                model="lighterglue",
                weights=random_lightglue,
                min_score=0.0,
                depth_confidence=0.7 if adaptive else None,
                width_confidence=0.8 if adaptive else None,
            )
        case "sinkhorn" | "adaptive sinkhorn":
            adaptive = request.param != "sinkhorn"
            config = LightGlueConfig(
                model="compact-lightglue",
                weights=random_sinkhorn,
                min_score=0.0,
                depth_confidence=0.7 if adaptive else None,
                width_confidence=0.8 if adaptive else None,
            )
        case "real lighterglue":
            request.getfixturevalue("real_weights")
            config = LightGlueConfig(model="lighterglue")
    made = build_matcher(config)
    assert made.identity == identity(config)
    return made


@pytest.fixture
def pairs():
    return [images(k, *size) for k, size in enumerate(SIZES)]


def assert_same(found: Matches, expected: Matches) -> None:
    """Equal up to the order of equal scores and the rounding of float32."""
    order = [np.lexsort(m.index.T) for m in (found, expected)]
    np.testing.assert_array_equal(found.index[order[0]], expected.index[order[1]])
    np.testing.assert_allclose(
        found.scores[order[0]], expected.scores[order[1]], atol=ATOL
    )


def test_no_pairs_give_no_results(matcher):
    assert matcher.match([]) == []


def test_an_image_without_features_has_no_matches(matcher):
    (one,) = images(0, 20)
    pairs = [(nothing(), one), (one, nothing()), (nothing(), nothing()), (one, one)]
    found = matcher.match(pairs)
    assert [len(m) for m in found[:3]] == [0, 0, 0]
    assert len(found[3]) > 0
    assert found[0].index.shape == (0, 2)


def test_matches_are_rows_of_the_features_one_to_one_and_best_first(matcher, pairs):
    found = matcher.match(pairs)
    assert max(map(len, found)) > 20
    for matches, (first, second) in zip(found, pairs, strict=True):
        assert matches.index.dtype == np.int32
        assert matches.scores.dtype == np.float32
        assert (
            (matches.index >= 0) & (matches.index < (len(first), len(second)))
        ).all()
        for column in matches.index.T:
            assert len(np.unique(column)) == len(column)
        assert ((matches.scores >= 0) & (matches.scores <= 1)).all()
        assert (np.diff(matches.scores) <= 0).all()


def test_a_batch_equals_its_pairs_one_by_one(matcher, pairs):
    for matches, pair in zip(matcher.match(pairs), pairs, strict=True):
        assert_same(matches, matcher.match([pair])[0])


def test_the_order_of_pairs_is_kept(matcher, pairs):
    found = matcher.match(pairs)
    for matches, expected in zip(matcher.match(pairs[::-1]), found[::-1], strict=True):
        assert_same(matches, expected)


def test_repetition_gives_the_same_bits(matcher, pairs):
    for again, once in zip(matcher.match(pairs), matcher.match(pairs), strict=True):
        np.testing.assert_array_equal(again.index, once.index)
        np.testing.assert_array_equal(again.scores, once.scores)


def test_prepared_sides_give_the_same_bits(matcher, pairs):
    expected = matcher.match(pairs)
    prepared = [tuple(map(matcher.prepare, pair)) for pair in pairs]
    mixed = [(pairs[0][0], prepared[0][1]), *prepared[1:]]
    for sides in (prepared, mixed, prepared):  # and matching leaves them as they are
        for found, plain in zip(matcher.match(sides), expected, strict=True):
            np.testing.assert_array_equal(found.index, plain.index)
            np.testing.assert_array_equal(found.scores, plain.scores)


def test_prepared_sides_know_their_size(matcher):
    (image,) = images(0, 30)
    prepared = matcher.prepare(image)
    assert len(prepared) == 30
    assert prepared.num_bytes >= 30 * DIM * 4
    assert len(matcher.prepare(nothing())) == 0
    assert matcher.prepare(nothing()).num_bytes == 0


def test_each_image_is_prepared_once(matcher, monkeypatch):
    first, second, third = images(0, 20, 20, 20)
    seen = []
    prepare = matcher.prepare
    monkeypatch.setattr(matcher, "prepare", lambda f: seen.append(f) or prepare(f))
    matcher.match([(first, second), (first, third), (second, prepare(third))])
    assert list(map(id, seen)) == list(map(id, (first, second, third)))


def test_what_another_matcher_prepared_is_refused(matcher):
    class Foreign:
        num_bytes = 0

        def __len__(self):
            return 5

    with pytest.raises(ConfigError, match="is Foreign"):
        matcher.match([(Foreign(), nothing())])


def test_swapped_images_swap_the_columns(matcher, pairs):
    swapped = matcher.match([pair[::-1] for pair in pairs])
    for matches, expected in zip(swapped, matcher.match(pairs), strict=True):
        assert_same(matches.reversed(), expected)


def test_inputs_are_not_changed(matcher):
    pair = images(0, 30, 30)
    before = [(f.xy.copy(), f.descriptors.copy()) for f in pair]
    matcher.match([pair])
    for features, (xy, descriptors) in zip(pair, before, strict=True):
        np.testing.assert_array_equal(features.xy, xy)
        np.testing.assert_array_equal(features.descriptors, descriptors)


@pytest.mark.parametrize(
    "config", [NearestConfig(), LightGlueConfig(model="lighterglue")]
)
def test_half_precision_without_a_gpu_is_refused(config):
    with pytest.raises(ConfigError, match=r"engine\.precision"):
        build_matcher(config, precision="half")
