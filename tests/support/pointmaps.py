"""Small pointmap networks of random weights, in which equal patches look equal."""

from __future__ import annotations

import torch
from torch import Tensor

from sfmprep.models.semidense.pointmap_network import Architecture, PointmapNetwork

_KINDS = {"dust3r-linear": "linear", "dust3r-dpt": "dpt", "mast3r": "mast3r"}


def pointmap_tensors(model: str) -> dict[str, Tensor]:
    """The tensors of a network of 64 channels, whose two sides have the same weights.

    Its tokens see little of each other, so that matches tell where patches are alike.
    """
    torch.manual_seed(0)
    network = PointmapNetwork(
        Architecture(
            kind=_KINDS[model],
            encoder_width=64,
            encoder_depth=2,
            decoder_width=64,
            decoder_depth=4,
            reduced=() if model == "dust3r-linear" else (4, 6, 8, 12),
            fused=8,
            last=4,
        )
    )
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            if name.endswith("attn.proj.weight"):
                parameter.mul_(0.01)
    tensors = network.state_dict()
    for name in list(tensors):
        for one, two in (("dec_blocks.", "dec_blocks2."), ("head1.", "head2.")):
            if one in name:
                tensors[name.replace(one, two)] = tensors[name].clone()
    return {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
