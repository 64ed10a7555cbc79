"""What a training of S2LD starts from: random weights, or LoFTR's."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from torch import nn

from sfmprep.errors import WeightsError
from sfmprep.models.semidense.s2ld import network_tensors
from sfmprep.models.semidense.s2ld_network import S2ldNetwork
from sfmprep.weights import ResolvedWeights, file_sha256, load_tensors

NUM_LOFTR_TENSORS = 211
"""How many tensors of S2LD have their like in LoFTR."""

_FIRST_WINDOW_SCALE = 0.3
_FIRST_SHARE = 0.1  # of what a layer of the transformers adds, against LoFTR's


def random_network(seed: int) -> S2ldNetwork:
    """Makes a network of random weights, by the seed alone.

    Backbone and window projections as He et al. (ICCV 2015), transformer matrices as
    Glorot and Bengio (2010), the rest by torch, but for two changes without which a
    training starts from confident noise. The transformers' layers add little at first
    (Goyal et al. 2017, section 5.1), so that coarse similarities are those of the
    backbone's descriptors; and windows are compared in a smaller scale, so that fine
    matches begin in the middle of the window instead of anywhere.
    """
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(seed)
        network = S2ldNetwork()
        for part in (network.backbone, network.fine_preprocess):
            for module in part.modules():
                if isinstance(module, nn.Conv2d | nn.Linear):
                    nn.init.kaiming_normal_(
                        module.weight, mode="fan_out", nonlinearity="relu"
                    )
        network.fine_preprocess.merge_feat.weight.mul_(_FIRST_WINDOW_SCALE)
        for transformer in (network.s2ld_coarse, network.s2ld_fine):
            for name, module in transformer.named_modules():
                if isinstance(module, nn.Linear):
                    nn.init.xavier_uniform_(module.weight)
                elif name.endswith("norm2"):
                    nn.init.constant_(module.weight, _FIRST_SHARE)
    return network


def warm_start(network: S2ldNetwork, path: Path) -> None:
    """Loads what LoFTR and S2LD share; keypoint detector and adjuster stay as they are.

    Raises:
        WeightsError: the file cannot be read, or is not LoFTR's.
    """
    if not path.is_file():
        raise WeightsError(f"{path} is no file; expected a checkpoint of LoFTR.")
    weights = ResolvedWeights(name="LoFTR", path=path, sha256=file_sha256(path))
    own = network.state_dict()
    shared = {
        new: tensor
        for name, tensor in network_tensors(load_tensors(weights)).items()
        if (new := re.sub("^loftr_", "s2ld_", name)) in own
        and own[new].shape == tensor.shape
    }
    if len(shared) != NUM_LOFTR_TENSORS:
        raise WeightsError(
            f"{path} shares {len(shared)} tensors with S2LD; LoFTR's weights share"
            f" {NUM_LOFTR_TENSORS}. Give a checkpoint of LoFTR (outdoor or indoor)."
        )
    network.load_state_dict(own | shared)
