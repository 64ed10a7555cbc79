"""Two kinds of features of the same images, read as one: the second's rows come behind.

A keypoint of the second kind has its row in that store and, before it, all those of the
first. So what was matched or verified in rows of the first stays as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import numpy as np

from sfmprep.stores.layers import MatchLayers, MatchReader, in_order
from sfmprep.stores.tables import FeatureStore, MatchStore, Pair
from sfmprep.types import Features, Matches


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


class MatchesBeside(MatchLayers):
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
        tried: Iterable[Pair],
    ) -> None:
        super().__init__(first, second, tried)
        self._starts = starts

    def num_matches(self) -> dict[Pair, int]:
        """How many matches each pair has, of both kinds together."""
        found = self._lower.num_matches()
        second = self._upper.num_matches()
        return found | {p: second[p] + found.get(p, 0) for p in self._tried}

    def get(self, name0: str, name1: str) -> Matches:
        """The matches of a pair, columns in the order of the arguments.

        Raises:
            StoreError: the pair is not here.
        """
        pair = name0, name1
        if in_order(pair) not in self._tried:
            return self._lower.get(name0, name1)
        second = self._upper.get(name0, name1)
        offsets = np.array([self._starts[name] for name in pair], np.int32)
        index, scores = second.index + offsets, second.scores
        if pair in self._lower:
            first = self._lower.get(name0, name1)
            index = np.concatenate((first.index, index))
            scores = np.concatenate((first.scores, scores))
        return Matches(index=index, scores=scores)
