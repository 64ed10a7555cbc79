"""XFeat: fast learned keypoints and 64-dimensional descriptors.

Paper: Potje, Cadar, Araujo, Martins, Nascimento, "XFeat: Accelerated Features for
Lightweight Image Matching", CVPR 2024. Ported from the authors' repository
https://github.com/verlab/accelerated_features and from kornia's `feature.xfeat`, code
and weights Apache-2.0. What changed: sparse extraction only, so no fine matcher; batch
normalisation is folded into the convolutions; colours are averaged before the resize;
suppression visits only pixels above the threshold; keypoints are pixel centres, so
the resize to multiples of 32 takes their half pixel along.
"""

from __future__ import annotations

from typing import cast

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from sfmprep import coords
from sfmprep.config import XFeatConfig
from sfmprep.models.peaks import strict_maxima
from sfmprep.types import Features, ImageBatch
from sfmprep.weights import load_strict, load_tensors, resolve_weights

_NMS_RADIUS = 2
_CELL = 8  # pixels that one cell of the network's output covers, each way
_MULTIPLE = 32  # of the network's input sides


class XFeat:
    """Extracts XFeat keypoints, scored by heat map value times reliability.

    Args:
        config: The settings; `min_score` applies to the heat map value alone.
        device: Where the network runs, as torch names it.

    Raises:
        WeightsError: the weights cannot be had, or do not fit.
    """

    batch_size = 1  # images go through the network one by one

    def __init__(self, config: XFeatConfig, *, device: str = "cpu") -> None:
        weights = resolve_weights("xfeat", config.weights)
        # The matcher that refines semi-dense matches shares the file.
        tensors = {
            key: tensor
            for key, tensor in load_tensors(weights).items()
            if not key.startswith("fine_matcher.")
        }
        network = XFeatNetwork()
        load_strict(network, tensors, weights)
        self._config = config
        self._device = torch.device(device)
        _fuse_batch_norm(network.eval())
        # The many thin layers take a third less time on a CPU in this layout.
        network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._network = network.to(self._device)
        self._sha256 = weights.sha256

    @property
    def weights_sha256(self) -> str:
        """The checksum of the weights in use."""
        return self._sha256

    @torch.inference_mode()
    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts features with 64-dimensional float32 unit descriptors.

        Returns:
            Per image what `Extractor.extract` promises; scores are in 0..1.
        """
        # One by one: a larger batch rounds otherwise, and is no faster on a CPU.
        return [self._extract_one(batch, item) for item in range(len(batch))]

    def _extract_one(self, batch: ImageBatch, item: int) -> Features:
        width, height = (
            max(_MULTIPLE, side // _MULTIPLE * _MULTIPLE) for side in batch.network_size
        )
        size = (width, height)
        pixels = torch.from_numpy(batch.pixels[item : item + 1]).to(self._device)
        grey = F.interpolate(
            pixels.mean(1, keepdim=True),
            (height, width),
            mode="bilinear",
            align_corners=False,
        )
        dense, logits, reliability = self._network(grey)
        heatmap = F.pixel_shuffle(logits.softmax(1)[:, :-1], _CELL)[0, 0]
        dense = F.normalize(dense, dim=1)
        xy = strict_maxima(
            heatmap, radius=_NMS_RADIUS, threshold=self._config.min_score
        )
        scores = heatmap[xy[:, 1], xy[:, 0]]
        scores = scores * _sample(reliability, xy, size, mode="bilinear")[:, 0]
        scores, best = scores.topk(min(len(xy), self._config.max_keypoints))
        xy = xy[best]
        descriptors = F.normalize(_sample(dense, xy, size, mode="bicubic"), dim=1)
        xy_network = coords.resize_xy(
            coords.colmap_from_centre(xy.cpu().numpy()), size, batch.network_size
        )
        return Features(
            xy=coords.stored_from_network(xy_network, batch, item),
            scores=scores.cpu().numpy(),
            descriptors=descriptors.cpu().numpy(),
            image_size=(int(batch.sizes[item, 0]), int(batch.sizes[item, 1])),
            orientation=int(batch.orientations[item]),
        )


class XFeatNetwork(nn.Module):
    """The backbone with its keypoint and reliability heads; keys as in xfeat.pt."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(1)
        self.skip1 = nn.Sequential(nn.AvgPool2d(4), nn.Conv2d(1, 24, 1))
        self.block1 = nn.Sequential(
            _Layer(1, 4), _Layer(4, 8, stride=2), _Layer(8, 8), _Layer(8, 24, stride=2)
        )
        self.block2 = nn.Sequential(_Layer(24, 24), _Layer(24, 24))
        self.block3 = nn.Sequential(
            _Layer(24, 64, stride=2), _Layer(64, 64), _Layer(64, 64, kernel=1)
        )
        self.block4 = nn.Sequential(
            _Layer(64, 64, stride=2), _Layer(64, 64), _Layer(64, 64)
        )
        self.block5 = nn.Sequential(
            _Layer(64, 128, stride=2),
            _Layer(128, 128),
            _Layer(128, 128),
            _Layer(128, 64, kernel=1),
        )
        self.block_fusion = nn.Sequential(
            _Layer(64, 64), _Layer(64, 64), nn.Conv2d(64, 64, 1)
        )
        self.heatmap_head = nn.Sequential(
            _Layer(64, 64, kernel=1),
            _Layer(64, 64, kernel=1),
            nn.Conv2d(64, 1, 1),
            nn.Sigmoid(),
        )
        self.keypoint_head = nn.Sequential(
            _Layer(64, 64, kernel=1),
            _Layer(64, 64, kernel=1),
            _Layer(64, 64, kernel=1),
            nn.Conv2d(64, 65, 1),
        )

    def forward(
        self,
        grey: torch.Tensor,  # [B, 1, H, W], H and W multiples of 32
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Computes the maps, one cell for 8 by 8 pixels.

        Returns:
            1. dense descriptors [B, 64, H / 8, W / 8], not normalised,
            2. logits [B, 65, H / 8, W / 8] of the cell's pixels, row by row, and of
               there being no keypoint,
            3. reliability [B, 1, H / 8, W / 8] in 0..1.
        """
        grey = self.norm(grey)
        x2 = self.block2(self.block1(grey) + self.skip1(grey))
        x3 = self.block3(x2)
        x4 = self.block4(x3)
        x5 = self.block5(x4)
        size = x3.shape[-2:]
        x4 = F.interpolate(x4, size, mode="bilinear", align_corners=False)
        x5 = F.interpolate(x5, size, mode="bilinear", align_corners=False)
        dense = self.block_fusion(x3 + x4 + x5)
        logits = self.keypoint_head(F.pixel_unshuffle(grey, _CELL))
        return dense, logits, self.heatmap_head(dense)


class _Layer(nn.Module):
    """Convolution, batch normalisation without affine part, ReLU."""

    def __init__(
        self, inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1
    ) -> None:
        super().__init__()
        self.layer = nn.Sequential(
            nn.Conv2d(
                inputs,
                outputs,
                kernel,
                stride=stride,
                padding=kernel // 2,
                bias=False,
            ),
            nn.BatchNorm2d(outputs, affine=False),
            nn.ReLU(inplace=True),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        result: torch.Tensor = self.layer(x)
        return result


def _fuse_batch_norm(network: XFeatNetwork) -> None:
    """Folds the batch normalisation of a network in evaluation mode, in place."""
    for module in network.modules():
        if isinstance(module, _Layer):
            convolution, norm, activation = module.layer
            fused = fuse_conv_bn_eval(
                cast(nn.Conv2d, convolution), cast(nn.BatchNorm2d, norm)
            )
            module.layer = nn.Sequential(fused, activation)


def _sample(
    dense: torch.Tensor,  # [1, C, H / 8, W / 8]
    xy: torch.Tensor,  # [N, 2] int64, pixel centres at integers
    size: tuple[int, int],  # (W, H)
    *,
    mode: str,
) -> torch.Tensor:
    """Reads a map at keypoints, [N, C], at the positions XFeat was trained with.

    Those are x w / (W - 1) - 1/2 of the map's w cells, not x / 8.
    """
    last = torch.tensor(size, device=xy.device) - 1
    grid = (2 * (xy / last) - 1)[None, None]
    return F.grid_sample(dense, grid, mode=mode, align_corners=False)[0, :, 0].T
