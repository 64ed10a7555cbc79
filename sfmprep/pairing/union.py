"""Pairs that several ways propose, within one budget for all of them together."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from sfmprep.pairing.pairs import Pairs, Partners
from sfmprep.types import Index


@dataclass(frozen=True, kw_only=True)
class WayCount:
    """What became of the pairs that one way proposes."""

    way: str
    num_proposed: int
    num_kept: int  # whoever else proposes them


def pairs_within_budget(
    ways: Mapping[str, Partners],
    *,
    per_image: int | None,
) -> tuple[Pairs, list[WayCount]]:
    """Of what all ways propose, as many pairs as each image may ask for.

    Each image asks for the first choice of each way, so that a small budget parts no
    film; then for the others that most ways pair it with, whichever of the two was
    asked there. Among equals the ways take turns: the second choice of each, in the
    order of `ways`, then the third of each, and so on. A pair stays if one of its
    images asks for it, so these are at most `per_image` times the number of images, and
    no image is left out for those that many others want.

    Args:
        ways: By name what each way proposes: of images others, most wanted first.
        per_image: For how many others each image may ask; None: for all.

    Returns:
        The pairs, and what became of each way's; the same for the same input in any
        order of images.
    """
    names = sorted({n for way in ways.values() for n in (*way, *_all_partners(way))})
    row_of = {name: row for row, name in enumerate(names)}
    parts = [
        _asked(partners, row_of, number)
        for number, partners in enumerate(ways.values())
    ]
    owner, key, rank, way = np.concatenate([np.empty((4, 0), np.int64), *parts], axis=1)

    pairs, which = np.unique(key, return_inverse=True)
    proposed = np.unique(which * len(ways) + way)  # once by each way
    num_ways = np.bincount(proposed // max(len(ways), 1), minlength=len(pairs))

    # what each image asks for, in that order, and each pair where it stands first
    order = np.lexsort((way, rank, -num_ways[which], rank > 0, owner))
    owner, which = owner[order], which[order]
    _, first = np.unique(owner * len(pairs) + which, return_index=True)
    owner, which = owner[np.sort(first)], which[np.sort(first)]
    begins = np.searchsorted(owner, owner)  # row of the first that its owner asks for
    turn = np.arange(len(owner)) - begins
    chosen = which if per_image is None else which[turn < per_image]
    is_kept = np.zeros(len(pairs), bool)
    is_kept[chosen] = True

    kept = ((names[k // len(names)], names[k % len(names)]) for k in pairs[is_kept])
    counts = [
        WayCount(
            way=name,
            num_proposed=len(own := proposed[proposed % len(ways) == number]),
            num_kept=int(is_kept[own // len(ways)].sum()),
        )
        for number, name in enumerate(ways)
    ]
    return Pairs(tuple(kept)), counts


def _all_partners(partners: Partners) -> set[str]:
    return {name for others in partners.values() for name in others}


def _asked(partners: Partners, row_of: Mapping[str, int], way: int) -> Index:
    """Rows of images that ask, keys of pairs, ranks, and the way [4, A]."""
    lengths = [len(others) for others in partners.values()]
    owner = np.repeat(np.array([row_of[name] for name in partners], np.int64), lengths)
    other = np.fromiter(
        (row_of[name] for others in partners.values() for name in others), np.int64
    )
    rank = np.concatenate([np.empty(0, np.int64), *map(np.arange, lengths)])
    key = np.minimum(owner, other) * len(row_of) + np.maximum(owner, other)
    return np.stack([owner, key, rank, np.full(len(key), way)])
