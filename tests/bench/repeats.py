"""How often a scene that repeats itself gives a wrong model, and whether it is said.

    python -m tests.bench.repeats                 (or: make bench-repeats)
    python -m tests.bench.repeats --scenes facades plain --seeds 4 --minutes 20

Captures made of points (`tests/support/repeats.py`), and rendered ones whose pixels our
packaged features match. Each is mapped by COLMAP's incremental mapper on one database,
once plainly and once as `map_trusted` does. A model is wrong if more than 2 % of the
pairs of its images are turned against each other by more than 8 degrees; it is flagged
if pairs are told that are overlaid in it, or neighbours in time that it contradicts.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import pycolmap

import sfmprep as sp
from sfmprep.evaluation.reference import CameraPose, read_reference
from sfmprep.mapping.trust import map_trusted
from tests.bench.scoreboard.rendered import FOURFOLD, TWIN_FRONTS, house
from tests.support.repeats import Scene, facades, fourfold, photograph, plain
from tests.support.repeats import wrong_share as share_turned

Truth = dict[str, CameraPose]
Maker = Callable[[int, Path], Truth]
"""Writes the verified `database.db` of a seed into a folder; returns the true poses."""

_WRONG = 0.02


def points(scene: Callable[[int], Scene], seed: int, folder: Path) -> Truth:
    """Of points, with noise, misses and wrong matches."""
    return photograph(scene(seed), folder / "database.db", seed=seed)


def pixels(sides: Sequence[int], every: int, seed: int, folder: Path) -> Truth:
    """Of rendered photographs of a house, all or every so many-th of a walk."""
    house(sides, folder, seed=seed, every=every)
    images = sp.scan(folder / "images")
    features = sp.extract(images, sp.Compact(max_keypoints=2048))
    matches = sp.match(
        features, sp.exhaustive_pairs(images.names), sp.Nearest(ratio=0.9)
    )
    sp.verify(images, features, matches, folder / "database.db", num_threads=1)
    return read_reference(folder)


SCENES: dict[str, Maker] = {
    "facades": partial(points, facades),
    "fourfold": partial(points, fourfold),
    "plain": partial(points, plain),
    "rendered-twin-fronts": partial(pixels, TWIN_FRONTS, 1),
    "rendered-fourfold": partial(pixels, FOURFOLD, 1),
    "rendered-plain": partial(pixels, (0, 1, 2, 3), 1),
    "rendered-twin-fronts-thinned": partial(pixels, TWIN_FRONTS, 3),
    "rendered-fourfold-thinned": partial(pixels, FOURFOLD, 3),
}


def map_plainly(database: Path, folder: Path) -> list[pycolmap.Reconstruction]:
    """COLMAP's incremental mapper, largest model first."""
    folder.mkdir()
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed, options.num_threads, options.extract_colors = 0, 1, False
    # a third of the global adjustments: what is laid on what does not depend on them
    options.ba_global_frames_ratio = options.ba_global_points_ratio = 1.4
    found = pycolmap.incremental_mapping(database, folder, folder, options).values()
    return sorted(found, key=lambda model: -model.num_reg_images())


def wrong_share(models: Sequence[pycolmap.Reconstruction], truth: Truth) -> float:
    """The largest share of wrongly turned pairs of some models; 0 without any."""
    return max((share_turned(model, truth) for model in models), default=0.0)


def play(name: str, seed: int) -> Counter[str]:
    """Maps a capture both ways and prints a line; returns what is counted of it."""
    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        truth = SCENES[name](seed, folder)
        found: list[list[pycolmap.Reconstruction]] = []
        mapping = 0.0

        def mapper(path: Path, place: Path) -> list[pycolmap.Reconstruction]:
            nonlocal mapping
            began = time.process_time()
            found.append(map_plainly(path, place))
            mapping += time.process_time() - began
            return found[-1]

        began = time.process_time()
        models, trust = map_trusted(folder / "database.db", folder / "models", mapper)
        checks = time.process_time() - began - mapping
        first, ours = wrong_share(found[0], truth), wrong_share(models, truth)
    flagged = bool(trust.overlaid or trust.broken)
    print(
        f"{name} {seed}: {len(truth)} images, wrong pairs {first:.2f} plainly,"
        f" {ours:.2f} in models of {[model.num_reg_images() for model in models]}"
        f" images after {len(found)} mappings, {len(trust.left_out)} pairs left out,"
        f" consistency {trust.consistency:.3f}{', flagged' if flagged else ''};"
        f" {mapping:.0f} s of mapping, {checks:.1f} s of checks",
        flush=True,
    )
    return Counter(
        played=1,
        plain=first > _WRONG,
        ours=ours > _WRONG,
        unflagged=ours > _WRONG and not flagged,
        false_alarm=ours <= _WRONG and flagged,
    )


def main() -> None:
    """Prints a line for each capture, and the counts as a table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--scenes", nargs="*", choices=SCENES, default=list(SCENES))
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--minutes", type=float, help="the most that it takes")
    options = parser.parse_args()
    until = time.monotonic() + 60 * (options.minutes or 1e6)
    pycolmap.logging.minloglevel = 3
    counts: dict[str, Counter[str]] = {name: Counter() for name in options.scenes}
    for seed in range(options.seeds):
        for name in options.scenes:
            if time.monotonic() < until:
                counts[name] += play(name, seed)
    print("| Scene | Seeds | Plainly wrong | Wrong | of these unsaid | False alarms |")
    print("|---|---|---|---|---|---|")
    for name, count in counts.items():
        keys = ("played", "plain", "ours", "unflagged", "false_alarm")
        print(f"| {name} | {' | '.join(str(count[key]) for key in keys)} |")


if __name__ == "__main__":
    main()
