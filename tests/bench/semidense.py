"""Seconds and memory of semi-dense matching against kornia's LoFTR, in one run.

Usage: python -m tests.bench.semidense [--sizes 640 1024] [--rounds 2]

Each method runs in a process of its own, so that its memory is its own (Linux only);
they take turns, and the fastest round counts. Weights are random: they cost what trained
ones do, except that nothing matches, so the fine stage, 0.04 GFLOP a match in both, has
no part.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

import torch

METHODS = ("s2ld", "kornia LoFTR")
T = TypeVar("T")
_MODULE = "tests.bench.semidense"


def measure_semidense(
    sizes: Sequence[int] = (640, 1024), *, rounds: int = 2
) -> list[dict[str, float | int | str]]:
    """Measures a pair of square images of each size.

    Returns:
        A row for each size and way: `s2ld` from nothing and from prepared images, and
        `kornia LoFTR`; `seconds` of the fastest round and `peak_bytes`, by how much the
        memory of the process grew at most, over that with the model and what goes in.
        `cached_bytes` is what a prepared pair holds.
    """
    best: dict[tuple[int, str], dict[str, float | int | str]] = {}
    for _ in range(rounds):
        for size in sizes:
            for method in METHODS:
                command = (sys.executable, "-m", _MODULE, "--one", method, str(size))
                printed = subprocess.run(
                    command, check=True, capture_output=True, text=True
                ).stdout
                for row in json.loads(printed):
                    key = size, row["way"]
                    if key not in best or row["seconds"] < best[key]["seconds"]:
                        best[key] = row
    return list(best.values())


def _measure_one(method: str, size: int) -> list[dict[str, float | int | str]]:
    torch.manual_seed(0)
    pixels = torch.rand(2, 3, size, size)
    if method == "s2ld":
        return _measure_s2ld(pixels)
    from kornia.feature import LoFTR

    network = LoFTR(pretrained=None).eval()
    grey = {f"image{side}": pixels[side, None, :1] for side in (0, 1)}
    with torch.inference_mode():
        _, seconds, peak = _measured(lambda: network(grey))
    return [_row(method, size, seconds, peak)]


def _measure_s2ld(pixels: torch.Tensor) -> list[dict[str, float | int | str]]:
    import numpy as np
    from safetensors.torch import save_file

    from sfmprep.config import S2ldConfig
    from sfmprep.models.s2ld import S2ld
    from sfmprep.models.s2ld_network import S2ldNetwork
    from sfmprep.types import ImageBatch

    size = pixels.shape[-1]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "s2ld.safetensors"
        save_file(S2ldNetwork().state_dict(), path)
        matcher = S2ld(S2ldConfig(max_size=size, weights=path))
    batches = [
        ImageBatch(
            pixels=each[None].numpy(),
            sizes=np.full((1, 2), size, np.int32),
            orientations=np.ones(1, np.int32),
        )
        for each in pixels
    ]
    pair, prepare_s, prepare_peak = _measured(
        lambda: [matcher.prepare(batch)[0] for batch in batches]
    )
    cached = sum(image.num_bytes for image in pair)
    _, match_s, match_peak = _measured(lambda: matcher.match([pair]))
    peak = max(prepare_peak, cached + match_peak)
    return [
        _row("s2ld", size, prepare_s + match_s, peak),
        _row("s2ld, prepared", size, match_s, match_peak) | {"cached_bytes": cached},
    ]


def _row(
    way: str, size: int, seconds: float, peak_bytes: int
) -> dict[str, float | int | str]:
    return {"way": way, "size": size, "seconds": seconds, "peak_bytes": peak_bytes}


def _measured(run: Callable[[], T]) -> tuple[T, float, int]:
    """What it returns, its seconds, and by how many bytes the process grew at most."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is now what there is
    before = _memory("VmRSS")
    start = time.perf_counter()
    result = run()
    seconds = time.perf_counter() - start
    return result, seconds, _memory("VmHWM") - before


def _memory(name: str) -> int:
    """Bytes of this process, as Linux counts them under this name."""
    lines = Path("/proc/self/status").read_text().splitlines()
    (line,) = (line for line in lines if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sizes", type=int, nargs="+", default=(640, 1024))
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--one", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.one:
        method, size = arguments.one
        print(json.dumps(_measure_one(method, int(size))))
        return
    print(f"{'size':>5} {'way':15} {'seconds':>8} {'peak MB':>8} {'cached MB':>9}")
    for row in measure_semidense(arguments.sizes, rounds=arguments.rounds):
        cached = f"{row['cached_bytes'] / 1e6:.0f}" if "cached_bytes" in row else ""
        print(
            f"{row['size']:5} {row['way']:15} {row['seconds']:8.2f}"
            f" {row['peak_bytes'] / 1e6:8.0f} {cached:>9}"
        )


if __name__ == "__main__":
    main()
