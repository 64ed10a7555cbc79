"""Image pairs by similarity, from the local descriptors that are there anyway.

A VLAD (Jégou et al., CVPR 2010) over each image's best descriptors, with a vocabulary
learned by k-means from the capture itself, intra-normalised (Arandjelović and
Zisserman, CVPR 2013). It needs no weights and works for every kind of descriptor.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence

import numpy as np
import torch

from sfmprep.config import RetrievalConfig
from sfmprep.models.pair_batches import unit_descriptors
from sfmprep.pairs import Pairs
from sfmprep.progress import Progress, silent
from sfmprep.stores import FeatureStore
from sfmprep.types import Float32

logger = logging.getLogger(__name__)

_VOCABULARY_SAMPLES = 100_000
_KMEANS_ITERATIONS = 15
_DESCRIPTORS_PER_IMAGE = 1024  # best first; more change nothing but the time
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
        Each image with its `num_neighbours` best, made symmetric; every image with
        every other where there are no more than that. None for fewer than two images.
    """
    described = [n for n in names if n in features and features.num_keypoints(n)]
    if len(described) < 2:
        return Pairs(())
    embedding = embed_images(
        described,
        features,
        num_clusters=config.num_clusters,
        seed=seed,
        progress=progress,
    )
    k = min(config.num_neighbours, len(described) - 1)
    rows = torch.from_numpy(embedding)
    pairs = []
    for start in range(0, len(rows), _BLOCK):
        similarity = rows[start : start + _BLOCK] @ rows.T
        own = torch.arange(len(similarity))
        similarity[own, own + start] = -torch.inf
        best = similarity.topk(k, dim=1)
        for i, (values, columns) in enumerate(
            zip(best.values.tolist(), best.indices.tolist(), strict=True)
        ):
            pairs += [
                (described[start + i], described[j])
                for value, j in zip(values, columns, strict=True)
                if value >= config.min_similarity
            ]
    return Pairs.of(pairs)


def embed_images(
    names: Sequence[str],
    features: FeatureStore,
    *,
    num_clusters: int = 64,
    seed: int = 0,
    progress: Progress = silent,
) -> Float32:
    """One unit row [len(names), clusters * D] per image; zero for no keypoints."""
    words = learn_vocabulary(names, features, num_clusters=num_clusters, seed=seed)
    embedding = np.zeros((len(names), words.numel()), np.float32)
    for row, name in enumerate(progress(names, desc="retrieve", total=len(names))):
        embedding[row] = _vlad(_best_descriptors(features, name), words).numpy()
    return embedding


def learn_vocabulary(
    names: Sequence[str], features: FeatureStore, *, num_clusters: int, seed: int
) -> torch.Tensor:
    """The k-means centres [clusters, D] of a sample of all descriptors.

    Fewer clusters are used where there are fewer than 16 descriptors for each.
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
