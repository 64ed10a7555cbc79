"""The parts of `make gpu`: each is called in a process of its own by `__main__`.

python -m tests.bench.gpu.parts NAME --device cuda --out FILE --results FOLDER
"""

from __future__ import annotations

import argparse
import signal
import sys
from pathlib import Path

import torch

from tests.bench.gpu import exactness, images, machine, matching, whole_runs
from tests.bench.gpu.told import Told

PARTS = {
    "machine": machine.machine,
    "lightglue": matching.lightglue,
    "precision": exactness.precision,
    "aliked": images.aliked,
    "dense": matching.dense,
    "memory": exactness.memory,
    "tests": whole_runs.tests,
    "pictures": whole_runs.pictures,
    "capture": whole_runs.capture,
    "processes": whole_runs.processes,
    "train": whole_runs.train,
}


def main() -> None:
    """Runs one part, whose findings are written as they come."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=list(PARTS))
    parser.add_argument("--device", required=True)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--results", type=Path)
    parser.add_argument("--seconds", type=float, default=600.0)
    options = parser.parse_args()
    # what was asked to stop leaves its `with` blocks
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    told = Told(options.out, options.device, options.seconds, options.results)
    try:
        PARTS[options.name](told)
    finally:
        if torch.cuda.is_available():
            told["peak_gpu_bytes"] = torch.cuda.max_memory_allocated()


if __name__ == "__main__":
    main()
