"""How the benchmarks measure: alternating runs, the machine's rates, and metadata."""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = ("torch", "kornia", "pycolmap", "numpy", "h5py", "opencv-python-headless")


@dataclass(frozen=True)
class Compared:
    """The plain way against ours, both in seconds (medians)."""

    plain_s: float
    ours_s: float
    repeats: int

    @property
    def ratio(self) -> float:
        """How many times longer the plain way takes."""
        return self.plain_s / self.ours_s

    def to_json(self) -> dict[str, float]:
        """Seconds and their ratio."""
        return {**asdict(self), "ratio": self.ratio}


def compare(
    plain: Callable[[], object],
    ours: Callable[[], object],
    *,
    repeats: int = 3,
    warm_up: bool = True,
) -> Compared:
    """Runs both by turns, so that a machine that gets slower slows both."""
    if warm_up:
        plain(), ours()
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(repeats):
        for run, times in zip((plain, ours), seconds, strict=True):
            times.append(timed(run))
    return Compared(*(statistics.median(times) for times in seconds), repeats)


def timed(run: Callable[[], object]) -> float:
    """Seconds of one run, with whatever it left to do on the GPU."""
    _synchronise()
    start = time.perf_counter()
    run()
    _synchronise()
    return time.perf_counter() - start


def best_of(run: Callable[[], object], repeats: int = 5) -> float:
    """Seconds of the fastest run, after one that does not count."""
    run()
    return min(timed(run) for _ in range(repeats))


def _synchronise() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_flops(device: str, dtype: torch.dtype) -> float:
    """FLOP/s of a large matrix product: the rate that networks are held against."""
    side = 2048 if device == "cpu" else 8192
    a = torch.randn(side, side, device=device, dtype=dtype)
    with torch.inference_mode():
        return 2 * side**3 / best_of(lambda: a @ a)


def copy_bandwidth(device: str) -> float:
    """Bytes/s, read and written, of a copy much larger than the caches."""
    source = torch.zeros(1 << 26 if device == "cpu" else 1 << 30, device=device)
    target = torch.empty_like(source)
    num_bytes = 2 * source.numel() * source.element_size()
    return num_bytes / best_of(lambda: target.copy_(source))


def metadata(device: str) -> dict[str, Any]:
    """Commit, versions and machine."""
    root = Path(__file__).resolve().parents[2]

    def git(*args: str) -> str:
        return subprocess.run(
            ["git", "-C", root, *args], capture_output=True, text=True, check=False
        ).stdout.strip()

    return {
        "commit": git("rev-parse", "HEAD") or None,
        "uncommitted_changes": bool(git("status", "--porcelain")),
        "date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "versions": {"python": platform.python_version()}
        | {library: version(library) for library in _LIBRARIES},
        "device": torch.cuda.get_device_name() if device != "cpu" else _processor(),
        "cores": os.cpu_count(),
        "torch_threads": torch.get_num_threads(),
        "load_average": os.getloadavg()[0],
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
    except OSError:
        return platform.processor()
    names = (line.partition(":")[2].strip() for line in lines if "model name" in line)
    return next(names, platform.processor())
