"""SuperGlue against Hugging Face's transformers, and its transport by itself."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from sfmprep.config import SuperGlueConfig
from sfmprep.errors import ConfigError, WeightsError
from sfmprep.models.matchers.superglue import SuperGlue
from sfmprep.models.matchers.transport import optimal_transport
from sfmprep.types import Features
from tests.support.superglue import random_superglue

SIZE = (128, 96)


def images(seed: int, *counts: int, noise: float = 0.05) -> list[Features]:
    """Selections of the same points, disturbed."""
    random = np.random.default_rng(seed)
    total = max(counts)
    xy = random.uniform(0.5, np.array(SIZE) - 0.5, (total, 2)).astype(np.float32)
    rows = random.normal(size=(total, 256))
    scores = random.uniform(0, 1, total).astype(np.float32)
    found = []
    for count in counts:
        chosen = random.permutation(total)[:count]
        disturbed = rows[chosen] + noise * random.normal(size=(count, 256))
        disturbed /= np.linalg.norm(disturbed, axis=1, keepdims=True)
        found.append(
            Features(
                xy=xy[chosen],
                scores=scores[chosen],
                descriptors=disturbed.astype(np.float32),
                image_size=SIZE,
            )
        )
    return found


# --------------------------------------------------------------------------- transport
def plain_transport(similarity: torch.Tensor, z: float, iterations: int) -> np.ndarray:
    """One pair with its bins, [M + 1, N + 1], in float64."""
    m, n = similarity.shape
    coupling = np.full((m + 1, n + 1), z)
    coupling[:m, :n] = similarity
    unit = -np.log(m + n)
    mu = np.append(np.full(m, unit), unit + np.log(n))
    nu = np.append(np.full(n, unit), unit + np.log(m))
    u, v = np.zeros(m + 1), np.zeros(n + 1)
    for _ in range(iterations):
        u = mu - np.logaddexp.reduce(coupling + v, axis=1)
        v = nu - np.logaddexp.reduce(coupling + u[:, None], axis=0)
    return coupling + u[:, None] + v - unit


@pytest.mark.parametrize("iterations", [0, 1, 20, 100])
def test_transport_of_padded_pairs_equals_the_plain_one(iterations: int) -> None:
    torch.manual_seed(0)
    counts = [(7, 5), (3, 9), (1, 1)]
    padded = torch.full((3, 7, 9), -1e30)
    for item, (m, n) in zip(padded, counts, strict=True):
        item[:m, :n] = 5 * torch.randn(m, n)
    found = optimal_transport(
        padded, torch.tensor(0.7), torch.tensor(counts), num_iterations=iterations
    )
    for k, (m, n) in enumerate(counts):
        expected = plain_transport(padded[k, :m, :n].double(), 0.7, iterations)
        close = {"atol": 2e-5, "rtol": 0}
        np.testing.assert_allclose(found.scores[k, :m, :n], expected[:m, :n], **close)
        np.testing.assert_allclose(found.bin0[k, :m], expected[:m, n], **close)
        np.testing.assert_allclose(found.bin1[k, :n], expected[m, :n], **close)


def test_columns_of_the_transport_with_their_bin_hold_one() -> None:
    torch.manual_seed(0)
    found = optimal_transport(
        5 * torch.randn(1, 30, 20),
        torch.tensor(1.0),
        torch.tensor([[30, 20]]),
        num_iterations=50,
    )
    whole = found.scores.exp().sum(1) + found.bin1.exp()
    torch.testing.assert_close(whole, torch.ones(1, 20), atol=1e-5, rtol=0)


def test_symmetric_transport_of_swapped_pairs_is_swapped_and_has_the_same_limit():
    torch.manual_seed(0)
    counts = torch.tensor([[9, 6], [4, 7]])
    padded = torch.full((2, 9, 7), -1e30)
    for item, (m, n) in zip(padded, counts.tolist(), strict=True):
        item[:m, :n] = 5 * torch.randn(m, n)
    z = torch.tensor(0.7)
    one, other, limit, plain = (
        optimal_transport(
            matrix, z, sizes, num_iterations=number, is_symmetric=is_symmetric
        )
        for matrix, sizes, number, is_symmetric in (
            (padded, counts, 20, True),
            (padded.mT, counts.flip(1), 20, True),
            (padded, counts, 600, True),
            (padded, counts, 600, False),
        )
    )
    for k, (m, n) in enumerate(counts.tolist()):
        close = {"atol": 2e-5, "rtol": 0}
        swapped = other.scores[k, :n, :m].T
        torch.testing.assert_close(one.scores[k, :m, :n], swapped, **close)
        torch.testing.assert_close(one.bin0[k, :m], other.bin1[k, :m], **close)
        found, expected = limit.scores[k, :m, :n], plain.scores[k, :m, :n]
        torch.testing.assert_close(found, expected, atol=1e-3, rtol=0)


# ----------------------------------------------------------------------------- network
@pytest.fixture(scope="module")
def reference() -> torch.nn.Module:
    return random_superglue()[0]


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("superglue") / "superglue.pth"
    torch.save(random_superglue()[1], path)
    return path


def test_matches_equal_those_of_the_public_reimplementation(
    reference: torch.nn.Module, weights: Path
) -> None:
    first, second = images(0, 46, 46)
    both = (first, second)
    columns = [
        torch.from_numpy(np.stack([getattr(each, name) for each in both])[None])
        for name in ("xy", "descriptors", "scores")
    ]
    with torch.inference_mode():
        theirs, their_scores, _, _ = reference._match_image_pair(
            columns[0] - 0.5, columns[1], columns[2], SIZE[1], SIZE[0]
        )
    matcher = SuperGlue(SuperGlueConfig(weights=weights, num_iterations=100))
    [mine] = matcher.match([(first, second)])
    rows = zip(theirs[0, 0].tolist(), their_scores[0, 0].tolist(), strict=True)
    expected = {(k, j): score for k, (j, score) in enumerate(rows) if j >= 0}
    assert len(expected) > 10
    found = {
        tuple(row): score
        for row, score in zip(mine.index.tolist(), mine.scores.tolist(), strict=True)
    }
    assert found.keys() == expected.keys()
    for pair, score in expected.items():
        assert found[pair] == pytest.approx(score, abs=1e-4)


def test_features_of_another_length_are_refused(weights: Path) -> None:
    matcher = SuperGlue(SuperGlueConfig(weights=weights))
    [image] = images(0, 5)
    short = Features(
        xy=image.xy,
        scores=image.scores,
        descriptors=image.descriptors[:, :64],
        image_size=SIZE,
    )
    with pytest.raises(ConfigError) as error:
        matcher.match([(short, short)])
    assert str(error.value) == (
        "superglue-outdoor matches descriptors of length 256, but these have 64. Name"
        " the matcher that goes with the features in the recipe."
    )


def test_a_file_without_a_key_is_refused(tmp_path: Path) -> None:
    tensors = random_superglue()[1]
    del tensors["bin_score"]
    torch.save(tensors, tmp_path / "s.pth")
    with pytest.raises(WeightsError, match="bin_score"):
        SuperGlue(SuperGlueConfig(weights=tmp_path / "s.pth"))


def test_a_batch_equals_its_pairs_one_by_one(weights: Path) -> None:
    matcher = SuperGlue(SuperGlueConfig(weights=weights))
    matcher._budget = 1 << 30  # all pairs in one batch
    sizes = ((40, 60), (60, 40), (1, 30), (33, 33), (5, 1))
    pairs = [tuple(images(seed, *size)) for seed, size in enumerate(sizes)]
    found = matcher.match(pairs)
    assert len(found[0]) > 10
    for together, pair in zip(found, pairs, strict=True):
        [alone] = matcher.match([pair])
        np.testing.assert_array_equal(together.index, alone.index)
        np.testing.assert_allclose(together.scores, alone.scores, atol=1e-4)


def test_an_image_without_features_has_no_matches(weights: Path) -> None:
    matcher = SuperGlue(SuperGlueConfig(weights=weights))
    [some] = images(0, 20)
    nothing = some.take(slice(0))
    pairs = [(nothing, some), (some, nothing), (nothing, nothing)]
    assert [len(found) for found in matcher.match(pairs)] == [0, 0, 0]
    assert matcher.match([]) == []
