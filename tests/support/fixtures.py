"""Tensors of the parity fixtures, which are made by a formula."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
import torch


def filled(folder: Path, variant: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a network, by their keys.

    Args:
        folder: Of the fixture, with `fill_weights.py` and `state_dict_keys.json`.
        variant: Which network, where the keys are of several.
    """
    spec = importlib.util.spec_from_file_location("fill", folder / "fill_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    keys = json.loads((folder / "state_dict_keys.json").read_text())
    return {
        key: torch.from_numpy(np.asarray(module.fill_one(key, tuple(shape))))
        for key, (shape, _) in (keys if variant is None else keys[variant]).items()
    }
