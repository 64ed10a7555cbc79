"""Row 4 of the table: seconds a photograph and a pair.

SIFT is timed in turns with each column, so that the ratio holds on a busy machine.
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from sfmprep.capture.batches import load_batches
from sfmprep.frontend.match import pairs_per_batch
from sfmprep.progress import Progress, silent
from sfmprep.train.compare.columns import MAX_SIZE, Column
from sfmprep.train.compare.scenes import Scene
from sfmprep.types import Features

_NUM_PHOTOGRAPHS = 8


def speed_settings(scene: Scene) -> dict[str, Any]:
    """What is timed, beside the column."""
    return {"scene_sha256": scene.sha256, "photographs": _NUM_PHOTOGRAPHS}


def measure_speed(
    scene: Scene, column: Column, sift: Column, *, progress: Progress = silent
) -> dict[str, Any]:
    """Times extraction and matching of the first photographs of a scene.

    Images are decoded and features are prepared before. The first batch of each is not
    counted; the figure is the median of the others.

    Returns:
        `photograph_s`, `pair_s`, the same of SIFT in the same minute (`sift_...`),
        `size`, the (W, H) of a photograph, and torch's number of `threads`.
    """
    names = scene.images.names[:_NUM_PHOTOGRAPHS]
    batch_size = max(column.extractor.batch_size, sift.extractor.batch_size)
    loaded = load_batches(scene.images, names, max_size=MAX_SIZE, batch_size=batch_size)
    batches = [batch for _, batch in loaded]
    seconds: dict[str, list[float]] = {
        f"{owner}{what}_s": []
        for owner in ("", "sift_")
        for what in ("photograph", "pair")
    }
    sides = (("", column), ("sift_", sift))
    features: dict[str, list[Features]] = {owner: [] for owner, _ in sides}
    for batch in progress(batches, desc="photographs"):
        for owner, side in sides:
            start = time.monotonic()
            features[owner] += side.extractor.extract(batch)
            taken = time.monotonic() - start
            seconds[f"{owner}photograph_s"].append(taken / len(batch))
    pairs = list(itertools.combinations(range(len(names)), 2))
    size = pairs_per_batch("cpu")
    jobs = [pairs[k : k + size] for k in range(0, len(pairs), size)]
    prepared = {
        owner: [side.matcher.prepare(each) for each in features[owner]]
        for owner, side in sides
    }
    for job in progress(jobs, desc="pairs"):
        for owner, side in sides:
            chosen = [(prepared[owner][i], prepared[owner][j]) for i, j in job]
            start = time.monotonic()
            side.matcher.match(chosen)
            taken = time.monotonic() - start
            seconds[f"{owner}pair_s"].append(taken / len(job))
    return {
        **{name: _median_after_first(values) for name, values in seconds.items()},
        "size": batches[0].network_size,
        "threads": torch.get_num_threads(),
    }


def _median_after_first(values: Sequence[float]) -> float:
    return round(statistics.median(values[1:] or values), 4)
