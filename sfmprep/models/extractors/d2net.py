"""D2-Net: keypoints that are maxima of the very features that describe them.

Paper: Dusmanu, Rocco, Pajdla, Pollefeys, Sivic, Torii, Sattler, "D2-Net: A Trainable
CNN for Joint Description and Detection of Local Features", CVPR 2019. Written from it
and from the shapes of the public checkpoints of mihaidusmanu/d2-net (Clear BSD). What
is otherwise: places are those of the cells' centres, which in the reference lie two
pixels further up and left; places of scaled images take their half pixel along.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Unpack

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sfmprep.config import D2NetConfig
from sfmprep.models.shared.adapter import Adapter, below, in_parts
from sfmprep.models.shared.extraction import features_of
from sfmprep.models.shared.nms import best_of_each
from sfmprep.models.shared.precision import Where
from sfmprep.models.shared.sampling import sample
from sfmprep.types import Features, ImageBatch

_MEAN = (103.939, 116.779, 123.68)  # of blue, green and red, 0..255
_CELL, _CENTRE = 4, 3.5  # pixels from cell to cell, and to the centre of the first
_EDGE = (5 + 1) ** 2 / 5  # as SIFT's, of the ratio of curvatures
_SCALES = 0.5, 1.0, 2.0
_MIN_SIDE = 16  # pixels; the features of smaller images have no inner cell
_MEMORY = 4  # times that of ALIKED


class D2Net:
    """Extracts D2-Net keypoints, scored by the feature that is largest there.

    The precision is that of the convolutions; detection is in float32.
    """

    def __init__(self, config: D2NetConfig, **where: Unpack[Where]) -> None:
        self._config, self._adapter = config, Adapter.of(config, **where)
        tensors = self._adapter.tensors()
        tensors = below(tensors, "model.") or tensors
        self._network = self._adapter.load(D2NetNetwork(), tensors)
        self.identity = self._adapter.identity
        share = _MEMORY * (4 if config.is_multiscale else 1)
        self.batch_size = self._adapter.batch_size(config.max_size, share=share)

    @in_parts
    def extract(self, batch: ImageBatch) -> list[Features]:
        """Extracts 512-dimensional float32 unit descriptors; scores are above 0."""
        levels = self._levels(self._adapter.pixels(batch))
        found = _Found(*(torch.cat(column) for column in zip(*levels, strict=True)))
        best = best_of_each(found.image, found.scores, limit=self._config.max_keypoints)
        return features_of(batch, *(column[best] for column in found))

    def _levels(self, pixels: Tensor) -> Iterator[_Found]:
        """Keypoints of each scale; a coarse one bars those of finer scales under it."""
        height, width = pixels.shape[2:]
        scales = _SCALES if self._config.is_multiscale else (1.0,)
        dense = barred = None
        yield _nothing(pixels)
        for number, scale in enumerate(scales, 1):
            size = int(height * scale), int(width * scale)
            if min(size) < _MIN_SIDE:
                continue
            level = pixels
            if scale != 1:
                level = F.interpolate(pixels, size, mode="bilinear", align_corners=True)
            own = self._network(level)
            cells = own.shape[2:]
            if dense is not None:
                own = own + F.interpolate(
                    dense, cells, mode="bilinear", align_corners=True
                )
            dense = own
            peaks = find_peaks(dense)
            if barred is not None:
                barred = F.interpolate(barred.float(), cells).bool()
                peaks = peaks._replace(is_peak=peaks.is_peak & ~barred[:, 0])
            is_peak = peaks.is_peak[:, None]
            barred = is_peak if barred is None else barred | is_peak
            yield _placed(dense, peaks, number, (width, height), size[::-1])


class _Found(NamedTuple):
    image: Tensor  # [N]
    xy: Tensor  # [N, 2] network pixels, centres at integers
    scores: Tensor  # [N]
    descriptors: Tensor  # [N, 512] unit rows


class Peaks(NamedTuple):
    """Of each cell, whether it is a keypoint, and where in it."""

    is_peak: Tensor  # [B, h, w] bool
    step: Tensor  # [B, h, w, 2] (y, x) from the cell's centre, cells
    value: Tensor  # [B, h, w] the largest feature


def find_peaks(dense: Tensor) -> Peaks:
    """Finds the cells of [B, C, h, w] whose largest feature is a peak of its channel.

    It is the maximum of its 3 by 3 neighbours, and no edge.
    """
    value, channel = dense.max(1, keepdim=True)
    padded = F.pad(dense, (1, 1, 1, 1))
    height, width = dense.shape[2:]

    def at(y: int, x: int) -> Tensor:
        """The same channel, so many cells below and to the right; 0 outside."""
        moved = padded[:, :, 1 + y : 1 + y + height, 1 + x : 1 + x + width]
        return moved.gather(1, channel)[:, 0]

    steps = (-1, 0, 1)
    around = {(y, x): at(y, x) for y in steps for x in steps}
    middle = around[0, 0]
    is_largest = middle >= torch.stack([*around.values()]).amax(0)
    dyy = around[-1, 0] + around[1, 0] - 2 * middle
    dxx = around[0, -1] + around[0, 1] - 2 * middle
    dyx = (around[-1, -1] - around[-1, 1] - around[1, -1] + around[1, 1]) / 4
    det = dyy * dxx - dyx**2
    is_blob = (det > 0) & ((dyy + dxx) ** 2 <= _EDGE * det)
    dy, dx = (around[1, 0] - around[-1, 0]) / 2, (around[0, 1] - around[0, -1]) / 2
    safe = det.where(is_blob, 1.0)
    step = torch.stack((dyx * dx - dxx * dy, dyx * dy - dyy * dx), -1) / safe[..., None]
    return Peaks(is_largest & is_blob, step, value[:, 0])


def _placed(
    dense: Tensor,
    peaks: Peaks,
    level: int,
    size: tuple[int, int],  # (W, H) of the image, and of the one that was seen
    seen: tuple[int, int],
) -> _Found:
    """Keypoints where the exact place is in its cell and has four cells around it."""
    image, y, x = peaks.is_peak.nonzero().unbind(1)
    step = peaks.step[image, y, x]
    place = torch.stack((y, x), 1) + step
    last = place.new_tensor(dense.shape[2:]) - 1
    inside = (step.abs() < 0.5).all(1)
    inside &= ((place.floor() >= 0) & (place.ceil() <= last)).all(1)
    image, y, x, place = image[inside], y[inside], x[inside], place[inside]
    rows = dense.permute(0, 2, 3, 1).contiguous()
    descriptors = F.normalize(sample(rows, image, place[:, 0], place[:, 1]), dim=1)
    stretch = place.new_tensor(size) / place.new_tensor(seen)
    xy = (_CELL * place.flip(1) + _CENTRE + 0.5) * stretch - 0.5
    return _Found(image, xy, peaks.value[image, y, x] / level, descriptors)


def _nothing(pixels: Tensor) -> _Found:
    rows = pixels.new_empty(0, 512)
    return _Found(rows[:, 0].long(), rows[:, :2], rows[:, 0], rows)


class D2NetNetwork(nn.Module):
    """VGG-16 to its tenth convolution, denser; keys as in the public checkpoints."""

    def __init__(self) -> None:
        super().__init__()
        self.dense_feature_extraction = _Vgg()

    def prepare(self, dtype: torch.dtype) -> None:
        """Makes the network ready to be called, once, after its weights were loaded."""
        self.to(dtype)

    def forward(self, pixels: Tensor) -> Tensor:
        """Computes features [B, 512, H // 4 - 1, W // 4 - 1] of RGB in 0..1, float32.

        Sides are 16 pixels or more.
        """
        bgr = 255 * pixels.flip(1) - pixels.new_tensor(_MEAN)[:, None, None]
        layers = self.dense_feature_extraction.model
        dense: Tensor = layers(bgr.to(next(self.parameters()).dtype)).float()
        return dense


class _Vgg(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inputs = 3
        for outputs, count, pool in (
            (64, 2, nn.MaxPool2d(2)),
            (128, 2, nn.MaxPool2d(2)),
            (256, 3, nn.AvgPool2d(2, stride=1)),
            (512, 3, None),
        ):
            reach = 1 if pool else 2  # in place of the third pooling
            for _ in range(count):
                convolution = nn.Conv2d(
                    inputs, outputs, 3, padding=reach, dilation=reach
                )
                layers += [convolution, nn.ReLU(inplace=True)]
                inputs = outputs
            layers += [pool] if pool else []
        self.model = nn.Sequential(*layers)
