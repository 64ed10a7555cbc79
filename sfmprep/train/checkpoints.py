"""What lets a training be cut anywhere: checkpoints, and a log that can be plotted."""

from __future__ import annotations

import datetime
import json
import os
import pickle
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

from sfmprep.errors import StoreError


def save(path: Path, state: Mapping[str, Any]) -> None:
    """Replaces a checkpoint at once: a killed run leaves the old one or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        torch.save(dict(state), part)
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def load(path: Path) -> dict[str, Any] | None:
    """Reads a checkpoint, or returns None where there is none yet.

    Raises:
        StoreError: the file is damaged.
    """
    if not path.exists():
        return None
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except (RuntimeError, EOFError, OSError, pickle.UnpicklingError) as error:
        raise StoreError(
            f"{path} is no checkpoint that can be read ({error}). Delete it to start"
            " anew, or put a good copy there."
        ) from error
    return state


def export_halves(
    tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]
) -> None:
    """Writes weights as safetensors, in float16 what is of floating point."""
    path.parent.mkdir(parents=True, exist_ok=True)
    halves = {
        name: value.half() if value.is_floating_point() else value
        for name, value in tensors.items()
    }
    date = datetime.datetime.now(datetime.UTC).date().isoformat()
    save_file(halves, path, {"licence": "Apache-2.0", "date": date, **metadata})
    path.chmod(0o644)  # safetensors makes a file for its owner alone


class RunLog:
    """A log of JSON lines, one a call, that continues where it stopped."""

    def __init__(self, path: Path) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._path = path

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Appends one line: the step, the time of day, and the values."""
        line = {"step": step, "time": round(time.time(), 1), **values}
        with self._path.open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":  # a killed run cut its last line
                    file.write(b"\n")
            file.write(json.dumps(line).encode() + b"\n")
