"""The tensors in files of weights; torch is imported when the first is read."""

from __future__ import annotations

import argparse
import pickle
import textwrap
from collections.abc import Mapping
from typing import TYPE_CHECKING

from sfmprep.errors import WeightsError
from sfmprep.weights.cache import ResolvedWeights
from sfmprep.weights.registry import WEIGHTS

if TYPE_CHECKING:
    import torch

_MAX_REASON = 240  # of characters; torch lists every tensor that differs


def load_tensors(weights: ResolvedWeights) -> dict[str, torch.Tensor]:
    """Reads the tensors of a safetensors file or of a torch checkpoint.

    Of a checkpoint only tensors are unpickled (`weights_only`); nested dictionaries
    such as DISK's `{"extractor": {...}}` are returned with dotted keys.

    Raises:
        WeightsError: the file is neither, or is damaged.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if weights.path.suffix == ".safetensors":
            return load_file(weights.path)
        # what DUSt3R was trained with lies beside its tensors; its values are plain
        with torch.serialization.safe_globals([argparse.Namespace]):
            tree = torch.load(weights.path, map_location="cpu", weights_only=True)
        if not isinstance(tree, Mapping):
            raise ValueError(f"it holds a {type(tree).__name__}, not named tensors")
    except (
        *(SafetensorError, pickle.UnpicklingError, RuntimeError),
        *(OSError, EOFError, ValueError, KeyError, AttributeError),
    ) as error:
        raise _unreadable(weights, error) from error
    return _flatten(tree)


def load_metadata(weights: ResolvedWeights) -> dict[str, str]:
    """Reads what a safetensors file says of itself; nothing of a torch checkpoint.

    Raises:
        WeightsError: the file cannot be read.
    """
    from safetensors import SafetensorError, safe_open

    if weights.path.suffix != ".safetensors":
        return {}
    try:
        with safe_open(weights.path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError) as error:
        raise _unreadable(weights, error) from error


def load_strict(
    network: torch.nn.Module,
    tensors: Mapping[str, torch.Tensor],
    weights: ResolvedWeights,
) -> None:
    """Loads tensors into a network that needs exactly these.

    Raises:
        WeightsError: a tensor is missing, unexpected or of another shape.
    """
    try:
        # a network without memory of its own takes the tensors as they are
        is_empty = any(each.is_meta for each in network.parameters())
        network.load_state_dict(tensors, strict=True, assign=is_empty)
    except RuntimeError as error:
        reason = textwrap.shorten(str(error), _MAX_REASON)
        entry = WEIGHTS[weights.name]
        raise WeightsError(
            f"weights of {weights.name}: {weights.path} does not fit the network"
            f" ({reason}). Expected the tensors of {entry.url or entry.origin}; correct"
            " the key `weights` of the recipe or remove it."
        ) from error


def _unreadable(weights: ResolvedWeights, error: Exception) -> WeightsError:
    return WeightsError(
        f"weights of {weights.name}: {weights.path} cannot be read ({error})."
        " Expected safetensors or a torch checkpoint; put a good copy in its place."
    )


def _flatten(tree: Mapping[str, object], prefix: str = "") -> dict[str, torch.Tensor]:
    import torch

    flat: dict[str, torch.Tensor] = {}
    for key, value in tree.items():
        if isinstance(value, torch.Tensor):
            flat[f"{prefix}{key}"] = value
        elif isinstance(value, Mapping):
            flat |= _flatten(value, f"{prefix}{key}.")
    return flat
