"""One step of the matcher's training, and all that a checkpoint of it holds.

AdamW; the learning rate warms up, stays, and falls with the square root of the step, so
that no one needs to know how long training will be. A running mean of the weights
stands in for the annealing at the end.
"""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sfmprep.models.matchers.lightglue_network import LightGlueNetwork
from sfmprep.train.matcher.assignment import assignment_loss, confidence_loss
from sfmprep.train.network import PairBatch, layer_tokens

_LEARNING_RATE = 1e-3
_WARM_UP, _CONSTANT_UNTIL = 200, 3000  # steps
_WEIGHT_DECAY = 0.01
_MAX_GRADIENT = 1.0
_MEAN_OVER = 500  # steps of the running mean of the weights, at most
_CONFIDENCE_LEARNING_RATE = 1e-2
_BIN = "bin_score"
_BIN_FACTOR = 10.0  # of the learning rate: a single number, among similarities of tens
_MOMENTS = ("exp_avg", "exp_avg_sq")  # as AdamW names them


class AssignmentTraining:
    """Trains all but the confidence heads.

    Args:
        network: As `build_network` makes it, or trained before.
        device: Where to train, as torch names it; bfloat16 is used on CUDA.
    """

    def __init__(self, network: LightGlueNetwork, *, device: str) -> None:
        self.step = 0
        self._device = device
        self._network = network.to(device).train()
        self._network.token_confidence.requires_grad_(False)
        # Those of the bin come last, as the optimiser has them.
        self._parameters = {
            name: parameter
            for is_bin in (False, True)
            for name, parameter in self._network.named_parameters()
            if parameter.requires_grad and name.endswith(_BIN) == is_bin
        }
        self._mean = {
            name: parameter.detach().clone()
            for name, parameter in self._parameters.items()
        }
        bins = [p for name, p in self._parameters.items() if name.endswith(_BIN)]
        others = list(self._parameters.values())[: -len(bins) or None]
        groups: list[dict[str, Any]] = [
            {"params": others, "factor": 1.0, "weight_decay": _WEIGHT_DECAY}
        ]
        if bins:
            groups.append({"params": bins, "factor": _BIN_FACTOR, "weight_decay": 0.0})
        self._optimiser = torch.optim.AdamW(groups, fused=True)

    def advance(self, batch: PairBatch) -> dict[str, Tensor]:
        """Takes one step of deep supervision."""
        for group in self._optimiser.param_groups:
            group["lr"] = group["factor"] * learning_rate(self.step)
        is_cuda = torch.device(self._device).type == "cuda"
        layers = layer_tokens(self._network, batch, half=is_cuda)
        loss = assignment_loss(self._network, layers, batch)
        self._optimiser.zero_grad()
        torch.autograd.backward(torch.stack([*loss.values()]).sum())
        torch.nn.utils.clip_grad_norm_(self._parameters.values(), _MAX_GRADIENT)
        self._optimiser.step()
        self.step += 1
        weight = 1 / min(self.step, _MEAN_OVER)
        torch._foreach_lerp_(
            list(self._mean.values()),
            [parameter.detach() for parameter in self._parameters.values()],
            weight,
        )
        return {name: part.detach() for name, part in loss.items()}

    def mean_network(self) -> LightGlueNetwork:
        """A copy of the network with the mean weights."""
        network = copy.deepcopy(self._network)
        network.load_state_dict(self._network.state_dict() | self._mean)
        return network.eval()

    def state(self) -> dict[str, Any]:
        """Weights and moments in float32, the mean in halves; after a step or more."""
        return {
            "step": self.step,
            "shape": dataclasses.asdict(self._network.shape),
            "weights": self._network.state_dict(),
            "mean": {name: mean.half() for name, mean in self._mean.items()},
            # In one piece each: hundreds of small tensors take a quarter of a megabyte.
            "moments": {
                name: torch.cat(
                    [
                        self._optimiser.state[parameter][name].flatten()
                        for parameter in self._parameters.values()
                    ]
                )
                for name in _MOMENTS
            },
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a state; the mean is as exact as halves are."""
        self.step = state["step"]
        self._network.load_state_dict(state["weights"])
        for name, mean in self._mean.items():
            mean.copy_(state["mean"][name])
        parameters = list(self._parameters.values())
        sizes = [parameter.numel() for parameter in parameters]
        first, second = (state["moments"][name].split(sizes) for name in _MOMENTS)
        moments = {
            number: {
                "step": torch.tensor(float(self.step)),
                _MOMENTS[0]: first[number].view_as(parameter),
                _MOMENTS[1]: second[number].view_as(parameter),
            }
            for number, parameter in enumerate(parameters)
        }
        groups = self._optimiser.state_dict()["param_groups"]
        self._optimiser.load_state_dict({"state": moments, "param_groups": groups})


class ConfidenceTraining:
    """Trains the confidence heads of a network whose assignment is trained.

    Args:
        network: Everything else in it stays as it is.
        device: Where to train, as torch names it.
        assignment_step: How many steps the assignment was trained, for the state.
    """

    def __init__(
        self, network: LightGlueNetwork, *, device: str, assignment_step: int = 0
    ) -> None:
        self.step = 0
        self._assignment_step = assignment_step
        self._network = network.to(device).eval().requires_grad_(False)
        self._heads = self._network.token_confidence.requires_grad_(True)
        self._optimiser = torch.optim.AdamW(
            self._heads.parameters(), lr=_CONFIDENCE_LEARNING_RATE, weight_decay=0.0
        )

    def advance(self, batch: PairBatch) -> dict[str, Tensor]:
        """Takes one step."""
        with torch.no_grad():
            layers = layer_tokens(self._network, batch)
        loss = confidence_loss(self._network, layers, batch)
        self._optimiser.zero_grad()
        torch.autograd.backward(loss)
        self._optimiser.step()
        self.step += 1
        return {"confidence": loss.detach()}

    def state(self) -> dict[str, Any]:
        """The heads and their optimiser."""
        return {
            "step": self.step,
            "shape": dataclasses.asdict(self._network.shape),
            "assignment_step": self._assignment_step,
            "weights": self._heads.state_dict(),
            "optimiser": self._optimiser.state_dict(),
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Continues from a state."""
        self.step = state["step"]
        self._heads.load_state_dict(state["weights"])
        self._optimiser.load_state_dict(state["optimiser"])


def learning_rate(step: int) -> float:
    """Rises in a straight line, stays, then falls with the square root of the step."""
    warm = min(1.0, (step + 1) / _WARM_UP)
    return _LEARNING_RATE * warm * min(1.0, math.sqrt(_CONSTANT_UNTIL / (step + 1)))
