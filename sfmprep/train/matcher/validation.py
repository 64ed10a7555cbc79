"""How good the matcher is on photographs that it does not learn from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sfmprep.models.matchers.lightglue_network import LightGlueNetwork
from sfmprep.models.protocols import Extractor
from sfmprep.train.matcher.assignment import assign
from sfmprep.train.matcher.data import Kind, make_batch, sample_pair
from sfmprep.train.network import PairBatch, layer_tokens
from sfmprep.train.pairs.photographs import Photograph

_MIN_SCORE = 0.1  # the default of `LightGlueConfig`
_COUNT = 256
_PADDING = -2.0  # below all cosines


class Tally(NamedTuple):
    """What was matched; undecided keypoints count nowhere."""

    num_right: int  # true matches that were found
    num_found: int  # matches with a keypoint of which the truth is known
    num_true: int

    @property
    def precision(self) -> float:
        """Share of the found matches that are true, 0 where none was found."""
        return self.num_right / max(1, self.num_found)

    @property
    def recall(self) -> float:
        """Share of the true matches that were found, 0 where there is none."""
        return self.num_right / max(1, self.num_true)


def validation_batches(
    photographs: Sequence[Photograph],
    extractor: Extractor,
    *,
    size: int,
    batch: int,
) -> dict[Kind, PairBatch]:
    """Samples a batch of each kind of synthetic pair, always the same ones."""
    batches: dict[Kind, PairBatch] = {}
    kinds: tuple[Kind, ...] = ("homography", "parallax")
    for kind in kinds:
        rng = np.random.default_rng(0)
        pairs = [sample_pair(rng, kind, photographs, size=size) for _ in range(batch)]
        batches[kind] = make_batch(pairs, extractor, count=_COUNT)
    return batches


@torch.inference_mode()
def validate(
    network: LightGlueNetwork, batches: Mapping[Kind, PairBatch]
) -> dict[str, float]:
    """Measures the last layer's matches at a score above 0.1, and nearest neighbours'.

    Returns:
        Precision and recall by name, such as `homography_precision`, in 0..1; those of
        mutual nearest neighbours are `homography_nearest_precision`.
    """
    values = {}
    for kind, batch in batches.items():
        tokens = layer_tokens(network, batch)[-1]
        head = network.assignment(network.shape.num_layers - 1)
        scores = assign(head, tokens, batch).scores
        for name, tally in (
            (kind, _tally(mutual_best(scores, np.log(_MIN_SCORE)), batch)),
            (f"{kind}_nearest", _tally(nearest_neighbours(batch), batch)),
        ):
            values[f"{name}_precision"] = tally.precision
            values[f"{name}_recall"] = tally.recall
    return values


def nearest_neighbours(batch: PairBatch) -> Tensor:
    """Matches [K, 3] of mutual nearest neighbours of the descriptors."""
    first, second = batch.sides
    cosine = first.descriptors @ second.descriptors.mT
    if first.is_real is not None:
        cosine = cosine.masked_fill(~first.is_real[..., None], _PADDING)
    if second.is_real is not None:
        cosine = cosine.masked_fill(~second.is_real[:, None], _PADDING)
    return mutual_best(cosine, -1.0)


def mutual_best(scores: Tensor, least: float) -> Tensor:
    """Matches [K, 3] (pair, row, column) that are best both ways and above `least`."""
    best, column = scores.max(2)
    is_match = (best == scores.amax(1).gather(1, column)) & (best > least)
    pair, row = is_match.nonzero(as_tuple=True)
    return torch.stack([pair, row, column[pair, row]], 1)


def _tally(found: Tensor, batch: PairBatch) -> Tally:
    pair, row0, row1 = found.unbind(1)
    known = []
    for k, side in enumerate(batch.sides):
        is_known = side.is_unmatchable.clone()
        is_known[batch.matches[:, 0], batch.matches[:, k + 1]] = True
        known.append(is_known)
    # A wrong match of two undecided keypoints cannot be told from a right one.
    counts = known[0][pair, row0] | known[1][pair, row1]
    right = set(map(tuple, batch.matches.tolist())) & set(map(tuple, found.tolist()))
    return Tally(len(right), int(counts.sum()), len(batch.matches))
