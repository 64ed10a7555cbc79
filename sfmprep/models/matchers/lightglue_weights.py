"""The checkpoints of LightGlue, in all their layouts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import cast, get_args

import torch
from torch import Tensor

from sfmprep.errors import WeightsError
from sfmprep.models.matchers.lightglue_network import (
    Head,
    LightGlueNetwork,
    LightGlueShape,
)
from sfmprep.weights import ResolvedWeights, load_metadata, load_strict, load_tensors

_OLD_LAYER = re.compile(r"^(self_attn|cross_attn)\.(\d+)\.")
_UNUSED = re.compile(r"^(confidence_thresholds|log_assignment\.\d+\.r)$")
_LAYER = re.compile(r"^(?:transformers|log_assignment|token_confidence)\.(\d+)\.")


def named_head(weights: ResolvedWeights) -> Head:
    """The head that the metadata of a file name; LightGlue's where there are none.

    Raises:
        WeightsError: the file cannot be read, or the name is unknown.
    """
    name = load_metadata(weights).get("head", "lightglue")
    for known in get_args(Head):
        if name == known:
            return cast(Head, known)
    raise WeightsError(
        f"weights of {weights.name}: {weights.path} names the head {name!r}; expected"
        f" one of {', '.join(get_args(Head))}. It was made by another version, or is"
        " damaged: put a good copy in its place."
    )


def load_network(
    weights: ResolvedWeights, shape: LightGlueShape, *, is_cut: bool = False
) -> LightGlueNetwork:
    """Builds a folded network in evaluation mode and loads its weights strictly.

    If any of the heads for adaptive depth and width are missing, the network is built
    without them. Float16 weights become float32. The head of the last layer is the one
    that the file names.

    Args:
        weights: A file in the layout of cvg/LightGlue (released or current), of kornia
            or of XFeat.
        shape: The size of the network.
        is_cut: Whether the network is the first layers of a deeper one; tensors of
            later layers are then left out.

    Raises:
        WeightsError: the file cannot be read or names an unknown head, or tensors are
            missing, unexpected or of another shape.
    """
    tensors = _rename(load_tensors(weights))
    shape = replace(shape, head=named_head(weights))
    if is_cut:
        tensors = {
            key: value
            for key, value in tensors.items()
            if not (layer := _LAYER.match(key)) or int(layer[1]) < shape.num_layers
        }
    with torch.device("meta"):  # the names alone
        full, plain = (
            LightGlueNetwork(shape, adaptive=adaptive).state_dict().keys()
            for adaptive in (True, False)
        )
    heads = full - plain
    has_heads = heads <= tensors.keys()
    if not has_heads:
        tensors = {key: value for key, value in tensors.items() if key not in heads}
    network = LightGlueNetwork(shape, adaptive=has_heads)
    load_strict(network, tensors, weights)
    network.fold()
    return network.eval().requires_grad_(False)


def _rename(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gives the tensors of a public checkpoint the names of `LightGlueNetwork`.

    Left out are the confidence thresholds, a constant (see `confidence_threshold`), and
    a number in each head of disk-lightglue that no published network uses.
    """
    if any(key.startswith("matcher.") for key in tensors):
        # XFeat's file also holds the extractor that it was trained with.
        tensors = {
            key.removeprefix("matcher."): value
            for key, value in tensors.items()
            if not key.startswith("extractor.")
        }
    return {
        _OLD_LAYER.sub(r"transformers.\2.\1.", key): value
        for key, value in tensors.items()
        if not _UNUSED.match(key)
    }
