"""Two kinds of features of the same images in one: the second's rows come behind.

A keypoint of the second kind has its row in that store and, before it, all those of the
first. So what was matched or verified in rows of the first stays as it is.
`MatchLayers` has the matches of both.
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np

from sfmprep.stores.tables import FeatureStore
from sfmprep.types import Features


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
