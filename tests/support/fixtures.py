"""Tensors of the parity fixtures, which are made by a formula."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import torch


def filled(folder: Path, variant: str | None = None) -> dict[str, torch.Tensor]:
    """The tensors of a network, by their keys.

    Args:
        folder: Of the fixture, with `fill_weights.py` and `state_dict_keys.json`.
        variant: Which network, where the keys are of several.
    """
    module = _recipe(folder)
    keys = json.loads((folder / "state_dict_keys.json").read_text())
    return {
        key: torch.from_numpy(np.asarray(module.fill_one(key, tuple(shape))))
        for key, (shape, _) in (keys if variant is None else keys[variant]).items()
    }


def shared_filled(
    keys: Path, *, gain: float, prefix: str = ""
) -> dict[str, torch.Tensor]:
    """The same for fixtures that share the recipe of the folder above theirs.

    Args:
        keys: The JSON file of names and shapes.
        gain: Of kernels.
        prefix: Of names, which the recipe leaves out.
    """
    shapes = json.loads(keys.read_text())
    shapes = {name.removeprefix(prefix): shape for name, shape in shapes.items()}
    made = _recipe(keys.parents[1]).fill(shapes, gain)
    for name in [name for name in made if ".layer_rn." in name]:
        before, _, after = name.partition("layer_rn.")  # two names of one tensor
        made[name] = made[f"{before}layer{int(after[0]) + 1}_rn{after[1:]}"]
    return {prefix + name: torch.from_numpy(array) for name, array in made.items()}


def _recipe(folder: Path) -> ModuleType:
    spec = importlib.util.spec_from_file_location("fill", folder / "fill_weights.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
