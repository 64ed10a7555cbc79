"""Photographs in the order in which they were taken, by the times in their EXIF."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import PurePosixPath

from sfmprep.capture.image_file import ImageInfo
from sfmprep.pairing.pairs import natural_order

_MOST_A_SECOND = 120  # photographs; the fastest cameras take no more


def walks(infos: Mapping[str, ImageInfo], *, max_gap_s: float) -> list[list[str]]:
    """Photographs that one camera took shortly after each other, in that order.

    Each camera has a clock of its own, which may be wrong: nothing is said across
    cameras. These are told apart by serial number, or by folder where there is none,
    by make and model, and by whether they say how far they are from UTC. Where times
    are equal, as in a burst that is told to the second, the natural order of names
    goes on.

    Args:
        infos: Headers by name, in any order.
        max_gap_s: A walk ends where the next photograph comes later than this, seconds.

    Returns:
        Walks of two photographs or more, in the order of their cameras' first names.
        Photographs without a time are in none. Nor are those whose times tell nothing:
        of a camera all of whose times are the same, and of a second in which there are
        more than any camera takes, as where copying or editing wrote the time.
    """
    clocks: defaultdict[object, dict[str, float]] = defaultdict(dict)
    for name in natural_order(infos):
        info = infos[name]
        if info.taken is not None:
            place = info.serial or PurePosixPath(name).parent
            clock = (place, info.make, info.model, info.taken.is_utc)
            clocks[clock][name] = info.taken.seconds
    found: list[list[str]] = []
    for times in clocks.values():
        num_taken = Counter(map(math.floor, times.values()))
        if len(set(times.values())) == 1:
            continue
        last = -math.inf
        for name in sorted(times, key=times.__getitem__):  # stable: then by name
            if num_taken[math.floor(times[name])] > _MOST_A_SECOND:
                continue
            if times[name] - last > max_gap_s:
                found.append([])
            found[-1].append(name)
            last = times[name]
    return [walk for walk in found if len(walk) > 1]
