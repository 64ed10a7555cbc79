"""What the networks that look at images share: padding, rows of a batch, features."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from sfmprep.coords import Placed, colmap_from_centre, resize_xy
from sfmprep.types import Features, Float32, ImageBatch

K = TypeVar("K")

CELL = 8  # pixels a side that one cell of a keypoint head covers
_LUMA = (0.299, 0.587, 0.114)  # of red, green and blue (ITU-R BT.601), as OpenCV's grey

_MEAN, _STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels


def imagenet_normalised(pixels: torch.Tensor) -> torch.Tensor:
    """Pixels [B, 3, H, W] in 0..1 as networks that began with ImageNet see them."""
    mean, std = (pixels.new_tensor(v)[:, None, None] for v in (_MEAN, _STD))
    return (pixels - mean) / std


def padded_grey(pixels: torch.Tensor, *, multiple: int) -> torch.Tensor:
    """The luma of [B, 3, H, W], [B, 1, H, W], with zeros at the right and below.

    Sides are padded to multiples of `multiple`: by less than a cell of that size, so
    every cell begins in the image.
    """
    grey = (pixels * pixels.new_tensor(_LUMA)[:, None, None]).sum(1, keepdim=True)
    bottom, right = (-side % multiple for side in grey.shape[2:])
    return F.pad(grey, (0, right, 0, bottom))


def cell_heatmaps(logits: torch.Tensor) -> torch.Tensor:
    """Spreads the probabilities of cells [B, h, w, 65] out to [B, 8 h, 8 w].

    The first 64 are those of a cell's pixels, row by row; the last one, that of there
    being no keypoint in it, goes.
    """
    count, rows, columns, _ = logits.shape
    cells = logits.softmax(3)[..., :-1].view(count, rows, columns, CELL, CELL)
    return cells.transpose(2, 3).reshape(count, rows * CELL, columns * CELL)


def only_row(part: torch.Tensor, row: int) -> torch.Tensor:
    """One image of a batch, which does not keep the others in memory."""
    return part if len(part) == 1 else part[row : row + 1].clone()


def prepared_as(
    kind: type[K], pairs: Sequence[tuple[object, object]]
) -> list[tuple[K, K]]:
    """The pairs, all of whose images are of the kind that one matcher prepares.

    Raises:
        ValueError: an image was prepared by another kind of matcher.
    """

    def checked(image: object) -> K:
        if not isinstance(image, kind):
            raise ValueError(
                f"got a {type(image).__name__} but expected {kind.__name__}"
            )
        return image

    return [(checked(first), checked(second)) for first, second in pairs]


def features_of(
    batch: ImageBatch,
    image: torch.Tensor,  # [N] int64, rising
    xy: torch.Tensor,  # [N, 2] pixel centres at integers
    scores: torch.Tensor,  # [N] falling within each image
    descriptors: torch.Tensor,  # [N, D]
    *,
    size: tuple[int, int] | None = None,
) -> list[Features]:
    """Brings keypoints of a batch to the host, in one transfer.

    Args:
        batch: The images.
        image: Which image of the batch a keypoint is of.
        xy: Network pixels, float32 or whole.
        scores: Higher is better, float32.
        descriptors: Unit rows, float32.
        size: (W, H) of the network pixels where it is not `batch.network_size`.

    Returns:
        One for each image of the batch, in COLMAP pixels of the file on disk.
    """
    rows = torch.cat([image[:, None], xy, scores[:, None], descriptors], dim=1)
    table: Float32 = rows.cpu().numpy()
    ends = np.searchsorted(table[:, 0], np.arange(1, len(batch)))
    found = []
    for item, part in enumerate(np.split(table, ends)):
        placed = Placed.of(batch, item)
        seen = colmap_from_centre(part[:, 1:3])
        seen = resize_xy(seen, size or placed.network_size, placed.network_size)
        found.append(
            Features(
                xy=placed.stored(seen),
                scores=part[:, 3].copy(),
                descriptors=part[:, 4:].copy(),
                image_size=placed.size,
                orientation=placed.orientation,
            )
        )
    return found
