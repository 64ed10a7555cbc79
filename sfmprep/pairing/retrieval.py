"""Image pairs by similarity, from the local descriptors that are there anyway.

A VLAD (Jégou et al., CVPR 2010) over each image's best descriptors, reduced to their
principal components (Jégou et al., TPAMI 2012), with a vocabulary learned by k-means
from the capture itself, intra-normalised (Arandjelović and Zisserman, CVPR 2013). It
needs no weights and works for every kind of descriptor. In its place there may be the
rows that a network gives whole images (`nearest_partners`).

Of the 6 nearest views by pose, with SIFT at 640 px, 20 neighbours hold for fox,
beer-video71 and buddha67 99.0, 97.2 and 93.5 %; with 64 words of all 128 dimensions,
equally long, 97.7, 93.9 and 86.1 %. The numbers were chosen on these three scenes.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from tempfile import TemporaryFile

import numpy as np
import torch
from numpy.typing import NDArray

from sfmprep.config import RetrievalConfig
from sfmprep.models.matchers.pair_batches import unit_descriptors
from sfmprep.pairing.pairs import Pairs, Partners
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

    See `similar_partners`, which says for each image which these are.
    """
    return Pairs.of_partners(
        similar_partners(names, features, config, seed=seed, progress=progress)
    )


def similar_partners(
    names: Sequence[str],
    features: FeatureStore,
    config: RetrievalConfig,
    *,
    seed: int = 0,
    progress: Progress = silent,
) -> Partners:
    """Of each image those that are the most similar to it, by their descriptors.

    Args:
        names: The images; those without features are left out.
        features: Their features.
        config: How many neighbours, and the vocabulary.
        seed: Of the sample and of k-means.
        progress: Wraps the loop over images.

    Returns:
        Of each image its `num_neighbours` best of at least `min_similarity`; all others
        where there are no more than that. None for fewer than two images.
    """
    described = [n for n in names if n in features and features.num_keypoints(n)]
    if len(described) < 2:
        return {}
    # 16 kB an image are too much to be kept: they lie on disk, where the features do
    folder = None if features.path is None else features.path.absolute().parent
    with io.BytesIO() if folder is None else TemporaryFile(dir=folder) as file:
        row_bytes = 0
        for row in embed_images(
            described,
            features,
            num_clusters=config.num_clusters,
            seed=seed,
            progress=progress,
        ):
            row_bytes = file.write(row.tobytes())

        def read(start: int, stop: int) -> NDArray[np.float16]:
            file.seek(start * row_bytes)
            content = bytearray(file.read((stop - start) * row_bytes))
            return np.frombuffer(content, np.float16).reshape(stop - start, -1)

        return nearest_partners(described, read, config)


def nearest_partners(
    names: Sequence[str],
    read: Callable[[int, int], NDArray[np.float16]],
    config: RetrievalConfig,
) -> Partners:
    """Of each image those whose rows are the most similar to its own.

    Args:
        names: The images [N], two or more.
        read: Gives rows [stop - start, D] from `start` to before `stop`; some thousand
            are asked for at once, and each is asked for once in a thousand images.
        config: How many neighbours, and how similar at least.

    Returns:
        As `similar_partners`.
    """
    count = len(names)
    k = min(config.num_neighbours, count - 1)
    values = torch.full((count, k), -torch.inf)
    columns = torch.zeros((count, k), dtype=torch.long)

    def offer(own: slice, others: slice, similarity: torch.Tensor) -> None:
        """Keeps the best so far of rows and of what others [own, others] offer."""
        offered = torch.arange(others.start, others.stop).expand_as(similarity)
        best, chosen = torch.cat([values[own], similarity], 1).topk(k, dim=1)
        columns[own] = torch.cat([columns[own], offered], 1).gather(1, chosen)
        values[own] = best

    for start in range(0, count, _BLOCK):
        own = slice(start, min(start + _BLOCK, count))
        block = torch.from_numpy(read(own.start, own.stop)).float()
        similarity = block @ block.T
        offer(own, own, similarity.fill_diagonal_(-torch.inf))
        for low in range(own.stop, count, _BLOCK):  # what is alike is so both ways
            others = slice(low, min(low + _BLOCK, count))
            part = torch.from_numpy(read(others.start, others.stop)).float()
            similarity = block @ part.T
            offer(own, others, similarity)
            offer(others, own, similarity.T)
    return {
        name: [
            names[other]
            for value, other in zip(similarities, best, strict=True)
            if value >= config.min_similarity
        ]
        for name, similarities, best in zip(
            names, values.tolist(), columns.tolist(), strict=True
        )
    }


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
) -> Iterator[NDArray[np.float16]]:
    """Yields a unit row [clusters * 32] of each image; zero for no keypoints."""
    basis, words = learn_vocabulary(
        names, features, num_clusters=num_clusters, seed=seed
    )
    for name in progress(names, desc="retrieve", total=len(names)):
        row = _vlad(_best_descriptors(features, name) @ basis, words)
        yield row.numpy().astype(np.float16)


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
