"""How often a scene that repeats itself gives a wrong model, and whether it is said.

    python -m tests.bench.repeats [NUM_SEEDS] [SCENE ...]

Captures made of points (`tests/support/repeats.py`), each mapped by COLMAP's
incremental mapper with its defaults on the same database, once plainly and once as
`map_trusted` does. A model is wrong if more than 2 % of the pairs of its images are
turned against each other by more than 8 degrees; it is flagged if pairs are told that
are overlaid in it, or if less than 90 % of the pairs agree.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import pycolmap

from sfmprep.mapping.trust import map_trusted
from tests.support.repeats import facades, fourfold, photograph, plain, wrong_share

SCENES = {"facades": facades, "fourfold": fourfold, "plain": plain}
_WRONG = 0.02
_CONSISTENT = 0.9


def map_plainly(database: Path, folder: Path) -> list[pycolmap.Reconstruction]:
    """COLMAP's incremental mapper, largest model first."""
    folder.mkdir()
    options = pycolmap.IncrementalPipelineOptions()
    options.random_seed, options.num_threads, options.extract_colors = 0, 1, False
    # a third of the global adjustments: what is laid on what does not depend on them
    options.ba_global_frames_ratio = options.ba_global_points_ratio = 1.4
    found = pycolmap.incremental_mapping(database, folder, folder, options).values()
    return sorted(found, key=lambda model: -model.num_reg_images())


def main(num_seeds: int, names: list[str]) -> None:
    """Prints a line for each capture, and the counts."""
    pycolmap.logging.minloglevel = 3
    for name in names or SCENES:
        plain_wrong = ours_wrong = unflagged = 0
        for seed in range(num_seeds):
            with tempfile.TemporaryDirectory() as made:
                folder = Path(made)
                database = folder / "database.db"
                truth = photograph(SCENES[name](seed), database, seed=seed)
                first: list[float] = []

                def mapper(
                    path: Path, place: Path, first: list[float] = first
                ) -> list[pycolmap.Reconstruction]:
                    models = map_plainly(path, place)
                    first.append(wrong_share(models[0], truth))  # noqa: B023
                    return models

                models, trust = map_trusted(database, folder / "models", mapper)
                ours = max(wrong_share(model, truth) for model in models)
                flagged = bool(trust.overlaid) or trust.consistency < _CONSISTENT
                plain_wrong += first[0] > _WRONG
                ours_wrong += ours > _WRONG
                unflagged += ours > _WRONG and not flagged
                sizes = [model.num_reg_images() for model in models]
                print(
                    f"{name} {seed}: {len(truth)} images, wrong pairs"
                    f" {first[0]:.2f} plainly, {ours:.2f} in models of {sizes} images"
                    f" after {len(first)} mappings, {len(trust.left_out)} pairs left"
                    f" out, consistency {trust.consistency:.3f}"
                    f"{', flagged' if flagged else ''}",
                    flush=True,
                )
        print(
            f"{name}: of {num_seeds}, wrong plainly {plain_wrong}, wrong {ours_wrong},"
            f" of these not flagged {unflagged}",
            flush=True,
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 20, sys.argv[2:])
