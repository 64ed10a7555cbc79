"""Two kinds of features of the same images, read as one: the second's rows come behind.

A keypoint of the second kind has its row in that store and, before it, all those of the
first. So what was matched or verified in rows of the first stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from typing import Any, Self

import numpy as np

from sfmprep.stores.layers import MatchReader
from sfmprep.stores.tables import FeatureStore, MatchStore, Pair
from sfmprep.types import Features, Int32, Matches


def join_keypoints(
    first: FeatureStore,
    second: FeatureStore,
    joined: FeatureStore,
    *,
    images: Collection[str],
) -> None:
    """Writes the keypoints of two stores into a third, image by image.

    Descriptors are left out (zero columns), and scale and angle, which not all kinds
    have. An image that only the second store has is left out.

    Args:
        first: Whose rows stay what they are.
        second: Whose rows come behind.
        joined: Where they go; it must not hold any of these images.
        images: Those that get rows of `second`.

    Raises:
        StoreError: `joined` holds one of the images.
    """
    for name, own in first.keypoints():
        xy, scores = own.xy, own.scores
        if name in images and name in second:
            other = second.get(name)
            xy = np.concatenate((xy, other.xy))
            scores = np.concatenate((scores, other.scores))
        features = Features(
            xy=xy,
            scores=scores,
            descriptors=np.empty((len(xy), 0), np.float16),
            image_size=own.image_size,
            orientation=own.orientation,
        )
        joined.append([(name, features)])


class MatchesBeside:
    """The matches of two kinds of features, in rows of `join_keypoints`.

    Args:
        first: In rows of the first kind; closed with this.
        second: In rows of the second kind; closed with this.
        starts: How many keypoints of the first kind each image of `second` has.
        tried: The pairs of `second` that count.
    """

    def __init__(
        self,
        first: MatchReader,
        second: MatchStore,
        starts: Mapping[str, int],
        tried: Collection[Pair],
    ) -> None:
        self._first, self._second = first, second
        self._starts = starts
        self._tried = frozenset(tried).intersection(second.pairs())
        self._added = [pair for pair in second.pairs() if self._is_only_beside(pair)]
        self.place = f"{first.place} with {second.place}"

    @property
    def provenance(self) -> dict[str, Any]:
        """How both were made."""
        return {"first": self._first.provenance, "second": self._second.provenance}

    def __len__(self) -> int:
        return len(self._first) + len(self._added)

    def __contains__(self, pair: Pair) -> bool:
        return pair in self._first or _in_order(pair) in self._tried

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes both; a second call does nothing."""
        self._first.close()
        self._second.close()

    def pairs(self) -> list[Pair]:
        """The pairs that are here."""
        return [*self._first.pairs(), *self._added]

    def num_matches(self) -> dict[Pair, int]:
        """How many matches each pair has, of both kinds together."""
        found = self._first.num_matches()
        second = self._second.num_matches()
        return found | {p: second[p] + found.get(p, 0) for p in self._tried}

    def get(self, name0: str, name1: str) -> Matches:
        """The matches of a pair, columns in the order of the arguments.

        Raises:
            StoreError: the pair is not here.
        """
        pair = name0, name1
        if _in_order(pair) not in self._tried:
            return self._first.get(name0, name1)
        second = self._second.get(name0, name1)
        offsets = np.array([self._starts[name] for name in pair], np.int32)
        index, scores = second.index + offsets, second.scores
        if pair in self._first:
            first = self._first.get(name0, name1)
            index = np.concatenate((first.index, index))
            scores = np.concatenate((first.scores, scores))
        return Matches(index=index, scores=scores)

    def items(self) -> Iterator[tuple[Pair, Matches]]:
        """Yields all matches, first those of the first kind in the order they have."""
        for pair, matches in self._first.items():
            yield pair, self.get(*pair) if pair in self._tried else matches
        for pair in self._added:
            yield pair, self.get(*pair)

    def indices(self) -> Iterator[tuple[Pair, Int32]]:
        """As `items`, rows alone."""
        for pair, index in self._first.indices():
            yield pair, self.get(*pair).index if pair in self._tried else index
        for pair in self._added:
            yield pair, self.get(*pair).index

    def _is_only_beside(self, pair: Pair) -> bool:
        return pair in self._tried and pair not in self._first


def _in_order(pair: Pair) -> Pair:
    return pair if pair[0] < pair[1] else pair[::-1]
