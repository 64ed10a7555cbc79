"""NetVLAD: residuals of a map's columns to learned centres, as hloc uses it.

Paper: Arandjelović, Gronat, Torii, Pajdla, Sivic, "NetVLAD: CNN Architecture for Weakly
Supervised Place Recognition", CVPR 2016. Written from it, and from the layout of the
authors' file, which MATLAB wrote.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Unpack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.config import NetVladConfig
from sfmprep.errors import WeightsError
from sfmprep.models.shared.adapter import Adapter, in_parts
from sfmprep.models.shared.precision import Where
from sfmprep.types import Float32, ImageBatch

_WIDTHS = (64, 64, 0, 128, 128, 0, *3 * (256,), 0, *3 * (512,), 0, *3 * (512,))
_CLUSTERS = 64
_CELL = 16  # pixels a side that one column of the map covers
_VLAD, _WHITEN = 30, 33  # layers of the authors' file


class NetVlad:
    """Describes images; the precision is that of the convolutions."""

    def __init__(self, config: NetVladConfig, **where: Unpack[Where]) -> None:
        self._adapter = Adapter.of(config, **where)
        path = self._adapter.weights.path
        is_mat = path.suffix == ".mat"
        tensors = read_mat(path) if is_mat else self._adapter.tensors()
        dimensions = len(tensors.get("whiten.bias", ())) or 1
        with torch.device("meta"):  # half a gigabyte that the file's take the place of
            network = NetVladNetwork(dimensions)
        self._network = self._adapter.load(
            network, {name: tensor.float() for name, tensor in tensors.items()}
        )
        self.identity = self._adapter.identity
        self.batch_size = self._adapter.batch_size(config.max_size)

    @in_parts
    def embed(self, batch: ImageBatch) -> list[Float32]:
        """Describes each image; see `protocols.Retriever`."""
        return list(self._network(self._adapter.pixels(batch)).cpu().numpy())


class NetVladNetwork(nn.Module):
    """VGG-16, the residuals and their whitening; keys as in hloc's module."""

    def __init__(self, dimensions: int) -> None:
        super().__init__()
        self.average_image = nn.Parameter(torch.zeros(3))
        layers: list[nn.Module] = []
        inputs = 3
        for width in _WIDTHS:
            if width:
                layers += [nn.Conv2d(inputs, width, 3, padding=1), nn.ReLU()]
                inputs = width
            else:
                layers.append(nn.MaxPool2d(2))
        self.backbone = nn.Sequential(*layers[:-1])
        self.netvlad = _Vlad()
        self.whiten = nn.Linear(_WIDTHS[-1] * _CLUSTERS, dimensions)

    def prepare(self, dtype: torch.dtype) -> None:
        """Makes the network ready to be called, once, after its weights were loaded."""
        self.backbone.to(dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """From [B, 3, H, W] in 0..1 to unit rows [B, D] in float32."""
        x = self.features(pixels)
        return F.normalize(self.whiten(self.netvlad(x)), dim=1)

    def features(self, pixels: Tensor) -> Tensor:
        """The last map [B, 512, H/16, W/16], in float32."""
        seen = 255 * pixels.clamp(0, 1) - self.average_image[:, None, None]
        # sides are halved four times
        short = [max(0, _CELL - side) for side in seen.shape[2:]]
        seen = F.pad(seen, (0, short[1], 0, short[0]))
        result: Tensor = self.backbone(seen.to(next(self.backbone.parameters()).dtype))
        return result.float()


class _Vlad(nn.Module):
    """Sums of residuals, softly assigned."""

    def __init__(self) -> None:
        super().__init__()
        self.score_proj = nn.Conv1d(_WIDTHS[-1], _CLUSTERS, 1, bias=False)
        self.centers = nn.Parameter(torch.zeros(_WIDTHS[-1], _CLUSTERS))

    def assigned(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Unit columns [B, D, N] of a map, and their shares in the clusters."""
        unit = F.normalize(x.flatten(2), dim=1)
        return unit, self.score_proj(unit).softmax(1)

    def forward(self, x: Tensor) -> Tensor:
        """From [B, D, h, w] to unit rows [B, D K]."""
        unit, shares = self.assigned(x)
        sums = unit @ shares.mT - self.centers * shares.sum(2)[:, None]
        return F.normalize(F.normalize(sums, dim=1).flatten(1), dim=1)


def read_mat(path: Path) -> dict[str, Tensor]:
    """The tensors of the authors' file under the names of `NetVladNetwork`.

    Raises:
        WeightsError: it is another file, or damaged.
    """
    from scipy.io import loadmat

    try:
        net = loadmat(path, struct_as_record=False, squeeze_me=True)["net"]
        layers: Any = net.layers
        average = net.meta.normalization.averageImage[0, 0]
        made: dict[str, Any] = {"average_image": average}
        for place in _conv_places():
            kernel, bias = layers[place].weights[:2]
            made[f"backbone.{place}.weight"] = kernel.transpose(3, 2, 0, 1)
            made[f"backbone.{place}.bias"] = bias
        scores, centres = layers[_VLAD].weights[:2]
        made["netvlad.score_proj.weight"] = scores.T[..., None]
        made["netvlad.centers"] = -centres
        whiten, bias = layers[_WHITEN].weights[:2]
        made["whiten.weight"], made["whiten.bias"] = whiten.T, bias
        return {
            name: torch.from_numpy(np.array(value, np.float32, order="C"))
            for name, value in made.items()
        }
    except (
        *(OSError, ValueError, TypeError, NotImplementedError),
        *(KeyError, IndexError, AttributeError),
    ) as error:
        raise WeightsError(
            f"weights of netvlad: {path} cannot be read ({error}). Expected the"
            " authors' Pitts30K_struct.mat, or safetensors; put a good copy in its"
            " place."
        ) from error


def _conv_places() -> list[int]:
    """Where the convolutions stand among the layers."""
    places, at = [], 0
    for width in _WIDTHS:
        if width:
            places.append(at)
        at += 2 if width else 1
    return places
