"""Matches of several matchers of the same features, read as those of one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np

from sfmprep.stores.tables import MatchStore, Pair
from sfmprep.types import Int32, Matches


class MatchReader(AbstractContextManager["MatchReader"], Protocol):
    """What the readers of matches need; see `MatchStore`."""

    @property
    def place(self) -> str:
        """What messages call it."""
        ...

    @property
    def provenance(self) -> dict[str, Any]:
        """How the content was made."""
        ...

    def __len__(self) -> int: ...

    def __contains__(self, pair: Pair) -> bool: ...

    def pairs(self) -> list[Pair]:
        """The pairs that are here."""
        ...

    def num_matches(self) -> dict[Pair, int]:
        """How many matches each pair has."""
        ...

    def get(self, name0: str, name1: str) -> Matches:
        """The matches of a pair, columns in the order of the arguments."""
        ...

    def items(self) -> Iterator[tuple[Pair, Matches]]:
        """Yields all matches."""
        ...

    def indices(self) -> Iterator[tuple[Pair, Int32]]:
        """As `items`, rows alone."""
        ...


class MatchLayers:
    """The matches of a store, and on top those that another matcher found of some.

    A pair that both have gets the matches of the upper one, and those of the lower one
    whose keypoints are free in both images: what was verified is mostly kept, and what
    is wrong costs no more than verification.

    Args:
        lower: Of all pairs.
        upper: Of some of them; pairs that `lower` lacks are passed over.
    """

    def __init__(self, lower: MatchStore, upper: MatchStore) -> None:
        self._lower, self._upper = lower, upper
        self.place = f"{lower.place} with {upper.place}"

    @property
    def provenance(self) -> dict[str, Any]:
        """How both layers were made."""
        return {"lower": self._lower.provenance, "upper": self._upper.provenance}

    def __len__(self) -> int:
        return len(self._lower)

    def __contains__(self, pair: Pair) -> bool:
        return pair in self._lower

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._lower.close()
        self._upper.close()

    def pairs(self) -> list[Pair]:
        """The pairs that are here."""
        return self._lower.pairs()

    def num_matches(self) -> dict[Pair, int]:
        """How many matches each pair has; of two layers, in the one with more."""
        lower, upper = self._lower.num_matches(), self._upper.num_matches()
        return {pair: max(num, upper.get(pair, 0)) for pair, num in lower.items()}

    def get(self, name0: str, name1: str) -> Matches:
        """The matches of a pair, columns in the order of the arguments.

        Raises:
            StoreError: the pair is not here.
        """
        return self._with_upper((name0, name1), self._lower.get(name0, name1))

    def items(self) -> Iterator[tuple[Pair, Matches]]:
        """Yields all matches in the order of the lower store."""
        for pair, matches in self._lower.items():
            yield pair, self._with_upper(pair, matches)

    def indices(self) -> Iterator[tuple[Pair, Int32]]:
        """As `items`, rows alone."""
        for pair, index in self._lower.indices():
            if pair in self._upper:
                index = self.get(*pair).index
            yield pair, index

    def _with_upper(self, pair: Pair, matches: Matches) -> Matches:
        return (
            one_to_one(self._upper.get(*pair), matches)
            if pair in self._upper
            else matches
        )


def one_to_one(first: Matches, second: Matches) -> Matches:
    """All of the first, then those of the second whose keypoints the first leaves."""
    taken = np.isin(second.index[:, 0], first.index[:, 0])
    taken |= np.isin(second.index[:, 1], first.index[:, 1])
    return Matches(
        index=np.concatenate((first.index, second.index[~taken])),
        scores=np.concatenate((first.scores, second.scores[~taken])),
    )
