"""The network of the compact features, trained by `sfmprep.train`.

One encoder of plain 3x3 convolutions (after ALIKE, Zhao et al., TMM 2022, and XFeat,
Potje et al., CVPR 2024) gives maps at 1/2, 1/4, 1/8 and 1/16 of the resolution.
Keypoints come from a score map at full resolution, which is made at 1/2, with what the
coarser maps know added, by shuffling 4 channels into 2 by 2 pixels. A descriptor is
made only where there is a keypoint: from the maps of all levels around it, by a
perceptron, so that a dense field of descriptors, which would take most of the time,
need not be there. Every layer that halves the resolution is symmetric, so that cell k
of a level at 1/s has its centre at pixel s (k + 1/2) - 1/2.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.models.shared.folding import fold_batch_norms
from sfmprep.models.shared.sampling import sample

MULTIPLE = 16  # of the padded input's sides
DESCRIPTOR_DIM = 64
_SHUFFLE = 2  # pixels each way that a cell of the score head's map covers
_CHANNELS = (16, 32, 64, 128)  # at 1/2, 1/4, 1/8, 1/16
_HIDDEN = 192  # of the descriptor's perceptron


@dataclass(frozen=True, kw_only=True)
class Maps:
    """What the network knows of B images before keypoints are chosen."""

    logits: Tensor  # [B, H, W] float32, of there being a keypoint
    levels: tuple[Tensor, ...]  # [B, h, w, C] at 1/4, 1/8 and 1/16, padded


class Layer(nn.Sequential):
    """A 3x3 convolution, batch normalisation, ReLU."""

    def __init__(self, inputs: int, outputs: int, *, kernel: int = 3) -> None:
        super().__init__(
            nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
        )


class CompactNetwork(nn.Module):
    """Score map and descriptors; trainable until `prepare`, faster after it."""

    def __init__(self) -> None:
        super().__init__()
        half, quarter, eighth, coarse = _CHANNELS
        self.stem = nn.Conv2d(3, half, 4, stride=2, padding=1)
        self.block2 = Layer(half, half)
        self.block4 = nn.Sequential(Layer(half, quarter), Layer(quarter, quarter))
        self.block8 = nn.Sequential(Layer(quarter, eighth), Layer(eighth, eighth))
        self.block16 = nn.Sequential(
            Layer(eighth, coarse), Layer(coarse, coarse), Layer(coarse, coarse)
        )
        self.lateral = Layer(coarse, eighth, kernel=1)
        self.fusion = nn.Sequential(Layer(eighth, eighth), Layer(eighth, eighth))
        self.context = nn.Conv2d(eighth, half, 1)
        self.detail = nn.Conv2d(quarter, half, 1)
        self.score_head = nn.Sequential(
            Layer(half, half),
            Layer(half, half),
            nn.Conv2d(half, _SHUFFLE**2, 3, padding=1),
        )
        self.describer = nn.Sequential(
            nn.Linear(9 * quarter + 2 * eighth + coarse, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, _HIDDEN),
            nn.ReLU(inplace=True),
            nn.Linear(_HIDDEN, DESCRIPTOR_DIM),
        )

    def prepare(self, dtype: torch.dtype) -> None:
        """Makes a trained network faster, once.

        Args:
            dtype: Of the convolutions; the perceptron stays in float32.
        """
        fold_batch_norms(self.eval())
        for part in self.children():
            if part is not self.describer:
                part.to(dtype)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, pixels: Tensor) -> Maps:
        """Computes the maps of images [B, 3, H, W] in 0..1, of any size."""
        height, width = pixels.shape[-2:]
        # normalised, so that a darker photograph gives the same
        mean = pixels.mean((1, 2, 3), keepdim=True)
        spread = (pixels - mean).square_().mean((1, 2, 3), keepdim=True).sqrt()
        x = (pixels - mean) / (spread + 1e-3)
        x = F.pad(x, (0, -width % MULTIPLE, 0, -height % MULTIPLE))
        x = x.to(self.stem.weight.dtype, memory_format=torch.channels_last)
        x2 = self.block2(F.relu_(self.stem(x)))
        x4 = self.block4(F.avg_pool2d(x2, 2))
        x8 = self.block8(F.avg_pool2d(x4, 2))
        x16 = self.block16(F.avg_pool2d(x8, 2))
        fused = self.fusion(x8 + _twice(self.lateral(x16)))
        coarse = self.detail(x4) + _twice(self.context(fused))
        logits = F.pixel_shuffle(self.score_head(x2 + _twice(coarse)), _SHUFFLE)
        return Maps(
            logits=logits[:, 0, :height, :width].float(),
            levels=tuple(
                level.permute(0, 2, 3, 1)
                for level in (x4, torch.cat((x8, fused), 1), x16)
            ),
        )

    def describe(self, maps: Maps, image: Tensor, xy: Tensor) -> Tensor:
        """Makes the descriptors of keypoints.

        Args:
            maps: Of B images.
            image: [N] int64, which of them a keypoint is of.
            xy: [N, 2] pixels, centres at integers.

        Returns:
            [N, 64] float32 unit rows.
        """
        step = torch.arange(-1, 2, device=xy.device)
        around = torch.stack(torch.meshgrid(step, step, indexing="xy"), -1).view(9, 2)
        columns = []
        for level, scale in zip(maps.levels, (4, 8, 16), strict=True):
            at = (xy + 0.5) / scale - 0.5
            if scale == 4:
                at = at[:, None] + around
            image_at = image.view(-1, *[1] * (at.dim() - 2))
            values = sample(level, image_at, at[..., 1], at[..., 0])
            columns.append(values.flatten(1).float())
        return F.normalize(self.describer(torch.cat(columns, 1)), dim=1)


def _twice(x: Tensor) -> Tensor:
    return F.interpolate(x, scale_factor=2, mode="bilinear", align_corners=False)
