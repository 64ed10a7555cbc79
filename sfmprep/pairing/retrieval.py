"""Image pairs by similarity, from the local descriptors that are there anyway.

A VLAD (Jégou et al., CVPR 2010) over each image's best descriptors, reduced to their
principal components (Jégou et al., TPAMI 2012), with a vocabulary learned by k-means
from the capture itself, intra-normalised (Arandjelović and Zisserman, CVPR 2013). It
needs no weights and works for every kind of descriptor. In its place there may be the
rows that a network gives whole images (`nearest_pairs`).

Of the 6 nearest views by pose, with SIFT at 640 px, 20 neighbours hold for fox,
beer-video71 and buddha67 99.0, 97.2 and 93.5 %; with 64 words of all 128 dimensions,
equally long, 97.7, 93.9 and 86.1 %. The numbers were chosen on these three scenes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from sfmprep.config import RetrievalConfig
from sfmprep.models.matchers.pair_batches import unit_descriptors
from sfmprep.pairing.pairs import Pairs
from sfmprep.progress import Progress, silent
from sfmprep.stores.tables import FeatureStore

_VOCABULARY_SAMPLES = 100_000
_KMEANS_ITERATIONS = 15
_DESCRIPTORS_PER_IMAGE = 1024  # best first; with twice as many it finds less
_DIMENSIONS = 32  # that descriptors are reduced to
_BLOCK = 1024  # rows of the similarity matrix at once


def retrieval_pairs(
    names: Sequence[str],
    features: FeatureStore,
    config: RetrievalConfig,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Pairs:
    """Pairs each image with the most similar ones, in either direction.

    Args:
        names: The images; those without features are left out.
        features: Their features.
        config: How many neighbours, and the vocabulary.
        seed: Of the sample and of k-means.
        progress: Wraps the loop over images.

    Returns:
        Each image with its `num_neighbours` best of at least `min_similarity`; every
        image with every other where there are no more than that. None for fewer than
        two images.
    """
    described = [n for n in names if n in features and features.num_keypoints(n)]
    if len(described) < 2:
        return Pairs(())
    embedded = embed_images(
        described,
        features,
        num_clusters=config.num_clusters,
        seed=seed,
        progress=progress,
    )
    return nearest_pairs(described, embedded, config)


def nearest_pairs(
    names: Sequence[str], embedded: NDArray[np.float16], config: RetrievalConfig
) -> Pairs:
    """Pairs each image with those whose rows [N, D] are the most similar.

    Returns:
        As `retrieval_pairs`.
    """
    rows = torch.from_numpy(embedded)
    k = min(config.num_neighbours, len(names) - 1)
    pairs = []
    for start in range(0, len(rows), _BLOCK):
        block = rows[start : start + _BLOCK].float()
        similarity = torch.cat(
            [block @ part.float().T for part in torch.split(rows, _BLOCK)], 1
        )
        own = torch.arange(len(similarity))
        similarity[own, own + start] = -torch.inf
        best = similarity.topk(k, dim=1)
        for i, (values, columns) in enumerate(
            zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ):
            pairs += [
                (names[start + i], names[j])
                for value, j in zip(values, columns, strict=True)
                if value >= config.min_similarity
            ]
    return Pairs.of(pairs)


def most_similar(
    queries: Sequence[str],
    query_features: FeatureStore,
    names: Sequence[str],
    features: FeatureStore,
    *,
    count: int,
    num_clusters: int = 256,
    seed: int = 0,
) -> dict[str, list[str]]:
    """The images of a capture that are most similar to others, best first.

    Args:
        queries: What is asked for; one or more.
        query_features: Their features.
        names: Images of the capture; one or more.
        features: Their features, from which the vocabulary is learned.
        count: How many images each gets.
        num_clusters: Words of the vocabulary.
        seed: Of the sample and of k-means.
    """
    basis, words = learn_vocabulary(
        names, features, num_clusters=num_clusters, seed=seed
    )

    def embedded(which: Sequence[str], store: FeatureStore) -> torch.Tensor:
        return torch.stack(
            [_vlad(_best_descriptors(store, name) @ basis, words) for name in which]
        ).float()

    similarity = embedded(queries, query_features) @ embedded(names, features).T
    best = similarity.topk(min(count, len(names)), dim=1).indices.tolist()
    return {
        query: [names[k] for k in row] for query, row in zip(queries, best, strict=True)
    }


def embed_images(
    names: Sequence[str],
    features: FeatureStore,
    *,
    num_clusters: int = 256,
    seed: int = 0,
    progress: Progress = silent,
) -> NDArray[np.float16]:
    """One unit row [len(names), clusters * 32] per image; zero for no keypoints."""
    basis, words = learn_vocabulary(
        names, features, num_clusters=num_clusters, seed=seed
    )
    embedding = np.zeros((len(names), words.numel()), np.float16)
    for row, name in enumerate(progress(names, desc="retrieve", total=len(names))):
        descriptors = _best_descriptors(features, name) @ basis
        embedding[row] = _vlad(descriptors, words).numpy()
    return embedding


def learn_vocabulary(
    names: Sequence[str], features: FeatureStore, *, num_clusters: int, seed: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Learns from a sample of all descriptors what `embed_images` needs.

    Returns:
        The principal components [D, 32] and the k-means centres [clusters, 32]. They
        are fewer where descriptors are shorter, or fewer than 16 for each cluster.
    """
    random = np.random.default_rng(seed)
    share = max(_VOCABULARY_SAMPLES // len(names), 8)
    # a large capture is sampled image by image, to bound the time of reading it
    chosen = random.permutation(len(names))[: _VOCABULARY_SAMPLES // share]
    samples = []
    for k in sorted(chosen):
        descriptors = _best_descriptors(features, names[k])
        rows = random.permutation(len(descriptors))[:share]
        samples.append(descriptors[torch.from_numpy(rows)])
    points = torch.cat(samples)
    # not centred: that keeps the cosines
    basis = torch.linalg.eigh((points.T @ points).double()).eigenvectors
    basis = basis[:, -_DIMENSIONS:].float()
    return basis, _k_means(points @ basis, num_clusters, random)


def _k_means(
    points: torch.Tensor, num_clusters: int, random: np.random.Generator
) -> torch.Tensor:
    num_clusters = max(min(num_clusters, len(points) // 16), 1)
    start = random.choice(len(points), num_clusters, replace=False)
    centres = points[torch.from_numpy(start)]
    for _ in range(_KMEANS_ITERATIONS):
        nearest = _nearest_word(points, centres)
        sums = torch.zeros_like(centres).index_add_(0, nearest, points)
        counts = torch.bincount(nearest, minlength=num_clusters)
        kept = counts > 0
        centres[kept] = sums[kept] / counts[kept, None]
    return centres


def _best_descriptors(features: FeatureStore, name: str) -> torch.Tensor:
    found = features.get(name)
    return torch.from_numpy(unit_descriptors(found)[:_DESCRIPTORS_PER_IMAGE])


def _nearest_word(points: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    # |p - w|^2 without |p|^2, which is the same for all words
    return (points @ words.T - words.square().sum(1) / 2).argmax(1)


def _vlad(descriptors: torch.Tensor, words: torch.Tensor) -> torch.Tensor:
    nearest = _nearest_word(descriptors, words)
    residuals = descriptors - words[nearest]
    sums = torch.zeros_like(words).index_add_(0, nearest, residuals)
    sums = torch.nn.functional.normalize(sums, dim=1)
    return torch.nn.functional.normalize(sums.flatten(), dim=0)
