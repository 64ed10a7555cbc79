"""Retrieval finds images that share visual words, on made and on real features."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from sfmprep.capture.image_set import ImageSet
from sfmprep.config import RetrievalConfig, SiftConfig
from sfmprep.frontend.extract import extract_features
from sfmprep.models.extractors.sift import Sift
from sfmprep.pairing.pairs import Pairs, exhaustive_pairs
from sfmprep.pairing.retrieval import embed_images, retrieval_pairs
from sfmprep.stores.tables import FeatureStore
from sfmprep.types import Features, Float32

GROUPS, PER_GROUP = 6, 5


def described(rows: Float32) -> Features:
    rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    return Features(
        xy=np.zeros((len(rows), 2), np.float32),
        scores=np.ones(len(rows), np.float32),
        descriptors=rows.astype(np.float16),
        image_size=(640, 480),
    )


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """On a busy machine, threads that wait for each other take 100 times as long."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def store() -> Iterator[FeatureStore]:
    """Images `g/k` whose descriptors scatter around the words of group g."""
    random = np.random.default_rng(0)
    with FeatureStore() as store:
        for group in range(GROUPS):
            words = random.standard_normal((30, 64))
            for k in range(PER_GROUP):
                rows = words[random.integers(0, 30, 200)]
                rows = rows + 0.3 * random.standard_normal(rows.shape)
                store.append([(f"{group}/{k}", described(rows.astype(np.float32)))])
        store.append([("blank", described(np.empty((0, 64), np.float32)))])
        yield store


def embedded(
    names: list[str], store: FeatureStore, *, seed: int = 0
) -> NDArray[np.float16]:
    return np.stack(list(embed_images(names, store, num_clusters=16, seed=seed)))


def names_of(store: FeatureStore) -> list[str]:
    return sorted(store.names())


def test_images_that_share_visual_words_are_paired(store: FeatureStore) -> None:
    config = RetrievalConfig(num_neighbours=PER_GROUP - 1, num_clusters=32)
    pairs = retrieval_pairs(names_of(store), store, config)
    same_group = exhaustive_pairs(
        [f"{g}/{k}" for g in range(GROUPS) for k in range(PER_GROUP)]
    )
    assert set(pairs) == {(a, b) for a, b in same_group if a[0] == b[0]}


def test_pairs_are_those_of_either_direction(store: FeatureStore) -> None:
    names = [name for name in names_of(store) if name != "blank"]
    for k in (1, 3, 8):
        rows = embedded(names, store).astype(np.float32)
        similarity = rows @ rows.T
        np.fill_diagonal(similarity, -np.inf)
        best = np.argsort(-similarity, 1)[:, :k]
        wanted = Pairs.of((names[i], names[j]) for i, js in enumerate(best) for j in js)
        config = RetrievalConfig(num_neighbours=k, num_clusters=16)
        assert retrieval_pairs(names, store, config) == wanted


def test_searching_in_blocks_gives_the_same_pairs(
    store: FeatureStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = RetrievalConfig(num_neighbours=3, num_clusters=16)
    whole = retrieval_pairs(names_of(store), store, config)
    monkeypatch.setattr("sfmprep.pairing.retrieval._BLOCK", 7)
    assert retrieval_pairs(names_of(store), store, config) == whole


def test_rows_lie_beside_the_features_while_they_are_compared(
    store: FeatureStore, tmp_path: Path
) -> None:
    names = names_of(store)
    with FeatureStore(tmp_path / "features.h5", {}) as written:
        written.append([(name, store.get(name)) for name in names])
    config = RetrievalConfig(num_neighbours=3, num_clusters=16)
    with FeatureStore(tmp_path / "features.h5") as features:
        assert retrieval_pairs(names, features, config) == retrieval_pairs(
            names, store, config
        )
    assert [file.name for file in tmp_path.iterdir()] == ["features.h5"]


def test_each_image_with_every_other_where_there_are_few(store: FeatureStore) -> None:
    names = [name for name in names_of(store) if name != "blank"]
    for k in (len(names) - 1, 10**6):
        config = RetrievalConfig(num_neighbours=k)
        assert retrieval_pairs(names, store, config) == exhaustive_pairs(names)


def test_dissimilar_images_are_left_out_on_request(store: FeatureStore) -> None:
    config = RetrievalConfig(num_neighbours=100, num_clusters=32, min_similarity=0.5)
    pairs = retrieval_pairs(names_of(store), store, config)
    assert len(pairs) > 0
    assert all(a[0] == b[0] for a, b in pairs)


def test_same_seed_same_embedding_and_another_seed_another(store: FeatureStore) -> None:
    names = names_of(store)
    first, again, other = (embedded(names, store, seed=seed) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)


def test_embeddings_are_unit_rows_and_zero_for_a_blank_image(
    store: FeatureStore,
) -> None:
    names = names_of(store)
    rows = embedded(names, store)
    assert (rows.shape, rows.dtype) == ((len(names), 16 * 32), np.float16)
    lengths = np.linalg.norm(rows.astype(np.float32), axis=1)
    np.testing.assert_allclose(
        lengths, [float(name != "blank") for name in names], atol=2e-3
    )


@pytest.mark.parametrize("names", [[], ["0/0"], ["0/0", "blank"], ["0/0", "unknown"]])
def test_fewer_than_two_described_images_make_no_pair(
    store: FeatureStore, names: list[str]
) -> None:
    assert retrieval_pairs(names, store, RetrievalConfig()) == Pairs(())


def test_few_and_short_descriptors_are_enough() -> None:
    with FeatureStore() as store:
        for name, row in (("a", [1, 0]), ("b", [1, 0.1]), ("c", [0, 1])):
            store.append([(name, described(np.array([row], np.float32)))])
        pairs = retrieval_pairs(["a", "b", "c"], store, RetrievalConfig())
    assert pairs == exhaustive_pairs(["a", "b", "c"])


def test_uint8_descriptors_give_the_pairs_of_their_unit_rows() -> None:
    random = np.random.default_rng(0)
    rows = random.integers(1, 255, (4, 100, 32), np.uint8)
    rows[1], rows[3] = rows[0], rows[2]
    with FeatureStore() as store:
        for name, one in zip("abcd", rows, strict=True):
            features = Features(
                xy=np.zeros((100, 2), np.float32),
                scores=np.ones(100, np.float32),
                descriptors=one,
                image_size=(640, 480),
            )
            store.append([(name, features)])
        config = RetrievalConfig(num_neighbours=1)
        assert list(retrieval_pairs("abcd", store, config)) == [("a", "b"), ("c", "d")]


@pytest.mark.shared
@pytest.mark.slow
@pytest.mark.parametrize("scene", ["fox", "beer-video71"])
def test_neighbours_in_a_film_are_among_the_pairs(shared: Path, scene: str) -> None:
    images = ImageSet.scan(shared / "data" / "scenes" / scene / "images")
    names = images.names[:28]
    infos = {name: images.infos[name] for name in names}
    images = dataclasses.replace(images, names=names, infos=infos)
    with FeatureStore() as store:
        sift = Sift(SiftConfig(max_keypoints=1024))
        extract_features(images, sift, store, max_size=400)
        config = RetrievalConfig(num_neighbours=8)  # a third of all pairs
        pairs = set(retrieval_pairs(names, store, config))
    near = [
        (name, other) for k, name in enumerate(names) for other in names[k + 1 : k + 4]
    ]
    found = sum(pair in pairs for pair in near)
    assert found >= 0.95 * len(near)
