"""SuperGlue with random weights, as Hugging Face's transformers (Apache-2.0) has it."""

from __future__ import annotations

import pytest
import torch

_HEADS = 4


def random_superglue() -> tuple[torch.nn.Module, dict[str, torch.Tensor]]:
    """The network, and its tensors under the names of the public checkpoints."""
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.SuperGlueConfig(matching_threshold=0.2)
    model = transformers.SuperGlueForKeypointMatching(config).eval()
    own = [p for n, p in model.named_parameters() if "detector" not in n]
    for parameter in own:  # so that descriptors still tell keypoints apart at the end
        is_matrix = parameter.ndim == 2
        std = 0.5 / parameter.shape[-1] ** 0.5 if is_matrix else 0.05
        if parameter.ndim:
            torch.nn.init.normal_(parameter, std=std)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm1d):
            torch.nn.init.uniform_(module.weight, 0.75, 1.25)
            module.running_mean.normal_(std=0.1)
            module.running_var.uniform_(0.75, 1.25)
    with torch.no_grad():
        model.final_projection.final_proj.weight.copy_(16 * torch.eye(256))
    return model, dict(_renamed(model))


def _renamed(model: torch.nn.Module):
    for name, tensor in model.state_dict().items():
        parts = name.split(".")
        kind = parts[-1]
        if parts[0] == "keypoint_detector":
            continue
        if parts[0] == "bin_score":
            yield name, tensor.clone()
        elif parts[0] == "final_projection":
            yield f"final_proj.{kind}", _as_convolution(tensor)
        elif parts[0] == "keypoint_encoder":
            yield f"kenc.encoder.{_place(parts[2:])}", _as_convolution(tensor)
        elif parts[3] == "mlp":
            place = f"gnn.layers.{parts[2]}.mlp.{_place(parts[4:])}"
            yield place, _as_convolution(tensor)
        else:
            place = f"gnn.layers.{parts[2]}.attn"
            if parts[4] == "output":
                yield (
                    f"{place}.merge.{kind}",
                    _as_convolution(
                        _interleaved(tensor.T).T if tensor.ndim == 2 else tensor
                    ),
                )
            else:
                number = ("query", "key", "value").index(parts[5])
                rows = _as_convolution(_interleaved(tensor))
                yield f"{place}.proj.{number}.{kind}", rows


def _place(parts: list[str]) -> str:
    """Of a layer with its norm, or of the last layer alone, in a flat sequence."""
    if parts[1] in ("linear", "batch_norm"):
        return f"{3 * int(parts[0]) + (parts[1] == 'batch_norm')}.{parts[2]}"
    return f"{3 * int(parts[0])}.{parts[1]}"


def _as_convolution(tensor: torch.Tensor) -> torch.Tensor:
    return tensor[..., None].contiguous() if tensor.ndim == 2 else tensor.clone()


def _interleaved(rows: torch.Tensor) -> torch.Tensor:
    """Rows of one head after the other to rows whose head is the fast index."""
    return rows.unflatten(0, (_HEADS, -1)).transpose(0, 1).flatten(0, 1)
