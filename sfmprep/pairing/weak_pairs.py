"""Which pairs a dearer matcher, or other features, should try after a cheap one."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from functools import cache

import numpy as np
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import connected_components

from sfmprep.pairing.pairs import Pairs, in_turn, natural_order
from sfmprep.types import Pair

_FEW_PARTNERS = 3  # an image with fewer strong pairs can be lost by one wrong pair
_MIN_PIECE = 3  # images; smaller pieces are tried image by image
_ALONE = -1


def weak_pairs(
    pairs: Pairs,
    num_inliers: Mapping[Pair, int],
    *,
    min_num_inliers: int,
    num_matches: Mapping[Pair, int] | None = None,
    per_image: int = 10,
) -> list[Pair]:
    """The pairs that stayed weak and matter, for a dearer matcher to try.

    A pair with `min_num_inliers` is strong. Most of the others show different things,
    or are of images that have better ones: in a capture that matches well none is
    tried. A weak pair matters

    1. to an image that no strong pairs join to two others or more: nothing is known of
       where it belongs, and each may be what joins it to the rest; and to one with
       fewer than three, if something says that both overlap, inliers or a strong
       neighbour in common;
    2. if it joins two pieces of the graph of strong pairs, of three images or more;
    3. if it has inliers, but its ends are more than four strong pairs apart: it would
       close a loop.

    Of each image, and each two pieces, the likeliest `per_image` are taken: those with
    the most inliers, then strong neighbours in common, then matches, then those that
    are nearest in the natural order of names. So the result is at most `per_image`
    pairs for each image that is badly held, whatever the capture's size.

    Args:
        pairs: What was matched.
        num_inliers: Verified matches of pairs, name0 < name1; 0 where one is missing.
        min_num_inliers: Of a strong pair.
        num_matches: Matches that were not verified; None for nothing known.
        per_image: At least 1.

    Returns:
        None of the strong pairs, the most wanted first: the likeliest of each image,
        then the second of each. No pair for no pairs.
    """
    graph = _Graph(pairs, num_inliers, num_matches or {}, min_num_inliers)
    strong, piece = graph.strong, graph.piece

    @cache
    def within_two(name: str) -> set[str]:
        return {name, *strong[name]}.union(*(strong[other] for other in strong[name]))

    def wanted_by(pair: Pair) -> Iterator[object]:
        """The images and the two pieces that a pair matters to."""
        name0, name1 = pair
        overlaps = num_inliers.get(pair, 0) > 0 or strong[name0] & strong[name1]
        for name in pair:
            is_few = len(strong[name]) < _FEW_PARTNERS
            if piece[name] == _ALONE or (is_few and overlaps):
                yield name
        if both := graph.joins(pair):
            yield both
        elif num_inliers.get(pair, 0) and within_two(name0).isdisjoint(
            within_two(name1)
        ):
            yield name0

    asked: defaultdict[object, list[Pair]] = defaultdict(list)
    for pair in graph.weak:
        for asking in wanted_by(pair):
            asked[asking].append(pair)
    return in_turn(graph.likeliest(wanted, per_image) for wanted in asked.values())


def pairs_of_badly_held(
    pairs: Pairs,
    num_inliers: Mapping[Pair, int],
    *,
    min_num_inliers: int,
    num_matches: Mapping[Pair, int] | None = None,
    per_image: int = 20,
) -> list[Pair]:
    """The pairs that other features should match, for images that are badly held.

    Badly held is an image that strong pairs join to fewer than two others; and of two
    pieces of the graph, of three images or more, those that may join them. Such images
    are paired with their likeliest partners, as in `weak_pairs`. Strong pairs among all
    of these come too: a new keypoint needs points of its own kind to be located by.

    Args:
        pairs: What was matched.
        num_inliers: Verified matches of pairs, name0 < name1; 0 where one is missing.
        min_num_inliers: Of a strong pair.
        num_matches: Matches that were not verified; None for nothing known.
        per_image: How many partners a badly held image may ask for, at least 1.

    Returns:
        The most wanted first, none where no image is badly held.
    """
    graph = _Graph(pairs, num_inliers, num_matches or {}, min_num_inliers)
    asked: defaultdict[object, list[Pair]] = defaultdict(list)
    for pair in graph.weak:
        for name in pair:
            if graph.piece[name] == _ALONE:
                asked[name].append(pair)
        if both := graph.joins(pair):
            asked[both].append(pair)
    found: list[Pair] = []
    among: set[str] = set()
    for pair in in_turn(graph.likeliest(p, per_image) for p in asked.values()):
        found.append(pair)
        for name in pair:
            if name not in among:
                others = sorted(graph.strong[name] & among)
                found += [(min(name, other), max(name, other)) for other in others]
                among.add(name)
    return found


class _Graph:
    """The strong pairs of a capture, and what is known of the others."""

    def __init__(
        self,
        pairs: Pairs,
        num_inliers: Mapping[Pair, int],
        num_matches: Mapping[Pair, int],
        min_num_inliers: int,
    ) -> None:
        self.strong: defaultdict[str, set[str]] = defaultdict(set)
        self.weak: list[Pair] = []
        for name0, name1 in pairs:
            if num_inliers.get((name0, name1), 0) >= min_num_inliers:
                self.strong[name0].add(name1)
                self.strong[name1].add(name0)
            else:
                self.weak.append((name0, name1))
        names = natural_order({name for pair in pairs for name in pair})
        self._position = {name: k for k, name in enumerate(names)}
        self._num_inliers, self._num_matches = num_inliers, num_matches
        self.piece = _pieces(names, self._position, self.strong)

    def joins(self, pair: Pair) -> tuple[int, int] | None:
        """The two pieces that a pair would join, if it does."""
        first, second = sorted(self.piece[name] for name in pair)
        return None if first in (_ALONE, second) else (first, second)

    def likeliest(self, pairs: Iterable[Pair], limit: int) -> list[Pair]:
        """Those with most inliers, common neighbours, matches, or nearest by name."""
        return sorted(pairs, key=self._unlikeliness)[:limit]

    def _unlikeliness(self, pair: Pair) -> tuple[int, int, int, int, Pair]:
        name0, name1 = pair
        return (
            -self._num_inliers.get(pair, 0),
            -len(self.strong[name0] & self.strong[name1]),
            -self._num_matches.get(pair, 0),
            abs(self._position[name1] - self._position[name0]),
            pair,
        )


def _pieces(
    names: Iterable[str],
    position: Mapping[str, int],
    strong: Mapping[str, set[str]],
) -> dict[str, int]:
    """The number of each image's piece of the graph; _ALONE in a small one."""
    ends = np.array(
        [(position[a], position[b]) for a, others in strong.items() for b in others],
        np.int64,
    ).reshape(-1, 2)
    graph = csr_matrix(
        (np.ones(len(ends), np.int8), (ends[:, 0], ends[:, 1])),
        shape=(len(position), len(position)),
    )
    _, labels = connected_components(graph, directed=False)
    size = np.bincount(labels, minlength=1)
    return {
        name: int(label) if size[label] >= _MIN_PIECE else _ALONE
        for name, label in zip(names, labels, strict=True)
    }
