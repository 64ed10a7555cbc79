"""Which pairs a semi-dense matcher should try after the features."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping

from sfmprep.pairing.pairs import Pair, Pairs

_FEW_PARTNERS = 3  # an image with fewer strong pairs can be lost by one wrong pair
_MAX_TRIED = 10  # weak pairs that an image with enough partners may ask for


def weak_pairs(
    pairs: Pairs, num_inliers: Mapping[Pair, int], *, min_num_inliers: int
) -> Pairs:
    """The pairs that a semi-dense matcher should try after the features.

    A pair with `min_num_inliers` is strong and stays as it is. Most of the others show
    different things and would cost a second each to say so. Tried are

    1. all weak pairs of an image with fewer than 3 strong ones: nothing is known of
       where it belongs, and each of them may be what joins it to the rest;
    2. of every other image the 10 weak pairs most likely to overlap: those with the
       most inliers, then with the most strong neighbours in common, then those next to
       each other in the order of names. Pairs with neither are not among them.

    So images that matched well cost at most 10 tries each on average, whatever the
    capture's size, and rule 1 never leaves `pairs`, which for large captures are some
    20 an image.

    Args:
        pairs: What the features were matched on.
        num_inliers: Verified matches of pairs, name0 < name1; 0 where one is missing.
        min_num_inliers: Of a strong pair.

    Returns:
        None of the strong pairs; no pair for no pairs.
    """
    strong: defaultdict[str, set[str]] = defaultdict(set)
    weak: list[Pair] = []
    for name0, name1 in pairs:
        if num_inliers.get((name0, name1), 0) >= min_num_inliers:
            strong[name0].add(name1)
            strong[name1].add(name0)
        else:
            weak.append((name0, name1))
    position = {
        name: k for k, name in enumerate(sorted({n for pair in pairs for n in pair}))
    }
    chosen: set[Pair] = set()
    likely: defaultdict[str, list[tuple[int, int, int, Pair]]] = defaultdict(list)
    for pair in weak:
        name0, name1 = pair
        if min(len(strong[name0]), len(strong[name1])) < _FEW_PARTNERS:
            chosen.add(pair)
            continue
        inliers = num_inliers.get(pair, 0)
        shared = len(strong[name0] & strong[name1])
        if inliers or shared:
            gap = position[name1] - position[name0]
            for name in pair:
                likely[name].append((-inliers, -shared, gap, pair))
    for found in likely.values():
        chosen.update(pair for *_, pair in sorted(found)[:_MAX_TRIED])
    return Pairs.of(chosen)
