"""Tracks that contradict themselves, cut where their matches are weakest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sfmprep.geometry.tracks import Nodes, consistent
from sfmprep.types import Float32, Int32, Mask, Matches, Pair


@dataclass(frozen=True, kw_only=True, eq=False)
class PairLinks:
    """Matches of one pair, those of the features first."""

    index: Int32  # [M, 2] keypoints of both images
    scores: Float32  # [M] in 0..1
    num_sparse: int  # the first ones, which are never cut

    def matches(self, kept: Mask) -> Matches:
        """Some of them."""
        return Matches(index=self.index[kept], scores=self.scores[kept])


def cut_contradictions(
    joined: Mapping[Pair, PairLinks],
    tables: Mapping[str, Float32],
    radii: Mapping[str, float],
) -> list[Mask]:
    """Which matches of every pair stay, so that no track contradicts itself.

    A track does where two of its keypoints lie in one image and further apart than its
    radius along x or y. Contradictions of the features' matches alone stay. See
    `tracks.consistent`.

    Args:
        joined: The matches of all pairs; none gives an empty list.
        tables: The keypoints [K, 2] of every image, COLMAP pixels.
        radii: Of every image, pixels.
    """
    if not joined:
        return []
    counts = [len(xy) for xy in tables.values()]
    first = dict(zip(tables, np.cumsum([0, *counts]).tolist(), strict=False))
    links = list(joined.values())
    kept = consistent(
        np.concatenate(
            [
                each.index.astype(np.int64) + (first[name0], first[name1])
                for (name0, name1), each in joined.items()
            ]
        ),
        np.concatenate([each.scores for each in links]),
        np.concatenate([np.arange(len(k.index)) >= k.num_sparse for k in links]),
        Nodes(
            view=np.repeat(np.arange(len(tables)), counts),
            place=np.concatenate(list(tables.values())),
            limit=np.array([radii[name] for name in tables]),
        ),
    )
    return np.split(kept, np.cumsum([len(each.index) for each in links])[:-1])
