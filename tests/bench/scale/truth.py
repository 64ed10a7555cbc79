"""A matcher that knows what keypoints show, and errs as matchers do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from sfmprep.models.protocols import Side
from sfmprep.types import Features, Float32, Index, Matches
from tests.bench.scale.city import point_ids

_LEAST_COSINE = 0.6  # of descriptors that are taken for one
_MOST_WRONG = 0.15  # of the matches of a pair
_LEAST = 5  # wrong matches, where nothing is right


@dataclass(frozen=True, eq=False)
class Known:
    """What an image shows."""

    points: Index  # [N]
    descriptors: Float32  # [N, D]

    @property
    def num_bytes(self) -> int:
        """How much memory it holds."""
        return self.points.nbytes + self.descriptors.nbytes

    def __len__(self) -> int:
        return len(self.points)


class TrueMatcher:
    """Matches keypoints that show one point from similar sides, and a few that do not.

    What it answers depends on the two images alone.
    """

    identity: Mapping[str, object] = {"type": "truth", "version": 1}

    def prepare(self, features: Features) -> Known:
        """Keeps what the keypoints show."""
        descriptors = features.descriptors.astype(np.float32)
        return Known(point_ids(features), descriptors)

    def match(self, pairs: Sequence[tuple[Side, Side]]) -> list[Matches]:
        """See `protocols.Matcher`."""
        return [self._match(*map(self._known, pair)) for pair in pairs]

    def _known(self, side: Side) -> Known:
        if isinstance(side, Features):
            return self.prepare(side)
        assert isinstance(side, Known)
        return side

    def _match(self, first: Known, second: Known) -> Matches:
        if not len(first) or not len(second):
            return Matches.none()
        _, row0, row1 = np.intersect1d(
            first.points, second.points, assume_unique=True, return_indices=True
        )
        alike = (first.descriptors[row0] * second.descriptors[row1]).sum(axis=1)
        good = alike >= _LEAST_COSINE
        row0, row1, alike = row0[good], row1[good], alike[good]
        rng = np.random.default_rng([int(s.points.sum()) for s in (first, second)])
        free = [
            rng.permutation(np.setdiff1d(np.arange(len(side)), taken))
            for side, taken in ((first, row0), (second, row1))
        ]
        wrong = min(_LEAST + int(_MOST_WRONG * len(row0)), *map(len, free))
        row0 = np.concatenate([row0, free[0][:wrong]])
        row1 = np.concatenate([row1, free[1][:wrong]])
        scores = np.concatenate([alike.clip(0, 1), np.full(wrong, 0.5)])
        order = np.argsort(-scores, kind="stable")
        index = np.stack([row0, row1], axis=1)[order]
        return Matches(
            index=index.astype(np.int32), scores=scores[order].astype(np.float32)
        )
