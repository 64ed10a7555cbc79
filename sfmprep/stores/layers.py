"""Matches of several matchers, also of several kinds of features, read as of one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Self, TypeAlias

import numpy as np

from sfmprep.stores.tables import MatchStore
from sfmprep.types import Int32, Matches, Pair


class MatchLayers:
    """The matches of a store, and on top those that another matcher found.

    A pair that both have gets the matches of the upper one, and those of the lower one
    whose keypoints are free in both images: what was verified is mostly kept, and what
    is wrong costs no more than verification.

    Args:
        lower: Closed with this.
        upper: Closed with this.
        tried: The pairs of `upper` that count; None for all.
        starts: Of matches of other features, whose keypoints come behind the first (see
            `join_keypoints`): how many keypoints an image has before them. None for
            matches of the same features.
    """

    def __init__(
        self,
        lower: MatchReader,
        upper: MatchStore,
        tried: Iterable[Pair] | None = None,
        starts: Mapping[str, int] | None = None,
    ) -> None:
        self._lower, self._upper, self._starts = lower, upper, starts
        there = upper.pairs()
        wanted = there if tried is None else set(tried).intersection(there)
        self._tried = frozenset(wanted)
        self._added = [pair for pair in there if self._is_only_above(pair)]
        self.place: str = f"{lower.place} with {upper.place}"

    @property
    def provenance(self) -> dict[str, Any]:
        """How both layers were made."""
        return {"lower": self._lower.provenance, "upper": self._upper.provenance}

    def __len__(self) -> int:
        return len(self._lower) + len(self._added)

    def __contains__(self, pair: Pair) -> bool:
        return pair in self._lower or _in_order(pair) in self._tried

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes both; a second call does nothing."""
        self._lower.close()
        self._upper.close()

    def pairs(self) -> list[Pair]:
        """The pairs that are here."""
        return [*self._lower.pairs(), *self._added]

    def num_matches(self) -> dict[Pair, int]:
        """How many matches each pair has; of two layers, in the one with more."""
        found = self._lower.num_matches()
        upper = self._upper.num_matches()
        return found | {p: max(upper[p], found.get(p, 0)) for p in self._tried}

    def get(self, name0: str, name1: str) -> Matches:
        """The matches of a pair, columns in the order of the arguments.

        Raises:
            StoreError: the pair is not here.
        """
        if _in_order((name0, name1)) not in self._tried:
            return self._lower.get(name0, name1)
        found = self._upper.get(name0, name1)
        if self._starts is not None:
            starts = np.array([self._starts[name0], self._starts[name1]], np.int32)
            found = Matches(index=found.index + starts, scores=found.scores)
        if (name0, name1) in self._lower:
            found = one_to_one(found, self._lower.get(name0, name1))
        return found

    def items(self) -> Iterator[tuple[Pair, Matches]]:
        """Yields all matches, first those of the lower store in its order."""
        for pair, matches in self._lower.items():
            yield pair, self.get(*pair) if pair in self._tried else matches
        for pair in self._added:
            yield pair, self.get(*pair)

    def indices(self) -> Iterator[tuple[Pair, Int32]]:
        """As `items`, rows alone."""
        for pair, index in self._lower.indices():
            yield pair, self.get(*pair).index if pair in self._tried else index
        for pair in self._added:
            yield pair, self.get(*pair).index

    def _is_only_above(self, pair: Pair) -> bool:
        return pair in self._tried and pair not in self._lower


MatchReader: TypeAlias = MatchStore | MatchLayers  # what reads matches


def _in_order(pair: Pair) -> Pair:
    """The pair with its lower name first."""
    return pair if pair[0] < pair[1] else pair[::-1]


def one_to_one(first: Matches, second: Matches) -> Matches:
    """All of the first, then those of the second whose keypoints the first leaves."""
    taken = np.isin(second.index[:, 0], first.index[:, 0])
    taken |= np.isin(second.index[:, 1], first.index[:, 1])
    return Matches(
        index=np.concatenate((first.index, second.index[~taken])),
        scores=np.concatenate((first.scores, second.scores[~taken])),
    )
