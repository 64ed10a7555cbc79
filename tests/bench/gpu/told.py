"""What a part is told, and what it tells: written whenever something is found."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from tests.bench.measure import best_of, timed


class Told:
    """The device and the time of a part, and its findings as a file.

    Args:
        out: The file, or None for none.
        device: As torch names it.
        seconds: How long the part may take.
        results: Where files lie that are to be kept.
    """

    def __init__(
        self, out: Path | None, device: str, seconds: float, results: Path | None
    ) -> None:
        self.device = device
        self.is_small = device.startswith("cpu")
        """Whether this only shows that it runs."""
        self.results = results or Path()
        self.scratch = Path(os.environ.get("SFMPREP_GPU_SCRATCH", "build/gpu"))
        self._out = out
        self._end = time.monotonic() + seconds
        self._found: dict[str, Any] = {}

    @property
    def seconds_left(self) -> float:
        return self._end - time.monotonic()

    def __setitem__(self, name: str, value: Any) -> None:
        """Tells a finding; the file is replaced at once."""
        self._found[name] = value
        if self._out is not None:
            part = self._out.with_name(self._out.name + ".part")
            part.write_text(json.dumps(self._found), "utf-8")
            part.replace(self._out)

    def __getitem__(self, name: str) -> Any:
        return self._found[name]

    def hottest(self, run: Callable[[], object], limit: int = 12) -> list[list[Any]]:
        """The operations that took longest in one run: name, ms, times."""
        activities = [ProfilerActivity.CPU]
        if not self.is_small:
            activities.append(ProfilerActivity.CUDA)
        run()
        try:
            with profile(activities=activities) as profiled:
                timed(run)
        except RuntimeError as error:  # a machine may forbid it
            return [[f"not profiled: {str(error)[:200]}", 0.0, 0]]
        attribute = "self_cpu_time_total" if self.is_small else "self_device_time_total"
        rows = sorted(
            profiled.key_averages(), key=lambda row: -float(getattr(row, attribute))
        )
        return [
            [row.key[:100], round(getattr(row, attribute) / 1e3, 3), row.count]
            for row in rows[:limit]
        ]


def rate(run: Callable[[], object], count: int, repeats: int = 3) -> float:
    """How many of `count` a second, in the fastest run after one that warms up."""
    return count / best_of(run, repeats)


class PeakMemory:
    """The most GPU memory of tensors inside a `with` block, bytes; 0 on a CPU."""

    bytes = 0

    def __enter__(self) -> PeakMemory:
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()
        return self

    def __exit__(self, *_: object) -> None:
        if torch.cuda.is_available():
            self.bytes = torch.cuda.max_memory_allocated()
