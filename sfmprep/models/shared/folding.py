"""Batch normalisation as part of the convolution before it, after the training."""

from __future__ import annotations

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

_NAMES = (("conv1", "bn1"), ("conv2", "bn2"), ("0", "1"))  # of the children


def fold_batch_norms(network: nn.Module) -> None:
    """Multiplies batch normalisations, in evaluation mode, into their convolutions.

    They become the identity. The convolution may be one that a child holds as
    `regular_conv`.
    """
    for module in network.modules():
        for conv_name, norm_name in _NAMES:
            child, norm = (getattr(module, n, None) for n in (conv_name, norm_name))
            conv = getattr(child, "regular_conv", child)
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d):
                fused = fuse_conv_bn_eval(conv, norm)
                conv.weight, conv.bias = fused.weight, fused.bias
                setattr(module, norm_name, nn.Identity())
